import pytest

from mediamill import catalog
from mediamill.errors import InvalidRequest

ENTRY = catalog.get("caption")
ASKED = {
    "url_video": "https://example.com/v.mp4",
    "url_srt": "https://example.com/s.srt",
    "path": "a/b/",
    "output_filename": "x.mp4",
}


def test_the_documented_request_is_accepted_with_defaults():
    asked, warnings = catalog.validate(ENTRY, ASKED)
    assert warnings == ()
    assert (asked.mode, asked.quality, asked.style) == ("burn", "balanced", None)
    assert [(ref.field, ref.source.kind) for ref in catalog.input_refs(asked)] == [
        ("url_video", "video"),
        ("url_srt", "subtitles"),
    ]
    assert ENTRY.key_prefix(asked) == "a/b/"
    for example in ENTRY.examples:
        assert catalog.validate(ENTRY, example)[1] == ()


def test_a_style_may_be_a_name():
    asked, _ = catalog.validate(ENTRY, {**ASKED, "style": "highlight"})
    assert asked.style.name == "highlight"


def test_without_a_folder_results_lie_under_the_job():
    asked, _ = catalog.validate(ENTRY, {"url_video": "v", "url_srt": "s"})
    assert ENTRY.key_prefix(asked) is None
    assert asked.output_filename == "captioned.mp4"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"url_video": None}, "url_video"),
        ({"url_srt": 5}, "url_srt"),
        ({"output_filename": "../x.mp4"}, "output_filename"),
        ({"output_filename": "a/x.mp4"}, "output_filename"),
        ({"output_filename": "x.exe"}, "output_filename"),
        ({"output_filename": ".mp4"}, "output_filename"),
        ({"output_filename": "..mp4"}, "output_filename"),
        ({"output_filename": "a\\x.mp4"}, "output_filename"),
        ({"output_filename": "a\x00.mp4"}, "output_filename"),
        ({"path": "../up/"}, "path"),
        ({"path": "a//b"}, "path"),
        ({"mode": "both"}, "mode"),
        ({"style": {"name": "neon"}}, "style.name"),
    ],
)
def test_every_wrong_field_is_named(change, path):
    with pytest.raises(InvalidRequest) as caught:
        catalog.validate(ENTRY, {**ASKED, **change})
    assert [detail.path for detail in caught.value.details] == [path]

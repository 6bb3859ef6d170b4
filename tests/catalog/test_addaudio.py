import pytest

from mediamill import catalog
from mediamill.errors import InvalidRequest

ENTRY = catalog.get("addaudio")
ASKED = {
    "url_video": "https://example.com/v.mp4",
    "url_audio": "https://example.com/a.mp3",
    "path": "/a/b",
    "output_filename": "com audio.MP4",
}


def test_the_documented_request_is_accepted():
    asked, warnings = catalog.validate(ENTRY, ASKED)
    assert warnings == ("path: the leading slash was left out.",)
    assert ENTRY.key_prefix(asked) == "a/b/"
    assert [(ref.field, ref.source.kind) for ref in catalog.input_refs(asked)] == [
        ("url_video", "video"),
        ("url_audio", "audio"),
    ]
    for example in ENTRY.examples:
        assert catalog.validate(ENTRY, example)[1] == ()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"url_audio": ""}, None),
        ({"url_audio": None}, "url_audio"),
        ({"output_filename": "x.mp3"}, "output_filename"),
        ({"path": ".."}, "path"),
    ],
)
def test_every_wrong_field_is_named(change, path):
    if path is None:
        assert catalog.validate(ENTRY, {**ASKED, **change})[0].url_audio == ""  # refused where references are checked
        return
    with pytest.raises(InvalidRequest) as caught:
        catalog.validate(ENTRY, {**ASKED, **change})
    assert [detail.path for detail in caught.value.details] == [path]

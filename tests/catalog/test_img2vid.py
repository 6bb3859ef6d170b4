from dataclasses import replace
from datetime import UTC, datetime

import pytest

from mediamill import catalog
from mediamill.config import Settings
from mediamill.errors import EngineFailed, InputUnreachable, InvalidRequest, UnsupportedMedia
from mediamill.model import Job, JobError, Status

ENTRY = catalog.get("img2vid")
ONE = {"id": "img-1", "image_url": "https://example.com/a.jpg", "duracao": 6.48}


def request(*stills, **more):
    return catalog.validate(ENTRY, {"images": list(stills), **more})


def test_the_documented_request_is_accepted_with_defaults():
    asked, warnings = request(ONE, path="Project Name/Video Title/videos/temp/")
    assert warnings == ()
    assert (asked.quality, asked.codec, asked.anchor, asked.start_index) == ("balanced", "h264", "center", 0)
    assert ENTRY.key_prefix(asked) == "Project Name/Video Title/videos/temp/"
    assert [ref.field for ref in catalog.input_refs(asked)] == ["images.0.image_url"]
    for example in ENTRY.examples:
        assert catalog.validate(ENTRY, example)[1] == ()


def test_lossless_numbers_and_strings_are_coerced_and_unknown_fields_named():
    asked, warnings = request(
        {"id": 7, "image_url": "u", "duracao": "6.48", "x": 1},
        {"id": 8.0, "image_url": "u", "duracao": 1},
        path="/a/b",
        y=2,
    )
    assert [(s.id, s.duracao) for s in asked.images] == [("7", 6.48), ("8", 1.0)]
    assert ENTRY.key_prefix(asked) == "a/b/"
    assert set(warnings) == {
        "Unknown field 'images.0.x' was ignored.",
        "Unknown field 'y' was ignored.",
        "path: the leading slash was left out.",
    }


@pytest.mark.parametrize(
    ("raw", "paths"),
    [
        ({}, ["images"]),
        ({"images": []}, ["images"]),
        ({"images": "x"}, ["images"]),
        ({"images": [{}]}, ["images.0.id", "images.0.image_url", "images.0.duracao"]),
        ({"images": [{**ONE, "duracao": 0}]}, ["images.0.duracao"]),
        ({"images": [{**ONE, "duracao": -1}]}, ["images.0.duracao"]),
        ({"images": [{**ONE, "duracao": float("nan")}]}, ["images.0.duracao"]),
        ({"images": [{**ONE, "duracao": "NaN"}]}, ["images.0.duracao"]),
        ({"images": [{**ONE, "duracao": float("inf")}]}, ["images.0.duracao"]),
        ({"images": [{**ONE, "duracao": True}]}, ["images.0.duracao"]),
        ({"images": [{**ONE, "duracao": [1]}]}, ["images.0.duracao"]),
        ({"images": [{**ONE, "duracao": None}]}, ["images.0.duracao"]),
        ({"images": [{**ONE, "id": True}]}, ["images.0.id"]),
        ({"images": [{**ONE, "id": ""}]}, ["images.0.id"]),
        ({"images": [{**ONE, "image_url": 5}]}, ["images.0.image_url"]),
        ({"images": [ONE, ONE]}, ["images"]),
        ({"images": [ONE], "path": "a/../b"}, ["path"]),
        ({"images": [ONE], "path": "a\nb"}, ["path"]),
        ({"images": [ONE], "path": "a\\b"}, ["path"]),
        ({"images": [ONE], "quality": "ultra", "codec": "vp8", "anchor": "left"}, ["quality", "codec", "anchor"]),
        ({"images": [{**ONE, "id": str(i)} for i in range(1001)]}, ["images"]),
    ],
)
def test_every_wrong_field_is_named(raw, paths):
    with pytest.raises(InvalidRequest) as caught:
        catalog.validate(ENTRY, raw)
    assert [detail.path for detail in caught.value.details] == paths


def test_a_clip_may_be_as_long_as_the_setting_says():
    asked, _ = request({**ONE, "duracao": 600}, {**ONE, "id": "b", "duracao": 1e9})
    with pytest.raises(InvalidRequest, match=r"images\.1\.duracao: must be at most 600 seconds \(got 1e\+09\)"):
        ENTRY.allow(asked, Settings(_env_file=None))
    ENTRY.allow(request(ONE)[0], Settings(_env_file=None))
    with pytest.raises(InvalidRequest, match="at most 5 seconds"):
        ENTRY.allow(request(ONE)[0], Settings(_env_file=None, max_clip_s=5))


def many(count):
    return request(*({**ONE, "id": f"s{i}"} for i in range(count)), path="p")[0]


@pytest.mark.parametrize(
    ("count", "above", "parts", "sizes"),
    [(50, 50, 3, []), (51, 50, 3, [17, 17, 17]), (100, 50, 3, [33, 33, 34]), (60, 50, 1, []), (2, 1, 3, [1, 1])],
)
def test_more_stills_than_the_limit_go_in_equal_parts_that_know_their_place(count, above, parts, sizes):
    inputs = ENTRY.split(many(count), above, parts)
    assert [len(part["images"]) for part in inputs] == sizes
    names = [f"{part['start_index'] + i}" for part in inputs for i, _ in enumerate(part["images"])]
    assert names == [str(i) for i in range(count)] or not sizes
    for part in inputs:
        assert catalog.validate(ENTRY, part)[1] == ()
        assert part["path"] == "p"


def part_job(raw, number, status=Status.SUCCEEDED, output=None, error=None):
    return Job(
        id=f"j{number}",
        model="img2vid",
        status=status,
        input=raw,
        created_at=datetime.now(UTC),
        part=number,
        output=output,
        error=error,
    )


def finished(raw, number, errors=()):
    bad = dict(errors)
    first = raw["start_index"]
    return part_job(
        raw,
        number,
        output={
            "videos": [
                {"id": s["id"], "filename": f"video_{first + i + 1}.mp4"}
                for i, s in enumerate(raw["images"])
                if s["id"] not in bad
            ],
            "errors": [{"id": k, "error": "e", "code": c} for k, c in bad.items()],
        },
    )


def test_parts_are_merged_in_request_order_with_the_errors_of_each():
    whole = many(6)
    inputs = ENTRY.split(whole, 5, 3)
    jobs = [
        finished(inputs[0], 0, [("s1", "unsupported_media")]),
        part_job(inputs[1], 1, Status.FAILED, error=JobError("crashed", "The process died.")),
        finished(inputs[2], 2),
    ]
    output = ENTRY.merge(whole, jobs)
    assert [v["filename"] for v in output["videos"]] == ["video_1.mp4", "video_5.mp4", "video_6.mp4"]
    assert [(e["id"], e["code"]) for e in output["errors"]] == [
        ("s1", "unsupported_media"),
        ("s2", "crashed"),
        ("s3", "crashed"),
    ]
    assert (output["total"], output["processed"]) == (6, 3)


@pytest.mark.parametrize(
    ("codes", "error"),
    [
        (("unsupported_media", "too_large", "input_unreachable"), UnsupportedMedia),
        (("input_unreachable",) * 3, InputUnreachable),
        (("unsupported_media", "crashed", "unsupported_media"), EngineFailed),
    ],
)
def test_parts_that_all_failed_fail_the_whole_with_the_kind_of_reason(codes, error):
    whole = many(6)
    inputs = ENTRY.split(whole, 5, 3)
    jobs = [
        part_job(raw, i, Status.FAILED, error=JobError(code, "why"))
        for i, (raw, code) in enumerate(zip(inputs, codes, strict=True))
    ]
    with pytest.raises(error, match=r"None of the 6 images.*'s0': why"):
        ENTRY.merge(whole, jobs)


def test_a_cancelled_part_without_an_error_says_so():
    whole = many(6)
    inputs = ENTRY.split(whole, 5, 2)
    jobs = [finished(inputs[0], 0), replace(part_job(inputs[1], 1), status=Status.CANCELLED)]
    assert {e["code"] for e in ENTRY.merge(whole, jobs)["errors"]} == {"cancelled"}

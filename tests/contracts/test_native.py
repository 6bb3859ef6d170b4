"""The native envelope: names, shapes and times as the contract fixes them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from mediamill.contracts import native, percent, when
from mediamill.errors import Detail, InvalidRequest, NotFound
from mediamill.model import Artifact, Job, JobError, MediaFacts, Phase, Status

AT = datetime(2025, 10, 3, 10, 0, 0, tzinfo=UTC)
JOB = Job(id="j1", model="fake", status=Status.QUEUED, input={"kind": "video"}, created_at=AT)


def test_a_queued_job_has_every_field_of_the_envelope():
    assert native.reply(JOB, {}) == {
        "id": "j1",
        "model": "fake",
        "status": "queued",
        "phase": None,
        "progress": 0,
        "created_at": "2025-10-03T10:00:00.000Z",
        "started_at": None,
        "finished_at": None,
        "input": {"kind": "video"},
        "artifacts": [],
        "error": None,
        "attempt": 0,
        "timings": {},
        "warnings": [],
    }


def test_optional_fields_appear_only_when_known():
    job = replace(JOB, position=0, output={"a": 1}, metadata={"order": "7"}, batch_id="b", message="frame 3")
    body = native.reply(job, {})
    assert {k: body[k] for k in ("position", "output", "metadata", "batch_id", "message")} == {
        "position": 0,
        "output": {"a": 1},
        "metadata": {"order": "7"},
        "batch_id": "b",
        "message": "frame 3",
    }


def test_a_running_job_tells_whole_seconds_left_and_where_its_preview_is():
    running = replace(JOB, status=Status.RUNNING, eta_s=2.1, preview="previews/j1/preview-3.png")
    body = native.reply(running, {"previews/j1/preview-3.png": "http://x/preview-3.png"})
    assert (body["eta_s"], body["preview_url"]) == (3, "http://x/preview-3.png")


def test_artifacts_show_probed_facts_and_leave_out_what_does_not_apply():
    clip = Artifact("a.mp4", "outputs/j1/a.mp4", "video/mp4", 10, "ab", MediaFacts(320, 180, 1.0, 24.0, 24, "h264"))
    sound = Artifact("b.wav", "outputs/j1/b.wav", "audio/wav", 5, "cd", MediaFacts(duration_s=2.5))
    job = replace(JOB, status=Status.SUCCEEDED, artifacts=(clip, sound))
    video, audio = native.reply(job, {"a.mp4": "http://x/a.mp4", "b.wav": "http://x/b.wav"})["artifacts"]
    assert (video["url"], video["width"], video["height"], video["duration_s"], video["frames"]) == (
        "http://x/a.mp4",
        320,
        180,
        1.0,
        24,
    )
    assert audio == {
        "name": "b.wav",
        "url": "http://x/b.wav",
        "media_type": "audio/wav",
        "size_bytes": 5,
        "sha256": "cd",
        "duration_s": 2.5,
    }


def test_a_running_job_shows_phase_and_whole_percent():
    body = native.reply(replace(JOB, status=Status.RUNNING, phase=Phase.ENCODING, progress=0.999), {})
    assert (body["phase"], body["progress"]) == ("encoding", 99)


@pytest.mark.parametrize(("fraction", "expected"), [(0, 0), (0.29, 29), (0.999, 99), (1, 100), (1.5, 100), (-1, 0)])
def test_progress_is_a_whole_number_and_100_only_when_done(fraction, expected):
    assert percent(fraction) == expected


def test_times_are_utc_with_milliseconds_whatever_the_zone():
    elsewhere = datetime(2025, 10, 3, 12, 0, 0, 123999, tzinfo=timezone(timedelta(hours=2)))
    assert (when(elsewhere), when(None)) == ("2025-10-03T10:00:00.123Z", None)


def test_long_base64_in_the_input_is_shortened_and_prompts_are_not():
    job = replace(JOB, input={"image": "A" * 9000, "prompt": "two words " * 900, "list": [{"x": "B" * 5000}]})
    body = native.reply(job, {})["input"]
    assert body["image"].endswith("(9000 characters)")
    assert body["prompt"] == "two words " * 900
    assert len(body["list"][0]["x"]) < 100


@pytest.mark.parametrize(
    ("raw", "paths"),
    [
        ({}, ["model"]),
        ({"model": 3}, ["model"]),
        ({"model": "fake", "input": []}, ["input"]),
        ({"model": "fake", "priority": 101}, ["priority"]),
        ({"model": "fake", "priority": True}, ["priority"]),
        ({"model": "fake", "priority": "x", "metadata": 1, "webhook_url": []}, ["webhook_url", "priority", "metadata"]),
    ],
)
def test_each_wrong_field_is_named(raw, paths):
    with pytest.raises(InvalidRequest) as caught:
        native.request(raw)
    assert [d.path for d in caught.value.details] == paths


def test_unknown_fields_are_named_in_warnings():
    parsed, warnings = native.request({"model": "fake", "imput": {}, "input": {"a": 1}})
    assert (parsed.model, parsed.input, warnings) == ("fake", {"a": 1}, ("Unknown field 'imput' was ignored.",))


def test_a_problem_points_into_the_request():
    error = InvalidRequest("bad", details=[Detail("input.images.0.a/b", "is required")])
    assert native.error_reply(error, 400) == {
        "type": "urn:mediamill:error:invalid_request",
        "title": "Bad Request",
        "status": 400,
        "detail": "bad",
        "code": "invalid_request",
        "errors": [{"pointer": "/input/images/0/a~1b", "detail": "is required"}],
    }


def test_only_the_models_own_fields_are_put_below_input():
    error = InvalidRequest("bad", details=[Detail("width", "w"), Detail("webhook_url", "u")])
    assert [d.path for d in native.under_input(error).details] == ["input.width", "webhook_url"]


def test_an_error_names_its_job():
    error = NotFound("gone")
    error.job_id = "j9"
    assert native.error_reply(error, 404)["job_id"] == "j9"


def test_the_webhook_carries_the_final_envelope():
    job = replace(JOB, status=Status.FAILED, finished_at=AT, error=JobError("crashed", "It died."))
    body = native.webhook(job, {})
    assert (body["type"], body["timestamp"]) == ("job.failed", "2025-10-03T10:00:00.000Z")
    assert body["data"]["error"] == {"code": "crashed", "message": "It died."}

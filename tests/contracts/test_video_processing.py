"""The video processing contract: the document's messages, fields and numbers, against its own types."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from mediamill.contracts import video_processing as video
from mediamill.errors import DeadlineExceeded, InvalidRequest
from mediamill.model import Artifact, Job, JobError, Status
from tests.video_contract import VideoResponse

AT = datetime(2025, 10, 3, 10, 0, 0, tzinfo=UTC)
STILLS = [{"id": f"img-{i}", "image_url": f"https://example.com/{i}.jpg", "duracao": 5.0} for i in (1, 2, 3)]


def job(model: str, names: tuple[str, ...], **changes) -> Job:
    base = Job(
        id="j1",
        model=model,
        status=Status.SUCCEEDED,
        input={"images": STILLS} if model == "img2vid" else {},
        created_at=AT,
        started_at=AT + timedelta(milliseconds=500),
        finished_at=AT + timedelta(seconds=90),
        artifacts=tuple(Artifact(n, f"P/{n}", "video/mp4", 1, "ab") for n in names),
        progress=1.0,
        contract="video_processing",
    )
    return replace(base, **changes)


def urls(of: Job) -> dict[str, str]:
    return {a.name: f"https://files/{a.name}" for a in of.artifacts}


def test_caption_replies_with_every_field_of_the_document():
    done = job("caption", ("video_legendado.mp4",))
    body = video.reply(done, urls(done))
    assert body == {
        "code": 200,
        "message": "Video caption completed and uploaded to S3 successfully",
        "video_url": "https://files/video_legendado.mp4",
        "execution": {
            "startTime": "2025-10-03T10:00:00.000Z",
            "endTime": "2025-10-03T10:01:30.000Z",
            "durationMs": 90000,
            "durationSeconds": 90,
        },
        "stats": {"jobId": "j1", "delayTime": 500, "executionTime": 89500},
    }
    VideoResponse.model_validate(body)


def test_addaudio_has_its_own_message():
    done = job("addaudio", ("a.mp4",))
    assert video.reply(done, urls(done))["message"] == "Video addaudio completed and uploaded to S3 successfully"


def test_img2vid_lists_videos_in_request_order_with_counts():
    done = job("img2vid", ("video_2.mp4", "video_1.mp4", "video_3.mp4"))
    body = video.reply(done, urls(done))
    VideoResponse.model_validate(body)
    assert body["message"] == "Images converted to videos and uploaded to S3 successfully"
    assert [(v["id"], v["filename"]) for v in body["videos"]] == [
        ("img-1", "video_1.mp4"),
        ("img-2", "video_2.mp4"),
        ("img-3", "video_3.mp4"),
    ]
    assert (body["stats"]["total"], body["stats"]["processed"]) == (3, 3)
    assert "errors" not in body


def test_a_still_that_failed_keeps_the_numbers_of_the_others():
    done = job(
        "img2vid", ("video_1.mp4", "video_3.mp4"), output={"errors": [{"id": "img-2", "error": "404", "code": "x"}]}
    )
    body = video.reply(done, urls(done))
    assert [v["filename"] for v in body["videos"]] == ["video_1.mp4", "video_3.mp4"]
    assert body["errors"] == [{"id": "img-2", "error": "404"}]
    assert (body["stats"]["total"], body["stats"]["processed"]) == (3, 2)


def test_warnings_come_along():
    done = job("caption", ("a.mp4",), warnings=("Unknown field 'x' was ignored.",))
    assert video.reply(done, urls(done))["warnings"] == ["Unknown field 'x' was ignored."]


@pytest.mark.parametrize(
    ("operation", "raw", "sentence", "paths"),
    [
        ("img2vid", {}, "images array is required with at least one image", {"images", "path"}),
        ("img2vid", {"images": [], "path": "a/"}, "images array is required with at least one image", {"images"}),
        ("img2vid", {"images": "x", "path": "a/"}, "images array is required with at least one image", {"images"}),
        ("img2vid", {"images": STILLS}, "path is required", {"path"}),
        (
            "caption",
            {"url_video": "https://e.com/v.mp4", "path": "", "output_filename": None},
            "url_video, url_srt, path, and output_filename are required",
            {"url_srt", "path", "output_filename"},
        ),
        (
            "addaudio",
            {},
            "url_video, url_audio, path, and output_filename are required",
            {"url_video", "url_audio", "path", "output_filename"},
        ),
    ],
)
def test_missing_fields_get_the_documents_sentence_and_each_is_named(operation, raw, sentence, paths):
    with pytest.raises(InvalidRequest) as caught:
        video.request(operation, raw)
    assert caught.value.message == sentence
    assert {d.path for d in caught.value.details} == paths
    assert video.error_reply(caught.value, 400)["error"] == "Bad Request"


def test_the_webhook_url_is_ours_and_does_not_reach_the_catalog():
    raw = {"images": STILLS, "path": "a/", "webhook_url": "https://example.com/h"}
    inner, webhook_url = video.request("img2vid", raw)
    assert (set(inner), webhook_url) == ({"images", "path"}, "https://example.com/h")
    with pytest.raises(InvalidRequest, match="webhook_url"):
        video.request("img2vid", {**raw, "webhook_url": 7})


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (Status.QUEUED, None, "IN_QUEUE"),
        (Status.RUNNING, None, "IN_PROGRESS"),
        (Status.SUCCEEDED, None, "COMPLETED"),
        (Status.FAILED, JobError("crashed", "x"), "FAILED"),
        (Status.FAILED, JobError("deadline_exceeded", "x"), "TIMED_OUT"),
        (Status.CANCELLED, None, "CANCELLED"),
    ],
)
def test_states_have_runpods_words(status, error, expected):
    assert video.word(job("caption", (), status=status, error=error)) == expected


def test_the_state_of_a_job_names_only_what_happened():
    queued = job("caption", (), status=Status.QUEUED, started_at=None, finished_at=None, progress=0)
    assert video.status_reply(queued, None) == {
        "jobId": "j1",
        "status": "IN_QUEUE",
        "progress": 0,
        "createdAt": "2025-10-03T10:00:00.000Z",
    }
    failed = job("caption", (), status=Status.FAILED, error=JobError("crashed", "It died."))
    body = video.status_reply(failed, None)
    assert (body["error"], body["startedAt"], body["completedAt"]) == (
        "It died.",
        "2025-10-03T10:00:00.500Z",
        "2025-10-03T10:01:30.000Z",
    )


def test_a_job_that_never_started_waited_all_its_time():
    never = job("caption", (), started_at=None)
    body = video.reply(job("caption", ("a.mp4",), started_at=None), {"a.mp4": "u"})
    assert body["stats"] == {"jobId": never.id, "delayTime": 90000, "executionTime": 0}


def test_a_time_out_names_the_job():
    error = DeadlineExceeded("Job j1 did not end within 480 s; it goes on.")
    error.job_id = "j1"
    assert video.error_reply(error, 504) == {"error": "Gateway Timeout", "message": error.message, "jobId": "j1"}


@pytest.mark.parametrize(
    ("changes", "code", "phrase"),
    [
        ({"status": Status.FAILED, "error": JobError("unsupported_media", "bad")}, 422, "Unprocessable"),
        ({"status": Status.FAILED, "error": JobError("engine_failed", "bad")}, 500, "Internal Server Error"),
        ({"status": Status.CANCELLED}, 409, "Conflict"),
    ],
)
def test_the_webhook_of_a_failure_is_the_error_envelope(changes, code, phrase):
    body = video.webhook(job("caption", (), **changes), {})
    assert (body["code"], body["jobId"]) == (code, "j1")
    assert body["error"].startswith(phrase)
    done = job("caption", ("a.mp4",))
    assert video.webhook(done, urls(done)) == video.reply(done, urls(done))

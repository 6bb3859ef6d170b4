"""`/transcribe` on the wire: body in, envelope out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mediamill.contracts import transcription
from mediamill.errors import InvalidRequest, UnsupportedMedia
from mediamill.model import Artifact, Job, JobError, Status

START = datetime(2025, 10, 3, 10, 0, 0, tzinfo=UTC)
NAMES = ("segments.srt", "karaoke.ass", "words.json")
URLS = {name: f"https://files/{name}" for name in NAMES}


def job(status: Status = Status.SUCCEEDED, *, error: JobError | None = None) -> Job:
    return Job(
        id="job-1",
        model="transcribe",
        status=status,
        input={"url_audio": "https://example.com/a.mp3"},
        created_at=START,
        started_at=START + timedelta(milliseconds=500),
        finished_at=START + timedelta(seconds=90),
        artifacts=tuple(Artifact(name, f"p/{name}", "text/plain", 1, "0") for name in NAMES),
        output={
            "language": "pt",
            "language_probability": 0.97,
            "audio_seconds": 12.5,
            "text": "Olá.",
            "speech_seconds": 11.0,
        },
        warnings=("Unknown field 'x' was ignored.", "The language is doubtful."),
        error=error,
    )


def test_the_reply_is_the_envelope_of_the_other_routes_with_three_files() -> None:
    assert transcription.reply(job(), URLS) == {
        "code": 200,
        "message": "Transcription completed and uploaded to S3 successfully",
        "files": {"srt": URLS["segments.srt"], "ass": URLS["karaoke.ass"], "words": URLS["words.json"]},
        "language": "pt",
        "language_probability": 0.97,
        "audio_seconds": 12.5,
        "text": "Olá.",
        "execution": {
            "startTime": "2025-10-03T10:00:00.000Z",
            "endTime": "2025-10-03T10:01:30.000Z",
            "durationMs": 90000,
            "durationSeconds": 90.0,
        },
        "stats": {"jobId": "job-1", "delayTime": 500, "executionTime": 89500},
        "warnings": ["Unknown field 'x' was ignored.", "The language is doubtful."],
    }


def test_webhooks_say_how_it_ended() -> None:
    assert transcription.webhook(job(), URLS) == transcription.reply(job(), URLS)
    failed = job(Status.FAILED, error=JobError("unsupported_media", "The file has no audio stream."))
    assert transcription.webhook(failed, {}) == {
        "code": 422,
        "error": "Unprocessable Entity",
        "message": "The file has no audio stream.",
        "jobId": "job-1",
    }
    assert transcription.webhook(job(Status.CANCELLED), {})["code"] == 409
    large = transcription.webhook(job(Status.FAILED, error=JobError("too_large", "Too long.")), {})
    assert (large["code"], large["error"]) == (413, "Payload Too Large")


def test_the_request_is_split_from_what_is_ours() -> None:
    raw = {"url_audio": "https://e.com/a.mp3", "webhook_url": "https://e.com/hook", "language": None}
    assert transcription.request(raw) == ({"url_audio": "https://e.com/a.mp3"}, "https://e.com/hook")


def test_a_missing_url_is_said_in_one_sentence_with_every_wrong_field() -> None:
    with pytest.raises(InvalidRequest) as caught:
        transcription.request({"url_audio": "", "model": "gigantic"})
    assert caught.value.message == "url_audio is required"
    assert {d.path for d in caught.value.details} == {"url_audio", "model"}


def test_a_form_stands_for_a_json_body() -> None:
    fields = {"model": "base", "language": "", "style": '{"name": "highlight", "color": "#00FF00"}'}
    assert transcription.from_form(fields, file="file:uploads/1/a.mp3") == {
        "model": "base",
        "style": {"name": "highlight", "color": "#00FF00"},
        "url_audio": "file:uploads/1/a.mp3",
    }


@pytest.mark.parametrize(
    ("fields", "path"), [({"url_audio": "https://e.com/a"}, "file"), ({"style": "{broken"}, "style")]
)
def test_a_form_that_contradicts_itself_is_refused(fields: dict[str, str], path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        transcription.from_form(fields, file="file:x")
    assert caught.value.details[0].path == path


def test_errors_have_the_contracts_shape() -> None:
    error = UnsupportedMedia("The file has no audio stream.")
    error.job_id = "job-1"
    assert transcription.error_reply(error, 422) == {
        "error": "Unprocessable Entity",
        "message": "The file has no audio stream.",
        "jobId": "job-1",
    }

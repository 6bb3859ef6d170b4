"""`/transcribe`: the envelope of the video processing routes, with three files and the text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from mediamill import catalog
from mediamill.contracts import when
from mediamill.errors import Detail, InvalidRequest, MediamillError
from mediamill.model import Job, Json, Status

MESSAGE = "Transcription completed and uploaded to S3 successfully"
REQUIRED = "url_audio is required"
_FILES: Mapping[str, str] = {"srt": "segments.srt", "ass": "karaoke.ass", "words": "words.json"}
_FACTS = ("language", "language_probability", "audio_seconds", "text")
_OURS = frozenset({"webhook_url"})
_STATUSES: Mapping[str, int] = {
    "input_error": 422,
    "input_unreachable": 422,
    "unsupported_media": 422,
    "too_large": 413,
    "invalid_request": 400,
    "cancelled": 409,
    "deadline_exceeded": 504,
}
"""HTTP status a webhook names for a job that did not succeed; 500 else."""


def request(raw: Mapping[str, Json]) -> tuple[dict[str, Json], str | None]:
    """The catalog's input and the caller's webhook URL. Null counts as absent.

    Raises: InvalidRequest, with one detail for each wrong field.
    """
    webhook_url = raw.get("webhook_url")
    inner = {name: value for name, value in raw.items() if name not in _OURS and value is not None}
    if not inner.get("url_audio"):
        inner.pop("url_audio", None)
        raise InvalidRequest(REQUIRED, details=_details(inner))
    if webhook_url is not None and not isinstance(webhook_url, str):
        detail = Detail("webhook_url", f"must be a URL (got {webhook_url!r})")
        raise InvalidRequest(f"{detail.path} {detail.message}", details=[detail])
    return inner, webhook_url


def _details(inner: Mapping[str, Json]) -> tuple[Detail, ...]:
    try:
        catalog.validate(catalog.get("transcribe"), inner)
    except InvalidRequest as error:
        return error.details
    return (Detail("url_audio", "is required"),)


def from_form(fields: Mapping[str, str], *, file: str | None) -> dict[str, Json]:
    """The JSON body that a form stands for. `file`: reference of the uploaded file, in place of `url_audio`.

    Raises: InvalidRequest: both a file and a URL; `style` that looks like JSON and is none.
    """
    body: dict[str, Json] = {name: value for name, value in fields.items() if value != ""}
    if file is not None and "url_audio" in body:
        detail = Detail("file", "send either a file or url_audio, not both")
        raise InvalidRequest(f"{detail.path}: {detail.message}", details=[detail])
    if file is not None:
        body["url_audio"] = file
    style = body.get("style")
    if isinstance(style, str) and style.lstrip().startswith("{"):
        try:
            body["style"] = json.loads(style)
        except ValueError as error:
            detail = Detail("style", f"must be a style's name or a JSON object: {error}")
            raise InvalidRequest(f"{detail.path}: {detail.message}", details=[detail]) from error
    return body


def reply(job: Job, urls: Mapping[str, str]) -> dict[str, Json]:
    """The 200 of a job that succeeded."""
    output = dict(job.output or {})
    body: dict[str, Json] = {
        "code": 200,
        "message": MESSAGE,
        "files": {kind: urls[name] for kind, name in _FILES.items() if name in urls},
        **{name: output.get(name) for name in _FACTS},
    }
    waits_ms = _waits_ms(job)
    duration_ms = sum(waits_ms.values())
    body["execution"] = {
        "startTime": when(job.created_at),
        "endTime": when(job.finished_at),
        "durationMs": duration_ms,
        "durationSeconds": duration_ms / 1000,
    }
    body["stats"] = {"jobId": job.id, **waits_ms}
    warnings = list(dict.fromkeys([*job.warnings, *(output.get("warnings") or ())]))
    if warnings:
        body["warnings"] = warnings
    return body


def _waits_ms(job: Job) -> dict[str, int]:
    """Whole milliseconds until the start, and from the start to the end."""
    started_at = job.started_at or job.finished_at or job.created_at
    finished_at = job.finished_at or started_at
    return {
        "delayTime": max(0, round((started_at - job.created_at).total_seconds() * 1000)),
        "executionTime": max(0, round((finished_at - started_at).total_seconds() * 1000)),
    }


def error_reply(error: MediamillError, status: int) -> dict[str, Json]:
    """The status in words, one sentence, the wrong fields, the job where there is one."""
    body: dict[str, Json] = {"error": HTTPStatus(status).phrase, "message": error.message}
    if error.details:
        body["details"] = [{"path": d.path, "message": d.message} for d in error.details]
    if error.job_id is not None:
        body["jobId"] = error.job_id
    return body


def webhook(job: Job, urls: Mapping[str, str]) -> dict[str, Json]:
    """The final reply; for a job that did not succeed its error envelope with the status as `code`."""
    if job.status is Status.SUCCEEDED:
        return reply(job, urls)
    code = "cancelled" if job.status is Status.CANCELLED else job.error.code if job.error else "internal"
    message = job.error.message if job.error else f"Job {job.id} was {job.status.value}."
    status = _STATUSES.get(code, 500)
    return {"code": status, "error": HTTPStatus(status).phrase, "message": message, "jobId": job.id}

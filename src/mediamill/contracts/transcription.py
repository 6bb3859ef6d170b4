"""`/transcribe`: the envelope of the video processing routes, with three files and the text."""

from __future__ import annotations

import json
from collections.abc import Mapping

from mediamill import catalog
from mediamill.contracts import error_envelope, execution, failure, waits_ms
from mediamill.errors import Detail, InvalidRequest, MediamillError
from mediamill.model import Job, Json, Status

MESSAGE = "Transcription completed and uploaded to S3 successfully"
REQUIRED = "url_audio is required"
_FILES: Mapping[str, str] = {"srt": "segments.srt", "ass": "karaoke.ass", "words": "words.json"}
_FACTS = ("language", "language_probability", "audio_seconds", "text")
_OURS = frozenset({"webhook_url"})


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
        raise InvalidRequest.of(Detail("file", "send either a file or url_audio, not both"))
    if file is not None:
        body["url_audio"] = file
    style = body.get("style")
    if isinstance(style, str) and style.lstrip().startswith("{"):
        try:
            body["style"] = json.loads(style)
        except ValueError as error:
            message = f"must be a style's name or a JSON object: {error}"
            raise InvalidRequest.of(Detail("style", message)) from error
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
    body["execution"] = execution(job)
    body["stats"] = {"jobId": job.id, **waits_ms(job)}
    if job.warnings:
        body["warnings"] = list(job.warnings)
    return body


def error_reply(error: MediamillError, status: int) -> dict[str, Json]:
    """The contract's error envelope."""
    return error_envelope(error, status)


def webhook(job: Job, urls: Mapping[str, str]) -> dict[str, Json]:
    """The final reply; for a job that did not succeed its error envelope with the status as `code`."""
    return reply(job, urls) if job.status is Status.SUCCEEDED else failure(job)

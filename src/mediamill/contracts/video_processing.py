"""The video processing contract: `/video/*` blocking calls, `/job/{id}`, RunPod's words for states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from mediamill import catalog
from mediamill.contracts import error_envelope, execution, failure, percent, waits_ms, when
from mediamill.errors import Detail, InvalidRequest, MediamillError
from mediamill.model import Job, Json, Status

Operation = Literal["img2vid", "caption", "addaudio"]

OPERATIONS: tuple[Operation, ...] = ("img2vid", "caption", "addaudio")
MESSAGES: Mapping[str, str] = {
    "img2vid": "Images converted to videos and uploaded to S3 successfully",
    "caption": "Video caption completed and uploaded to S3 successfully",
    "addaudio": "Video addaudio completed and uploaded to S3 successfully",
}
_NO_IMAGES = "images array is required with at least one image"
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "img2vid": ("path",),
    "caption": ("url_video", "url_srt", "path", "output_filename"),
    "addaudio": ("url_video", "url_audio", "path", "output_filename"),
}
_OURS = frozenset({"webhook_url"})
_WORDS: Mapping[Status, str] = {
    Status.QUEUED: "IN_QUEUE",
    Status.RUNNING: "IN_PROGRESS",
    Status.SUCCEEDED: "COMPLETED",
    Status.FAILED: "FAILED",
    Status.CANCELLED: "CANCELLED",
}


def request(operation: Operation, raw: Mapping[str, Json]) -> tuple[dict[str, Json], str | None]:
    """The catalog's input and the caller's webhook URL.

    Raises: InvalidRequest whose message is the documented sentence when a required field is missing, with one detail
        for each wrong field.
    """
    webhook_url = raw.get("webhook_url")
    inner = {name: value for name, value in raw.items() if name not in _OURS}
    sentence = _missing(operation, raw)
    if sentence is not None:
        raise InvalidRequest(sentence, details=_details(operation, inner))
    if webhook_url is not None and not isinstance(webhook_url, str):
        detail = Detail("webhook_url", f"must be a URL (got {webhook_url!r})")
        raise InvalidRequest(f"{detail.path} {detail.message}", details=[detail])
    return inner, webhook_url


def _missing(operation: Operation, raw: Mapping[str, Json]) -> str | None:
    """The documented sentence, when a field it names is absent, null or empty."""
    images = raw.get("images")
    if operation == "img2vid" and not (isinstance(images, list) and images):
        return _NO_IMAGES
    required = _REQUIRED[operation]
    if all(raw.get(name) not in (None, "") for name in required):
        return None
    return f"{', '.join(required[:-1])}, and {required[-1]} are required" if len(required) > 1 else "path is required"


def _details(operation: Operation, raw: Mapping[str, Json]) -> tuple[Detail, ...]:
    """Every wrong field, as the catalog sees them; null counts as absent."""
    required = ("images", *_REQUIRED[operation]) if operation == "img2vid" else _REQUIRED[operation]
    empty = tuple(Detail(name, "is required") for name in required if raw.get(name) in (None, "", []))
    try:
        catalog.validate(catalog.get(operation), {k: v for k, v in raw.items() if v is not None})
    except InvalidRequest as error:
        named = {detail.path for detail in empty}
        return (*empty, *(detail for detail in error.details if detail.path not in named))
    return empty


def reply(job: Job, urls: Mapping[str, str]) -> dict[str, Json]:
    """The 200 of a job that succeeded."""
    body: dict[str, Json] = {"code": 200, "message": MESSAGES.get(job.model, "Job completed successfully")}
    stats: dict[str, Json] = {"jobId": job.id, **waits_ms(job)}
    if job.model == "img2vid":
        videos = _videos(job, urls)
        body["videos"] = videos
        errors = [{"id": e["id"], "error": e["error"]} for e in (job.output or {}).get("errors") or ()]
        if errors:
            body["errors"] = errors
        stats |= {"total": len(job.input.get("images") or ()), "processed": len(videos)}
    elif job.artifacts:
        body["video_url"] = urls[job.artifacts[0].name]
    body["execution"] = execution(job)
    body["stats"] = stats
    if job.warnings:
        body["warnings"] = list(job.warnings)
    return body


def _videos(job: Job, urls: Mapping[str, str]) -> list[Json]:
    """Request order; the number in a name is the still's position, also when others failed."""
    first = int(job.input.get("start_index") or 0) + 1
    named = ((f"video_{i}.mp4", still) for i, still in enumerate(job.input.get("images") or (), start=first))
    return [
        {"id": str(still["id"]), "video_url": urls[name], "filename": name} for name, still in named if name in urls
    ]


def word(job: Job) -> str:
    """The state in RunPod's words."""
    timed_out = job.error is not None and job.error.code == "deadline_exceeded"
    return "TIMED_OUT" if timed_out else _WORDS[job.status]


def status_reply(job: Job, result: Mapping[str, Json] | None) -> dict[str, Json]:
    """`GET /job/{id}`. `result` is the reply of the contract that created the job, once it succeeded."""
    body: dict[str, Json] = {"jobId": job.id, "status": word(job), "progress": percent(job.progress)}
    if result is not None:
        body["result"] = dict(result)
    if job.error is not None:
        body["error"] = job.error.message
    body["createdAt"] = when(job.created_at)
    if job.started_at is not None:
        body["startedAt"] = when(job.started_at)
    if job.finished_at is not None:
        body["completedAt"] = when(job.finished_at)
    return body


def error_reply(error: MediamillError, status: int) -> dict[str, Json]:
    """The contract's error envelope."""
    return error_envelope(error, status)


def webhook(job: Job, urls: Mapping[str, str]) -> dict[str, Json]:
    """The final reply; for a job that did not succeed its error envelope with the status as `code`."""
    return reply(job, urls) if job.status is Status.SUCCEEDED else failure(job)

"""The text-to-video contract: one blocking call, the clip as base64, FastAPI's own error shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from mediamill import catalog
from mediamill.catalog.ltx_video import LtxVideoRequest
from mediamill.errors import Detail, InvalidRequest, MediamillError
from mediamill.model import Artifact, Job, Json, Status

LIMIT_S = 1200.0
FAILED = "Video generation failed: "
_UNPROCESSABLE = 422
_FAILURES = (500, 504)


class TextToVideoRequest(LtxVideoRequest):
    """What to generate."""

    model: Literal["ltx-video"] = "ltx-video"
    """What makes the clip."""
    response_format: Literal["base64", "url"] = "base64"
    """base64: the clip itself in `video`; url: where it is stored."""
    webhook_url: str | None = None
    """Told once when the clip is there, or has failed."""


@dataclass(frozen=True)
class Asked:
    """A request taken apart: the catalog's entry and its input, and what is the contract's own."""

    model: str
    input: Mapping[str, Json]
    response_format: str
    webhook_url: str | None
    warnings: tuple[str, ...]


def request(raw: Mapping[str, Json]) -> Asked:
    """Raises InvalidRequest with one detail for each wrong field."""
    try:
        typed = TextToVideoRequest.model_validate(raw)
    except ValidationError as error:
        raise InvalidRequest.of(*catalog.details_of(error)) from error
    whole = typed.model_dump()
    own = {name: whole.pop(name) for name in ("model", "response_format", "webhook_url")}
    unknown = tuple(f"Unknown field {name!r} was ignored." for name in catalog.unknown_fields(type(typed), raw))
    return Asked(own["model"], whole, own["response_format"], own["webhook_url"], unknown)


def clip(job: Job) -> Artifact:
    """The job's video."""
    return next(a for a in job.artifacts if a.media_type.startswith("video/"))


def body(job: Job, video: str) -> dict[str, Json]:
    """The 200, `video` being base64 or a URL. The facts are those of the finished file."""
    facts = clip(job).facts
    found: dict[str, Json] = {
        "video": video,
        "format": "mp4",
        "num_frames": facts.frames,
        "fps": round(facts.fps) if facts.fps is not None else None,
        "width": facts.width_px,
        "height": facts.height_px,
        "prompt": job.input.get("prompt", ""),
    }
    if job.input.get("seed") is None and job.output and "seed" in job.output:
        found["seed"] = job.output["seed"]
    if job.warnings:
        found["warnings"] = list(job.warnings)
    return found


def reply(job: Job, urls: Mapping[str, str]) -> dict[str, Json]:
    """The reply with a URL in place of base64."""
    return body(job, urls[clip(job).name])


def webhook(job: Job, urls: Mapping[str, str]) -> dict[str, Json]:
    """The final reply with a URL in place of base64, and the job's id."""
    if job.status is Status.SUCCEEDED:
        return {**reply(job, urls), "jobId": job.id}
    reason = "Job was cancelled" if job.status is Status.CANCELLED else job.error.message if job.error else "unknown"
    return {"detail": FAILED + reason, "jobId": job.id}


def error_reply(error: MediamillError, status: int) -> dict[str, Json]:
    """FastAPI's shapes: a list of wrong fields with 422, else one sentence."""
    if status == _UNPROCESSABLE and error.code == "invalid_request":
        return {"detail": [_field_error(d) for d in error.details] or [_field_error(Detail("", error.message))]}
    tried = status in _FAILURES or error.code == "cancelled"
    found: dict[str, Json] = {"detail": FAILED + error.message if tried else error.message}
    if error.job_id is not None:
        found["jobId"] = error.job_id
    return found


def _field_error(detail: Detail) -> dict[str, Any]:
    missing = detail.message == "is required"
    where = [int(part) if part.isdigit() else part for part in detail.path.split(".") if part]
    return {
        "type": "missing" if missing else "value_error",
        "loc": ["body", *where],
        "msg": "Field required" if missing else detail.message,
    }

"""The text-to-video contract: one blocking call, the clip as base64, FastAPI's own error shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mediamill import catalog
from mediamill.errors import Detail, InvalidRequest, MediamillError
from mediamill.model import Artifact, Job, Json, Status

LIMIT_S = 1200.0
FAILED = "Video generation failed: "
_EDGE_CODES = frozenset(
    [
        "invalid_request",
        "unauthorized",
        "forbidden",
        "not_found",
        "conflict",
        "refused",
        "busy",
        "method_not_allowed",
        "unsupported_content_type",
        "too_large",
        "not_implemented",
    ]
)
"""Errors of the request, not of a generation."""
_UNPROCESSABLE = 422


class TextToVideoRequest(BaseModel):
    """What to generate."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    prompt: Annotated[
        str, Field(min_length=1, max_length=5000, description="Text description of the video to generate")
    ]
    negative_prompt: Annotated[str, Field(max_length=5000, description="What to avoid in the generation")] = ""
    num_frames: Annotated[int, Field(ge=1, le=257, description="Number of frames to generate")] = 24
    fps: Annotated[int, Field(ge=1, le=60, description="Frames per second for output video")] = 8
    width: Annotated[int, Field(ge=64, le=1920, multiple_of=2, description="Video width in pixels, even")] = 512
    height: Annotated[int, Field(ge=64, le=1920, multiple_of=2, description="Video height in pixels, even")] = 512
    num_inference_steps: Annotated[int, Field(ge=1, le=100, description="Number of denoising steps")] = 50
    guidance_scale: Annotated[float, Field(ge=0, le=20, description="How closely to follow the prompt")] = 7.5
    seed: Annotated[int | None, Field(ge=0, lt=2**53, description="Random seed for reproducibility")] = None
    response_format: Annotated[
        Literal["base64", "url"], Field(description="base64: the clip in `video`; url: where it is stored")
    ] = "base64"
    webhook_url: Annotated[str | None, Field(description="Told once when the clip is there, or has failed")] = None


@dataclass(frozen=True)
class Asked:
    """A request taken apart: the catalog's input, and what is the contract's own."""

    input: Mapping[str, Json]
    response_format: str
    webhook_url: str | None
    warnings: tuple[str, ...]


def request(raw: Mapping[str, Json]) -> Asked:
    """Raises InvalidRequest with one detail for each wrong field."""
    try:
        typed = TextToVideoRequest.model_validate(raw)
    except ValidationError as error:
        details = catalog.details_of(error)
        raise InvalidRequest("; ".join(f"{d.path}: {d.message}" for d in details), details=details) from error
    whole = typed.model_dump()
    own = {name: whole.pop(name) for name in ("response_format", "webhook_url")}
    unknown = tuple(f"Unknown field {name!r} was ignored." for name in catalog.unknown_fields(type(typed), raw))
    return Asked(whole, own["response_format"], own["webhook_url"], unknown)


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
    at_the_edge = error.code in _EDGE_CODES
    found: dict[str, Json] = {"detail": error.message if at_the_edge else FAILED + error.message}
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

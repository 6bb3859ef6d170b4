"""The native contract, `/v1`: the job's row as it is, snake_case, problem+json errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mediamill import catalog
from mediamill.contracts import percent, phrase, when
from mediamill.errors import Detail, InvalidRequest, MediamillError
from mediamill.model import Artifact, Job, Json

_OWN_INPUT_CHARS = 4096
"""Longer strings of an input are shortened in replies; references and prompts are below."""

_AROUND_INPUT = frozenset({"model", "webhook_url", "priority", "metadata"})


def _no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a whole number")  # noqa: TRY004 - pydantic reports ValueErrors
    return value


class JobRequest(BaseModel):
    """What `POST /v1/jobs` takes."""

    model_config = ConfigDict(extra="ignore")

    model: Annotated[str, Field(description="Catalog name of the model or operation.", examples=["fake"])]
    input: Annotated[dict[str, Any], Field(description="The model's own fields; see GET /v1/models.")] = {}
    webhook_url: Annotated[str | None, Field(description="Told once when the job has ended.")] = None
    priority: Annotated[int, BeforeValidator(_no_flag), Field(ge=-100, le=100, description="Higher goes first.")] = 0
    metadata: Annotated[
        dict[str, Any] | None, Field(description="Returned as it came; at most 16 KiB; filter lists by it.")
    ] = None


def request(raw: Mapping[str, Json]) -> tuple[JobRequest, tuple[str, ...]]:
    """The typed request and one warning for each unknown field. Raises InvalidRequest with a detail a field."""
    try:
        parsed = JobRequest.model_validate(raw)
    except ValidationError as error:
        raise InvalidRequest.of(*catalog.details_of(error)) from error
    return parsed, tuple(f"Unknown field {name!r} was ignored." for name in raw if name not in JobRequest.model_fields)


def under_input(error: InvalidRequest) -> InvalidRequest:
    """The same error with the paths of the model's own fields below `input`, where a native request has them."""
    details = [d if d.path in _AROUND_INPUT else Detail(f"input.{d.path}", d.message) for d in error.details]
    return type(error)(error.message, details=details)


def reply(job: Job, urls: Mapping[str, str]) -> dict[str, Json]:
    """The envelope. `position`, `eta_s` and `preview_url` only when known."""
    body: dict[str, Json] = {
        "id": job.id,
        "model": job.model,
        "status": job.status.value,
        "phase": job.phase.value if job.phase else None,
        "progress": percent(job.progress),
        "created_at": when(job.created_at),
        "started_at": when(job.started_at),
        "finished_at": when(job.finished_at),
        "input": _shortened(job.input),
        "artifacts": [_artifact(a, urls) for a in job.artifacts],
        "error": {"code": job.error.code, "message": job.error.message} if job.error else None,
        "attempt": job.attempt,
        "timings": dict(job.timings),
        "warnings": list(job.warnings),
    }
    sometimes = {
        "position": job.position,
        "eta_s": None if job.eta_s is None else math.ceil(job.eta_s),
        "preview_url": urls.get(job.preview or ""),
        "output": dict(job.output) if job.output is not None else None,
        "metadata": dict(job.metadata) if job.metadata is not None else None,
        "message": job.message,
        "batch_id": job.batch_id,
    }
    return body | {name: value for name, value in sometimes.items() if value is not None}


def webhook(job: Job, urls: Mapping[str, str]) -> dict[str, Json]:
    """What the caller's URL is told at the end: Standard Webhooks' payload around the envelope."""
    return {"type": f"job.{job.status.value}", "timestamp": when(job.finished_at), "data": reply(job, urls)}


def _artifact(artifact: Artifact, urls: Mapping[str, str]) -> dict[str, Json]:
    facts = asdict(artifact.facts)
    shown = {
        "width": facts["width_px"],
        "height": facts["height_px"],
        "duration_s": facts["duration_s"],
        "fps": facts["fps"],
        "frames": facts["frames"],
        "video_codec": facts["video_codec"],
        "audio_codec": facts["audio_codec"],
    }
    return {
        "name": artifact.name,
        "url": urls.get(artifact.name),
        "media_type": artifact.media_type,
        "size_bytes": artifact.size_bytes,
        "sha256": artifact.sha256,
        **{name: value for name, value in shown.items() if value is not None},
    }


def _shortened(value: Json) -> Json:
    """The input without kilobytes of base64 in every reply."""
    if isinstance(value, str) and len(value) > _OWN_INPUT_CHARS and not any(c.isspace() for c in value[:200]):
        return f"{value[:60]}... ({len(value)} characters)"
    if isinstance(value, Mapping):
        return {k: _shortened(v) for k, v in value.items()}
    return [_shortened(v) for v in value] if isinstance(value, list | tuple) else value


def error_reply(error: MediamillError, status: int) -> dict[str, Json]:
    """RFC 9457 problem details; `errors[].pointer` is a JSON pointer into the request."""
    body: dict[str, Json] = {
        "type": f"urn:mediamill:error:{error.code}",
        "title": phrase(status),
        "status": status,
        "detail": error.message,
        "code": error.code,
        "errors": [{"pointer": pointer(d.path), "detail": d.message} for d in error.details],
    }
    if error.job_id is not None:
        body["job_id"] = error.job_id
    return body


def pointer(path: str) -> str:
    """A dotted path as a JSON pointer."""
    return "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in path.split("."))

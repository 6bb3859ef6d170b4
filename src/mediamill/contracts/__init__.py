"""One file a public wire format: pure mappings, no web framework, no I/O.

Each has `reply(job, urls)`: its body for a job that succeeded; and `webhook(job, urls)`: what its webhook says at any end.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus

from mediamill.errors import MediamillError
from mediamill.model import Job, Json, Status

__all__ = ["error_envelope", "execution", "failure", "percent", "phrase", "waits_ms", "when"]

_PHRASES = {413: "Payload Too Large", 422: "Unprocessable Entity"}
"""Those that Python 3.13 renamed: what is on the wire does not depend on it."""
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


def percent(fraction: float) -> int:
    """0 to 100, whole; 100 only when all is done."""
    return min(100, max(0, int(fraction * 100 + 1e-9)))


def when(moment: datetime | None) -> str | None:
    """ISO 8601 UTC with milliseconds and Z; None stays None."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def phrase(status: int) -> str:
    """An HTTP status in words."""
    return _PHRASES.get(status) or HTTPStatus(status).phrase


def waits_ms(job: Job) -> dict[str, int]:
    """Whole milliseconds until the start, and from the start to the end; 0 for what did not happen."""
    started_at = job.started_at or job.finished_at or job.created_at
    finished_at = job.finished_at or started_at
    return {
        "delayTime": max(0, round((started_at - job.created_at).total_seconds() * 1000)),
        "executionTime": max(0, round((finished_at - started_at).total_seconds() * 1000)),
    }


def execution(job: Job) -> dict[str, Json]:
    """`execution` of the video processing envelope: from the request to the end."""
    duration_ms = sum(waits_ms(job).values())
    return {
        "startTime": when(job.created_at),
        "endTime": when(job.finished_at),
        "durationMs": duration_ms,
        "durationSeconds": duration_ms / 1000,
    }


def error_envelope(error: MediamillError, status: int) -> dict[str, Json]:
    """The status in words, one sentence, the wrong fields, the job where there is one."""
    body: dict[str, Json] = {"error": phrase(status), "message": error.message}
    if error.details:
        body["details"] = [{"path": d.path, "message": d.message} for d in error.details]
    if error.job_id is not None:
        body["jobId"] = error.job_id
    return body


def failure(job: Job) -> dict[str, Json]:
    """The webhook of a job that did not succeed: the error envelope, with the status as `code`."""
    code = "cancelled" if job.status is Status.CANCELLED else job.error.code if job.error else "internal"
    message = job.error.message if job.error else f"Job {job.id} was {job.status.value}."
    status = _STATUSES.get(code, 500)
    return {"code": status, "error": phrase(status), "message": message, "jobId": job.id}

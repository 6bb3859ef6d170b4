"""What creating routes answer: at once, or when the job has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from fastapi import Request
from starlette.responses import JSONResponse

from mediamill.api.deps import Deps
from mediamill.api.waiting import error_of, wait_or_timeout
from mediamill.model import Job, Json, Status

Reply = Callable[[Job, Mapping[str, str]], Mapping[str, Json]]
"""`reply(job, urls)`: a contract's body for a job that succeeded."""


async def urls_of(deps: Deps, job: Job) -> dict[str, str]:
    """URL by artifact name, and of the preview by its key; percent-encoded, as the caller gets it."""
    keys_by_name = {artifact.name: artifact.key for artifact in job.artifacts}
    if job.preview is not None:
        keys_by_name[job.preview] = job.preview
    return {name: await deps.storage.url(key) for name, key in keys_by_name.items()}


def as_created(job: Job) -> Job:
    """The job as its first reply showed it, so that a replay says the same."""
    return replace(
        job,
        status=Status.QUEUED,
        phase=None,
        progress=0.0,
        position=None,
        started_at=None,
        finished_at=None,
        artifacts=(),
        output=None,
        error=None,
        attempt=0,
        timings={},
        message=None,
        eta_s=None,
        preview=None,
    )


def accepted(job: Job, body: Mapping[str, Json], *, replayed: bool, status: int = 202) -> JSONResponse:
    """The answer of a route that does not wait: the contract's body, `Location`, and the mark of a replay."""
    headers = {"Location": f"/v1/jobs/{job.id}"} | replay_mark(replayed)
    return JSONResponse(dict(body), status, headers=headers)


def replay_mark(replayed: bool) -> dict[str, str]:
    """The header that says that this reply is an earlier one."""
    return {"Idempotency-Replayed": "true"} if replayed else {}


async def blocking(
    request: Request, deps: Deps, submitted: tuple[Job, bool], *, reply: Reply, limit_s: float, respond_async: bool
) -> JSONResponse:
    """Hold the connection until the job has ended and answer with the contract's reply.

    With `Prefer: respond-async` answers 202 at once. The job goes on when the caller leaves.

    Raises:
        DeadlineExceeded: not ended within `limit_s`. Busy: this process stops. Cancelled, or the job's own error.
        Each carries `job_id`.
    """
    job, replayed = submitted
    if respond_async:
        return accepted(job, {"jobId": job.id, "status": "queued"}, replayed=replayed)
    ended = await wait_or_timeout(deps, job, limit_s, request=request)
    if ended.status is not Status.SUCCEEDED:
        raise error_of(ended)
    ended = replace(ended, warnings=tuple(dict.fromkeys((*job.warnings, *ended.warnings))))
    body = dict(reply(ended, await urls_of(deps, ended)))
    return JSONResponse(body, headers=replay_mark(replayed))

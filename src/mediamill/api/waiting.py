"""Waiting for a job's end while a caller holds the connection, and the error it ended with."""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeVar

from fastapi import Request

from mediamill.api import edge
from mediamill.api.deps import Deps
from mediamill.errors import Busy, Cancelled, DeadlineExceeded, MediamillError, StoreUnavailable, every_class
from mediamill.model import Job, Status

MAX_WAIT_S = 60.0
"""Longest `?wait=`; proxies cut silent connections soon after."""
_AWAY_S = 0.5
_CANCEL_WAIT_S = 3.0
"""A running job stops within two seconds of a cancel."""

ErrorT = TypeVar("ErrorT", bound=MediamillError)


async def wait_or_timeout(deps: Deps, job: Job, limit_s: float, *, request: Request | None = None) -> Job:
    """The job once it has ended.

    Raises: DeadlineExceeded after `limit_s`, Busy when this process stops or the caller left; with `job_id`.
    """
    latest = await wait_for(deps, job, limit_s, request=request)
    if latest.status.ended:
        return latest
    if deps.stopping.is_set():
        raise with_job(Busy(f"This service is restarting; job {job.id} goes on.", delay_s=5), job.id)
    raise with_job(DeadlineExceeded(f"Job {job.id} did not end within {limit_s:g} s; it goes on."), job.id)


async def wait_for(deps: Deps, job: Job, limit_s: float, *, request: Request | None = None) -> Job:
    """The latest state: after its end, after `limit_s`, at shutdown, or when the caller has left."""
    if job.status.ended or limit_s <= 0:
        return job
    return await wait_for_id(deps, job.id, limit_s, request=request)


async def wait_for_id(deps: Deps, job_id: str, limit_s: float, *, request: Request | None = None) -> Job:
    """The same for a job of which nothing was read yet: waiting begins with a read. Raises NotFound."""
    waiting = asyncio.ensure_future(_ended(deps, job_id, limit_s))
    others: list[asyncio.Future[Any]] = [asyncio.ensure_future(deps.stopping.wait())]
    if request is not None:
        others.append(asyncio.ensure_future(_left(request)))
    try:
        await asyncio.wait([waiting, *others], return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else await deps.store.get(job_id)
    finally:
        for task in (waiting, *others):
            task.cancel()
        await asyncio.gather(waiting, *others, return_exceptions=True)


async def _ended(deps: Deps, job_id: str, limit_s: float) -> Job:
    """The job once it has ended or after `limit_s`; sits out a database that is away meanwhile."""
    give_up_at = time.monotonic() + limit_s
    while True:
        try:
            return await deps.store.wait(job_id, max(0.0, give_up_at - time.monotonic()))
        except StoreUnavailable as error:
            if time.monotonic() + _AWAY_S > give_up_at:
                raise with_job(error, job_id) from error
            await asyncio.sleep(_AWAY_S)


async def _left(request: Request) -> None:
    """Returns when the caller has closed the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def cancel_and_wait(deps: Deps, job_id: str) -> Job:
    """Ask for a job's end and wait a moment for it: how it then ended is what the caller is told.

    Raises: NotFound.
    """
    edge.note(job_id=job_id)
    return await wait_for(deps, await deps.store.cancel(job_id), _CANCEL_WAIT_S)


def error_of(job: Job) -> MediamillError:
    """The error a blocking call raises for a job that did not succeed, with its `job_id`."""
    if job.status is Status.CANCELLED:
        return with_job(Cancelled(f"Job {job.id} was cancelled."), job.id)
    code, message = (job.error.code, job.error.message) if job.error else ("internal", None)
    cls = next((c for c in every_class() if c.code == code), MediamillError)
    return with_job(cls(message), job.id)


def with_job(error: ErrorT, job_id: str) -> ErrorT:
    """The same error, naming the job it is about."""
    error.job_id = job_id
    return error

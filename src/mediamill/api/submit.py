"""What every creating route does: check, stage, queue; and what blocking routes do: wait, then answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import JSONResponse

from mediamill import catalog, keys
from mediamill.api import edge
from mediamill.api.auth import Caller
from mediamill.api.deps import Deps
from mediamill.catalog import Entry, InputRef
from mediamill.errors import (
    Busy,
    Cancelled,
    DeadlineExceeded,
    Detail,
    InvalidRequest,
    MediamillError,
    StoreUnavailable,
    TooMany,
    every_class,
)
from mediamill.inputs.references import check_url
from mediamill.jobs.store import Idempotency, Submission, new_id
from mediamill.model import Job, Json, Status

MAX_WAIT_S = 60.0
"""Longest `?wait=`; proxies cut silent connections soon after."""
PRIORITIES = range(-100, 101)
_METADATA_BYTES = 16 * 1024
_AWAY_S = 0.5
_CANCEL_WAIT_S = 3.0
"""A running job stops within two seconds of a cancel."""
_VALIDATE_OFF_LOOP_ABOVE = 200
"""Values in a request's lists above which validation leaves the event loop."""

ErrorT = TypeVar("ErrorT", bound=MediamillError)

Reply = Callable[[Job, Mapping[str, str]], Mapping[str, Json]]
"""`reply(job, urls)`: a contract's body for a job that succeeded."""


@dataclass(frozen=True)
class Wish:
    """What a caller asked for besides the input. A contract's route fills in what its wire format has."""

    webhook_url: str | None = None
    idempotency_key: str | None = None
    priority: int = 0
    metadata: Mapping[str, Json] | None = None
    warnings: Sequence[str] = ()
    """The contract's own sentences, put before those of the catalog entry."""


async def submit(
    deps: Deps, caller: Caller, *, entry: Entry, raw: Mapping[str, Json], contract: str, wish: Wish | None = None
) -> tuple[Job, bool]:
    """Validate, check, stage large values and queue a job. Nothing is written before everything is checked.

    Returns:
        The job with the warnings of its first reply, and whether it is an earlier one replayed by its key.

    Raises:
        InvalidRequest, TooLarge, Conflict (key used for another body), Busy (no room), TooMany (this caller has
        enough unfinished jobs), StorageError.
    """
    asked = await _checked(deps, entry, raw, contract, wish or Wish())
    idempotency = _idempotency(caller, asked)
    before = None if idempotency is None else await deps.store.made_by(idempotency)
    if before is not None:  # a repeat needs no room, no quota and no second copy of what it sent
        edge.note(job_id=before.id)
        return replace(before, warnings=asked.warnings), True
    submission = replace(await _prepared(deps, caller, asked), idempotency=idempotency)
    try:
        job, replayed = await deps.store.submit(submission)
    except BaseException:
        await unstage(deps, submission)
        raise
    if replayed:
        await unstage(deps, submission)
    edge.note(job_id=job.id)
    return replace(job, warnings=asked.warnings), replayed


async def prepare(
    deps: Deps, caller: Caller, *, entry: Entry, raw: Mapping[str, Json], contract: str, wish: Wish
) -> Submission:
    """Everything `submit` does before the row: for routes that queue several at once (`store.submit_batch`).

    `unstage` takes back what it stored when the submission is not used.
    """
    return await _prepared(deps, caller, await _checked(deps, entry, raw, contract, wish))


@dataclass(frozen=True)
class _Asked:
    """A request that is right in itself."""

    entry: Entry
    raw: Mapping[str, Json]
    contract: str
    wish: Wish
    request: Any
    """Typed, with defaults filled in."""
    refs: Sequence[InputRef]
    warnings: tuple[str, ...]
    """Of the first reply."""


async def _prepared(deps: Deps, caller: Caller, asked: _Asked) -> Submission:
    """Room and quota judged, large values staged, parts made."""
    entry, request, settings = asked.entry, asked.request, deps.settings
    await check_quota(deps, caller)
    await check_room(deps)
    job_id = new_id()
    replaced = await deps.inputs.stage(asked.refs, job_id)
    whole = catalog.with_values(request.model_dump(mode="json"), replaced)
    if replaced and entry.split:
        request = entry.request.model_validate(whole)  # so that the parts hold references too
    parts = entry.split(request, settings.split_above, settings.split_parts) if entry.split else ()
    return Submission(
        model=entry.name,
        input=whole,
        pool=catalog.pool_of(entry, settings),
        contract=asked.contract,
        job_id=job_id,
        webhook_url=asked.wish.webhook_url,
        priority=asked.wish.priority,
        metadata=asked.wish.metadata,
        warnings=asked.warnings,
        parts=parts,
        queued_timeout_s=settings.queued_timeout_s or entry.queued_timeout_s,
        run_timeout_s=settings.run_timeout_s or entry.run_timeout_s,
        caller=caller.id if settings.max_unfinished else None,
    )


async def _checked(deps: Deps, entry: Entry, raw: Mapping[str, Json], contract: str, wish: Wish) -> _Asked:
    """Everything about a request that needs no I/O. What surrounds the input is checked first."""
    if wish.webhook_url is not None:
        check_url(wish.webhook_url, "webhook_url", deps.guard)
    if wish.priority not in PRIORITIES:
        raise _wrong("priority", f"must be -100 to 100 (got {wish.priority})")
    if wish.metadata is not None:
        _check_metadata(wish.metadata)
    many = sum(len(v) for v in raw.values() if isinstance(v, list | dict)) > _VALIDATE_OFF_LOOP_ABOVE
    checked = await asyncio.to_thread(catalog.validate, entry, raw) if many else catalog.validate(entry, raw)
    request, warnings = checked
    here = entry.allow(request, deps.settings) or ()
    refs = list(catalog.input_refs(request))
    deps.inputs.check(refs)
    return _Asked(entry, raw, contract, wish, request, refs, (*wish.warnings, *warnings, *here))


def _check_metadata(metadata: Mapping[str, Json]) -> None:
    try:
        size_bytes = len(json.dumps(metadata, allow_nan=False).encode())
    except ValueError as error:
        raise _wrong("metadata", "must hold finite numbers only") from error
    if size_bytes > _METADATA_BYTES:
        raise _wrong("metadata", f"must be at most {_METADATA_BYTES} bytes as JSON (got {size_bytes})")


def _wrong(path: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{path}: {message}", details=[Detail(path, message)])


def _idempotency(caller: Caller, asked: _Asked) -> Idempotency | None:
    wish = asked.wish
    if wish.idempotency_key is None:
        return None
    body = [asked.contract, asked.entry.name, asked.raw, wish.webhook_url, wish.priority, wish.metadata]
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return Idempotency(caller=caller.id, key=wish.idempotency_key, fingerprint=hashlib.sha256(canonical).hexdigest())


async def check_quota(deps: Deps, caller: Caller, *, jobs: int = 1) -> None:
    """Raises TooMany when this many more jobs would be more than one caller may have unfinished.

    Calls at the same moment may pass together: the limit keeps a flood out, it is no exact count.
    """
    most = deps.settings.max_unfinished
    if most and await deps.store.unfinished(caller.id, cap=most) + jobs > most:
        raise TooMany(
            f"This API key may have {most} unfinished jobs at once; more are taken when some have ended.", delay_s=10
        )


async def check_room(deps: Deps, *, jobs: int = 1) -> None:
    """Raises Busy when the queue is full or the storage below its reserve, StorageUnavailable when it is away."""
    if jobs and not await deps.gauge.has_room(deps.store, jobs, deps.settings.max_queued):
        raise Busy(f"{deps.settings.max_queued} jobs wait already; new ones are taken when some have ended.")
    free_bytes = await deps.storage.free_bytes()
    if free_bytes is None:
        free_bytes = await asyncio.to_thread(_free_bytes, deps.settings.data_dir)
    if free_bytes < deps.settings.reserve_bytes:
        raise Busy(
            f"Less than {deps.settings.reserve_bytes} bytes of disk are free; new jobs are taken when there is room.",
            delay_s=60,
        )


def _free_bytes(folder: Path) -> int:
    """Room on the disk of a folder that may not exist yet."""
    there = next(f for f in (folder.absolute(), *folder.absolute().parents) if f.exists())
    return shutil.disk_usage(there).free


async def unstage(deps: Deps, submission: Submission) -> None:
    """Delete what `prepare` staged for a submission that became no job."""
    folder = keys.upload_folder(str(submission.job_id))
    for key in [key async for key, _ in deps.storage.list(folder)]:
        await deps.storage.delete(key)


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
    headers = {"Location": f"/v1/jobs/{job.id}"} | _replay_mark(replayed)
    return JSONResponse(dict(body), status, headers=headers)


def _replay_mark(replayed: bool) -> dict[str, str]:
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
    return JSONResponse(body, headers=_replay_mark(replayed))


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
    waiting = asyncio.ensure_future(_ended(deps, job, limit_s))
    others: list[asyncio.Future[Any]] = [asyncio.ensure_future(deps.stopping.wait())]
    if request is not None:
        others.append(asyncio.ensure_future(_left(request)))
    try:
        await asyncio.wait([waiting, *others], return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else await deps.store.get(job.id)
    finally:
        for task in (waiting, *others):
            task.cancel()
        await asyncio.gather(waiting, *others, return_exceptions=True)


async def _ended(deps: Deps, job: Job, limit_s: float) -> Job:
    """The job once it has ended or after `limit_s`; sits out a database that is away meanwhile."""
    give_up_at = time.monotonic() + limit_s
    while True:
        try:
            return await deps.store.wait(job.id, max(0.0, give_up_at - time.monotonic()))
        except StoreUnavailable as error:
            if time.monotonic() + _AWAY_S > give_up_at:
                raise with_job(error, job.id) from error
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

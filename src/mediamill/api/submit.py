"""What every creating route does: check, stage, queue."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mediamill import catalog, keys
from mediamill.api import edge
from mediamill.api.auth import Caller
from mediamill.api.deps import Deps
from mediamill.catalog import Entry, InputRef
from mediamill.errors import (
    Busy,
    Detail,
    InvalidRequest,
    TooMany,
)
from mediamill.inputs.guard import UrlGuard
from mediamill.inputs.references import check_url
from mediamill.jobs.store import Idempotency, Submission, new_id
from mediamill.model import Job, Json

PRIORITIES = range(-100, 101)
_METADATA_BYTES = 16 * 1024
_VALIDATE_OFF_LOOP_ABOVE = 200
"""Values in a request's lists above which validation leaves the event loop."""


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
    asked = await check(deps, entry=entry, raw=raw, contract=contract, wish=wish or Wish())
    idempotency = _idempotency(caller, asked)
    before = None if idempotency is None else await deps.store.made_by(idempotency)
    if before is not None:  # a repeat needs no room, no quota and no second copy of what it sent
        edge.note(job_id=before.id)
        return replace(before, warnings=asked.warnings), True
    submission = replace(await prepare(deps, caller, asked), idempotency=idempotency)
    try:
        job, replayed = await deps.store.submit(submission)
    except BaseException:
        await unstage(deps, submission)
        raise
    if replayed:
        await unstage(deps, submission)
    edge.note(job_id=job.id)
    return replace(job, warnings=asked.warnings), replayed


@dataclass(frozen=True)
class Asked:
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


async def prepare(deps: Deps, caller: Caller, asked: Asked) -> Submission:
    """Judge room and quota, stage large values, make the parts: all that `submit` does between `check` and the row.

    `unstage` takes back what was stored when the submission is not used.
    """
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


async def check(deps: Deps, *, entry: Entry, raw: Mapping[str, Json], contract: str, wish: Wish) -> Asked:
    """Everything about a request that needs no I/O.

    Raises: InvalidRequest naming all that is wrong, NotImplementedYet.
    """
    wrong = [*objections(wish.webhook_url, "webhook_url", deps.guard), *_wrong_around(wish)]
    many = sum(len(v) for v in raw.values() if isinstance(v, list | dict)) > _VALIDATE_OFF_LOOP_ABOVE
    try:
        checked = await asyncio.to_thread(catalog.validate, entry, raw) if many else catalog.validate(entry, raw)
    except InvalidRequest as error:
        raise several([*wrong, error, *wrong_inputs(deps, entry, raw, besides=error)]) from error
    request, warnings = checked
    refs = list(catalog.input_refs(request))
    try:
        deps.inputs.check(refs)
    except InvalidRequest as error:
        raise several([*wrong, error]) from error
    if wrong:
        raise several(wrong)
    here = entry.allow(request, deps.settings) or ()
    return Asked(entry, raw, contract, wish, request, refs, (*wish.warnings, *warnings, *here))


def wrong_inputs(deps: Deps, entry: Entry, raw: Json, *, besides: InvalidRequest) -> list[InvalidRequest]:
    """What is wrong with the inputs of a request that is wrong elsewhere, too, to be told beside that."""
    named = {detail.path for detail in besides.details}
    refs = (ref for ref in catalog.raw_refs(entry.request, raw) if ref.field not in named)
    try:
        deps.inputs.check(list(islice(refs, catalog.MAX_DETAILS)))
    except InvalidRequest as error:
        return [error]
    return []


def objections(webhook_url: Json, field: str, guard: UrlGuard) -> list[InvalidRequest]:
    """What is wrong with a webhook URL of a caller, if it is one, to be told beside everything else that is."""
    try:
        if isinstance(webhook_url, str):
            check_url(webhook_url, field, guard)
    except InvalidRequest as error:
        return [error]
    return []


def with_more(error: InvalidRequest, more: Sequence[InvalidRequest]) -> InvalidRequest:
    """An error whose sentence is documented word for word; what else is wrong is in the details alone."""
    details = [*error.details, *(detail for one in more for detail in one.details)]
    return InvalidRequest(error.message, details=details)


def several(errors: Sequence[InvalidRequest]) -> InvalidRequest:
    """One error that names everything wrong in them."""
    details = [detail for error in errors for detail in error.details]
    *before, last = (error.message for error in errors)
    return InvalidRequest("; ".join([*(message.rstrip(".") for message in before), last]), details=details)


def _wrong_around(wish: Wish) -> Iterator[InvalidRequest]:
    if wish.priority not in PRIORITIES:
        yield InvalidRequest.of(Detail("priority", f"must be -100 to 100 (got {wish.priority})"))
    try:
        size_bytes = len(json.dumps(wish.metadata, allow_nan=False).encode())
    except ValueError:
        yield InvalidRequest.of(Detail("metadata", "must hold finite numbers only"))
    else:
        if size_bytes > _METADATA_BYTES:
            message = f"must be at most {_METADATA_BYTES} bytes as JSON (got {size_bytes})"
            yield InvalidRequest.of(Detail("metadata", message))


def _idempotency(caller: Caller, asked: Asked) -> Idempotency | None:
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

"""How a job ends: one transaction for the row, its artifacts, the ticket, the webhook, the parent and the batch.

Locks are always taken in this order: parts (by id), parent, batch; each job's row before its ticket.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from mediamill import catalog
from mediamill.errors import MediamillError
from mediamill.jobs import queue
from mediamill.jobs.database import Connection, Record, load_queries
from mediamill.jobs.rows import (
    MAX_MESSAGE,
    artifact_of,
    artifact_values,
    clean_text,
    dump,
    dump_or_null,
    job_of,
)
from mediamill.model import Artifact, Job, JobError, Json, Status

_log = logging.getLogger(__name__)

SQL = load_queries("queries.sql")
LIVE = (Status.QUEUED, Status.RUNNING)

_OUTCOMES: Mapping[Status, queue.Outcome] = {
    Status.SUCCEEDED: "successful",
    Status.FAILED: "exception",
    Status.CANCELLED: "canceled",
}


@dataclass(frozen=True)
class Ending:
    """What a job ends as."""

    status: Status
    error: JobError | None = None
    artifacts: Sequence[Artifact] = ()
    output: Mapping[str, Json] | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()


def failed(code: str, message: str) -> Ending:
    """A failure that the store itself found."""
    return Ending(Status.FAILED, JobError(code, message))


CANCELLED = Ending(Status.CANCELLED, JobError("cancelled", "The job was cancelled."))


async def end(
    connection: Connection, job_id: UUID, ending: Ending, *, attempt: int, from_states: Collection[Status]
) -> Job | None:
    """End the job inside the caller's transaction; None when it is not in one of the states at this attempt."""
    error = ending.error
    row = await connection.fetchrow(
        SQL["end_job"],
        job_id,
        attempt,
        list(from_states),
        ending.status,
        dump_or_null(ending.output),
        None if error is None else clean_text(error.code, limit=100),
        None if error is None else clean_text(error.message, limit=MAX_MESSAGE),
        dump(ending.timings),
        dump(list(ending.warnings)),
    )
    if row is None:
        return None
    if ending.artifacts:
        await connection.executemany(SQL["insert_artifact"], artifact_values(job_id, ending.artifacts))
        await connection.execute(SQL["named"], job_id, [clean_text(a.key) for a in ending.artifacts])
    if row["queue_id"] is not None and row["parts"] == 0:
        await queue.drop(connection, row["queue_id"], _OUTCOMES[ending.status])
    job = job_of(row, ending.artifacts)
    if row["parent_id"] is not None:
        await _count_down_parent(connection, row["parent_id"])
        return job
    if job.webhook_url is not None:
        await connection.execute(SQL["insert_webhook"], job_id, None, job.webhook_url)
    if row["batch_id"] is not None:
        await _count_down_batch(connection, row["batch_id"])
    return job


def log_end(job: Job | None) -> None:
    """The one line of this state change; called after the commit."""
    if job is None:
        return
    code = None if job.error is None else job.error.code
    _log.info(
        "job ended", extra={"job_id": job.id, "attempt": job.attempt, "status": str(job.status), "error_code": code}
    )


async def artifacts_by_job(connection: Connection, job_ids: Collection[UUID]) -> dict[UUID, list[Artifact]]:
    """The artifacts of these jobs, in order."""
    found: dict[UUID, list[Artifact]] = {job_id: [] for job_id in job_ids}
    for row in await connection.fetch(SQL["get_artifacts"], list(job_ids)):
        found[row["job_id"]].append(artifact_of(row))
    return found


async def jobs_of(connection: Connection, rows: Sequence[Record]) -> list[Job]:
    """The envelopes of these rows, with their artifacts."""
    ended = [row["id"] for row in rows if row["status"] == Status.SUCCEEDED]
    artifacts = await artifacts_by_job(connection, ended) if ended else {}
    return [job_of(row, artifacts.get(row["id"], ())) for row in rows]


async def _count_down_batch(connection: Connection, batch_id: UUID) -> None:
    row = await connection.fetchrow(SQL["count_down_batch"], batch_id)
    if row is not None and row["pending"] == 0 and row["webhook_url"] is not None:
        await connection.execute(SQL["insert_webhook"], None, batch_id, row["webhook_url"])


async def _count_down_parent(connection: Connection, parent_id: UUID) -> None:
    row = await connection.fetchrow(SQL["count_down_parent"], parent_id)
    if row is None or row["pending"] > 0 or Status(row["status"]).ended:
        return
    parent = job_of(row)
    parts = await jobs_of(connection, await connection.fetch(SQL["get_parts"], [parent_id]))
    ending = _merged(parent, parts)
    log_end(await end(connection, parent_id, ending, attempt=parent.attempt, from_states=LIVE))


def _merged(parent: Job, parts: Sequence[Job]) -> Ending:
    """What a parent ends as, now that all of its parts have ended."""
    succeeded = [part for part in parts if part.status is Status.SUCCEEDED]
    if parent.cancel_requested and len(succeeded) < len(parts):
        return CANCELLED
    first_error = next((part.error for part in parts if part.error is not None), None)
    ending = _merge(parent, parts, first_error if len(succeeded) < len(parts) else None)
    if ending.status is Status.SUCCEEDED and not succeeded and first_error is not None:
        return Ending(Status.FAILED, first_error)
    return ending


def _merge(parent: Job, parts: Sequence[Job], first_error: JobError | None) -> Ending:
    try:
        entry = catalog.get(parent.model)
        if entry.merge is None:
            output = None
            if first_error is not None:
                return Ending(Status.FAILED, first_error)
        else:
            output = entry.merge(entry.request.model_validate(parent.input), parts)
    except MediamillError as error:
        return failed(error.code, error.message)
    except Exception:  # noqa: BLE001 - the job edge: a merge is a job's work; its fault ends the job, not the worker
        _log.exception("merging failed", extra={"job_id": parent.id})
        return Ending(Status.FAILED, first_error or JobError("internal", "The parts could not be put together."))
    artifacts = [artifact for part in parts for artifact in part.artifacts]
    warnings = [warning for part in parts for warning in part.warnings]
    return Ending(Status.SUCCEEDED, artifacts=artifacts, output=output, warnings=list(dict.fromkeys(warnings)))

"""What has to be done from time to time, by any process: deadlines, mending, tidying."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from uuid import UUID

from mediamill.jobs import queue
from mediamill.jobs.claim import queued_too_long
from mediamill.jobs.database import Connection, Database, Record
from mediamill.jobs.ending import CANCELLED, LIVE, SQL, Ending, end, failed, jobs_of, log_end
from mediamill.jobs.rows import Rules
from mediamill.model import Job, Status

_log = logging.getLogger(__name__)


async def fail_expired(database: Database, rules: Rules) -> int:
    """See `JobStore.fail_expired`."""
    async with database.connection() as connection:
        due = await connection.fetch(SQL["due"], rules.lease_s, _overrun_s(rules))
    touched = 0
    for found in due:

        async def work(connection: Connection, job_id: UUID = found["id"]) -> Job | None:
            row = await connection.fetchrow(SQL["lock_job"], job_id)
            ending = None if row is None else _due_end(row, rules)
            if ending is None:
                return None
            return await end(connection, job_id, ending, attempt=row["attempt"], from_states=LIVE)

        job = await database.retried(work)
        log_end(job)
        touched += job is not None
    return touched + await _reconcile(database, rules)


def _overrun_s(rules: Rules) -> float:
    """How far past its deadline a run may be before others end it: its worker does so itself, and then publishes."""
    return max(60.0, 2 * rules.lease_s)


def _due_end(row: Record, rules: Rules) -> Ending | None:
    """What a job that was found due ends as, judged again under its lock."""
    if row["status"] == Status.QUEUED:
        return queued_too_long() if row["queued_too_long"] else None
    if row["status"] != Status.RUNNING:
        return None
    if row["cancel_requested"] and (row["silent_s"] or 0.0) > rules.lease_s:
        return CANCELLED
    if row["ran_too_long"]:
        limit_s = row["run_timeout_s"]
        return failed("deadline_exceeded", f"The job ran for longer than {limit_s:g} s.")
    return None


async def _reconcile(database: Database, rules: Rules) -> int:
    """Give a ticket to each live job that has none and that nobody runs.

    Ticket and row change in one transaction, so what is put right here was done by hand, or by a restored backup.
    """
    async with database.connection() as connection:
        await connection.execute(SQL["mend_lanes"])
        rows = await connection.fetch(SQL["live_tickets"], rules.lease_s)
        tickets = {row["id"]: row["queue_id"] for row in rows}
        gone = await queue.missing(connection, [t for t in tickets.values() if t is not None])
    touched = 0
    for job_id, ticket in tickets.items():
        if ticket is not None and ticket not in gone:
            continue

        async def work(connection: Connection, job_id: UUID = job_id, ticket: int | None = ticket) -> bool:
            row = await connection.fetchrow(SQL["lock_job"], job_id)
            if row is None or Status(row["status"]).ended or row["queue_id"] != ticket:
                return False
            place = queue.Place(job_id, row["lane"], row["priority"])
            await connection.execute(SQL["set_ticket"], job_id, (await queue.put(connection, [place]))[0])
            return True

        if await database.retried(work):
            _log.warning("job had no ticket and got one", extra={"job_id": str(job_id)})
            touched += 1
    return touched


async def prune(database: Database, rules: Rules, *, ended_before_s: float | None, limit: int) -> list[Job]:
    """See `JobStore.prune`."""
    async with database.connection() as connection:
        await queue.prune_log(connection, older_than_s=rules.queue_log_s)
        await connection.execute(SQL["forget_keys"], rules.idempotency_s)
        await connection.execute(SQL["forget_batches"])
        await connection.execute(SQL["forget_workers"])
        if ended_before_s is None:
            return []
        rows = await connection.fetch(SQL["expired"], ended_before_s, limit)
        parts = await connection.fetch(SQL["get_parts"], [row["id"] for row in rows])
        return await jobs_of(connection, [*rows, *parts])


async def forget(database: Database, job_ids: Sequence[UUID]) -> int:
    """See `JobStore.forget`."""
    async with database.connection() as connection:
        said = await connection.execute(SQL["forget"], list(job_ids))
    return int(said.rsplit(" ", 1)[-1])

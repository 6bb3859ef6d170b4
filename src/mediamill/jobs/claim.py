"""How a job is taken: first the ticket, which commits alone; then the job's row, in a transaction of its own.

In one transaction the two would deadlock with beats and ends, which lock the row first and the ticket second. A crash
in between costs one lease, not an attempt.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from mediamill.jobs import queue
from mediamill.jobs.database import Connection, Database, Record
from mediamill.jobs.ending import CANCELLED, LIVE, SQL, Ending, end, failed, log_end
from mediamill.jobs.rows import Rules, Taken, clean_text, job_of, lane_of
from mediamill.model import Status

_log = logging.getLogger(__name__)

_PATIENT_S = 10 * 365 * 86400.0
"""A lease so long that nobody's has run out."""
_DEAD_TICKETS = 20
"""Tickets of jobs that need no run, looked through in one take."""
_LONGEST_SLEEP_S = 5.0
_LOOK_AGAIN_S = 0.1


@dataclass(frozen=True)
class _Lanes:
    names: list[str]
    uptime_s: float
    """Seconds since the database started."""


async def take(
    database: Database, rules: Rules, *, slot: UUID, worker: str, pools: Sequence[str], held: Collection[str]
) -> Taken | None:
    """See `JobStore.take`."""
    for _ in range(_DEAD_TICKETS):
        asked_at = time.monotonic()
        async with database.connection() as connection:
            ticket = await _claim(connection, database, rules, slot=slot, pools=pools, held=held)
        if ticket is None:
            return None
        starter = _Starter(rules, ticket, clean_text(worker, limit=200), asked_at)
        taken = await starter.start(database)
        if taken is not None:
            _log.info("job started", extra={"job_id": taken.job.id, "attempt": taken.attempt, "worker": worker})
            return taken
    return None


async def next_wake_s(database: Database, rules: Rules, pools: Sequence[str]) -> float:
    """See `JobStore.next_wake_s`."""
    async with database.connection() as connection:
        lanes = await _lanes(connection, pools)
        if await queue.has_work(connection, lanes.names):
            return _LOOK_AGAIN_S
        wakes = [_LONGEST_SLEEP_S]
        eta_s = await queue.eta_s(connection, lanes.names)
        if eta_s is not None:
            wakes.append(max(eta_s, 0.01))
        silent_s = await connection.fetchval(SQL["oldest_beat_s"], lanes.names)
        if silent_s is not None:
            patience_s = rules.lease_s - min(lanes.uptime_s, database.since_outage_s)
            wakes.append(max(rules.lease_s - silent_s, patience_s, _LOOK_AGAIN_S))
    return min(wakes)


async def _lanes(connection: Connection, pools: Sequence[str]) -> _Lanes:
    row = await connection.fetchrow(SQL["get_lanes"], list(pools))
    return _Lanes(row["lanes"], row["uptime_s"])


async def _claim(
    connection: Connection, database: Database, rules: Rules, *, slot: UUID, pools: Sequence[str], held: Collection[str]
) -> queue.Ticket | None:
    """The ticket of the best job for a slot that holds `held`; anybody's when that one is just being taken."""
    lanes = await _lanes(connection, pools)
    if not lanes.names:
        return None
    # After an outage everybody looks dead, and whoever reconnects first would take jobs that live: let them beat first.
    patient = min(lanes.uptime_s, database.since_outage_s) < rules.lease_s
    lease_s = _PATIENT_S if patient else rules.lease_s
    choices = [lanes.names]
    if held:
        held_lanes = [lane_of(pool, affinity) for pool in pools for affinity in sorted(held)]
        best = await connection.fetchval(SQL["choose_lane"], lanes.names, held_lanes, rules.affinity_wait_s, lease_s)
        if best is not None:
            choices.insert(0, [best])
    for choice in choices:
        ticket = await queue.take(connection, choice, slot=slot, lease_s=lease_s)
        if ticket is not None:
            return ticket
    return None


@dataclass(frozen=True)
class _Starter:
    """Turns a claimed ticket into a running job, or into the end of a job that needs no run."""

    rules: Rules
    ticket: queue.Ticket
    worker: str
    asked_at: float

    async def start(self, database: Database) -> Taken | None:
        """In one transaction; None: nothing to run on this ticket."""
        row = await database.fetchrow(SQL["start_queued"], self.ticket.job_id, self.ticket.id, self.worker)
        if row is None:
            row = await database.retried(self._start_otherwise)
        if row is None:
            return None
        return Taken(
            job=job_of(row),
            attempt=row["attempt"],
            run_deadline_s=row["run_timeout_s"],
            lease_until=self.asked_at + self.rules.lease_s,
            sealed=row["sealed"],
            elsewhere=row["elsewhere"],
        )

    async def _start_otherwise(self, connection: Connection) -> Record | None:
        """The job was not simply waiting: its worker was lost, or it is to end, or the ticket means nothing."""
        ticket = self.ticket
        row = await connection.fetchrow(SQL["lock_job"], ticket.job_id)
        if row is None or row["queue_id"] != ticket.id or Status(row["status"]).ended:
            await queue.drop(connection, ticket.id, "canceled")
            return None
        lost = row["status"] == Status.RUNNING
        if lost and row["silent_s"] < self.rules.lease_s:  # it beats; the ticket was stale by somebody's shorter lease
            return None
        ending = self._due_end(row, lost=lost)
        if ending is not None:
            job = await end(connection, ticket.job_id, ending, attempt=row["attempt"], from_states=LIVE)
            log_end(job)
            return None
        if not lost:  # it became startable between the two statements
            return await connection.fetchrow(SQL["start_queued"], ticket.job_id, ticket.id, self.worker)
        _log.warning("job lost its worker", extra={"job_id": str(ticket.job_id), "attempt": row["attempt"]})
        return await connection.fetchrow(SQL["start_again"], ticket.job_id, ticket.id, self.worker, row["attempt"])

    def _due_end(self, row: Record, *, lost: bool) -> Ending | None:
        if row["cancel_requested"]:
            return CANCELLED
        if not lost and row["queued_too_long"]:
            return queued_too_long()
        if lost and row["lost_workers"] + 1 >= self.rules.max_lost_workers:
            count = row["lost_workers"] + 1
            return failed("crashed", f"The job lost its worker {count} times; it is not tried again.")
        return None


def queued_too_long() -> Ending:
    """A job whose time in the queue is over."""
    return failed("deadline_exceeded", "The job waited in the queue for longer than its limit.")

"""How jobs are made: rows and tickets in one transaction, at most once for each idempotency key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from mediamill.errors import Conflict
from mediamill.jobs import queue
from mediamill.jobs.database import Connection, Record
from mediamill.jobs.ending import SQL
from mediamill.jobs.rows import Idempotency, Rules, Submission, clean_text, dump, dump_or_null, lane_of, new_id
from mediamill.model import Json

_MOST = 1_000_000
_INDEXABLE = 300
"""Characters."""


@dataclass(frozen=True)
class Lane:
    """A pool and what stays loaded in it."""

    name: str
    pool: str
    affinity: str


@dataclass(frozen=True)
class Plan:
    """One submission with its ids settled."""

    submission: Submission
    job_id: UUID
    part_ids: tuple[UUID, ...]
    index: int = 0
    batch_id: UUID | None = None

    @property
    def lane(self) -> Lane:
        """Where it waits."""
        affinity = self.submission.affinity or self.submission.model
        return Lane(lane_of(self.submission.pool, affinity), self.submission.pool, affinity)

    @property
    def priority(self) -> int:
        """As asked, within what the database's integers can hold."""
        return max(-_MOST, min(self.submission.priority, _MOST))

    @property
    def runs(self) -> tuple[UUID, ...]:
        """The jobs that get a ticket."""
        return self.part_ids or (self.job_id,)

    def rows(self, tickets: dict[UUID, int]) -> list[tuple[Any, ...]]:
        """The parameters of `insert_job`: the job, then its parts."""
        s = self.submission
        job = self._row(self.job_id, s.input, tickets, part=self.index, own=s, parent_id=None)
        parts = [
            self._row(part_id, part_input, tickets, part=number, own=None, parent_id=self.job_id)
            for number, (part_id, part_input) in enumerate(zip(self.part_ids, s.parts, strict=True))
        ]
        return [job, *parts]

    def _row(
        self,
        job_id: UUID,
        values: Json,
        tickets: dict[UUID, int],
        *,
        part: int,
        own: Submission | None,
        parent_id: UUID | None,
    ) -> tuple[Any, ...]:
        s = self.submission
        return (
            job_id,
            clean_text(s.model),
            s.contract,
            s.pool,
            self.lane.name,
            self.priority,
            dump(values),
            None if own is None else dump_or_null(own.metadata),
            dump([] if own is None else list(own.warnings)),
            None if own is None or own.webhook_url is None else clean_text(own.webhook_url),
            s.queued_timeout_s,
            s.run_timeout_s,
            s.sealed,
            tickets.get(job_id),
            parent_id,
            part,
            0 if parent_id is not None else len(self.part_ids),
            self.batch_id if parent_id is None else None,
            s.caller if parent_id is None else None,
        )


def plan(submission: Submission, *, index: int = 0, batch_id: UUID | None = None) -> Plan:
    """Give the job and its parts their ids."""
    job_id = UUID(submission.job_id or new_id())
    return Plan(submission, job_id, tuple(UUID(new_id()) for _ in submission.parts), index, batch_id)


async def claim_key(
    connection: Connection, rules: Rules, key: Idempotency, *, job_id: UUID | None, batch_id: UUID | None
) -> Record | None:
    """None: the key is ours now. Else the row of whoever had it before. Raises Conflict for another fingerprint."""
    ours = await connection.fetchval(
        SQL["claim_key"],
        _indexable(key.caller),
        _indexable(key.key),
        clean_text(key.fingerprint),
        job_id,
        batch_id,
        rules.idempotency_s,
    )
    if ours:
        return None
    row = await made_before(connection, rules, key)
    if row is None:
        raise _used_before(key)
    return row


async def made_before(connection: Connection, rules: Rules, key: Idempotency) -> Record | None:
    """What the key made within its day, if anything. Raises Conflict for another fingerprint."""
    row = await connection.fetchrow(SQL["get_key"], _indexable(key.caller), _indexable(key.key), rules.idempotency_s)
    if row is not None and row["fingerprint"] != clean_text(key.fingerprint):
        raise _used_before(key)
    return row


def made_id(found: UUID | None, key: Idempotency) -> UUID:
    """What the key made. Raises Conflict when it was a batch then and is a job now, or the reverse."""
    if found is None:
        raise _used_before(key)
    return found


def _used_before(key: Idempotency) -> Conflict:
    return Conflict(f"The idempotency key {key.key[:80]!r} was used before with another request.")


def _indexable(text: str) -> str:
    """As it is, or its digest where it is too long for an index entry."""
    kept = clean_text(text)
    return kept if len(kept) <= _INDEXABLE else "sha256:" + hashlib.sha256(kept.encode()).hexdigest()


async def insert(connection: Connection, plans: Sequence[Plan], *, new_lanes: Sequence[Lane]) -> list[Record]:
    """Write the tickets and the rows. Returns the row when it is a single one, else nothing."""
    if new_lanes:
        lanes = sorted(new_lanes, key=lambda lane: lane.name)  # in one order, or two callers could deadlock
        columns = [[getattr(lane, name) for lane in lanes] for name in ("name", "pool", "affinity")]
        await connection.execute(SQL["insert_lanes"], *columns)
    places = [queue.Place(job_id, p.lane.name, p.priority) for p in plans for job_id in p.runs]
    ticket_ids = await queue.put(connection, places)
    tickets = {place.job_id: ticket for place, ticket in zip(places, ticket_ids, strict=True)}
    rows = [row for p in plans for row in p.rows(tickets)]
    if len(rows) == 1:
        return [await connection.fetchrow(SQL["insert_job"], *rows[0])]
    await connection.executemany(SQL["insert_job"], rows)
    return []

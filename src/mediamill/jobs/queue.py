"""The queue's tickets: the only file that knows PgQueuer, and only its `Queries`.

A ticket says who may run a job; the job's row says what is true. Nothing here is fenced: every caller changes the job's
row under its fence first, in the same transaction (`take` alone commits by itself, see `JobStore.take`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from typing import Literal
from uuid import UUID

from pgqueuer.adapters.persistence.qb import (
    DBSettings,
    QueryBuilderEnvironment,
    QueryQueueBuilder,
    QuerySchedulerBuilder,
)
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job as _Row
from pgqueuer.queries import EntrypointExecutionParameter, Queries
from pgqueuer.types import JobId, QueueEntrypoint, QueueManagerId

from mediamill.jobs.database import Connection

Outcome = Literal["successful", "exception", "canceled"]
"""What the queue's log says of a ticket that is gone."""

# Every name written out: its defaults are read from the environment, which is config.py's alone.
_SETTINGS = DBSettings(
    prefix="",
    db_schema=None,
    channel="ch_pgqueuer",
    function="fn_pgqueuer_changed",
    statistics_table="pgqueuer_statistics",
    queue_status_type="pgqueuer_status",
    queue_table="pgqueuer",
    queue_table_log="pgqueuer_log",
    trigger="tg_pgqueuer_changed",
    schedules_table="pgqueuer_schedules",
    durability="durable",
    widen_id=True,
)
_ENVIRONMENT = QueryBuilderEnvironment(_SETTINGS)
_QUEUE = QueryQueueBuilder(_SETTINGS)
_SCHEDULER = QuerySchedulerBuilder(_SETTINGS)
_PRUNED_AT_ONCE = 20_000
_NO_LIMIT = EntrypointExecutionParameter(0)


@dataclass(frozen=True)
class Ticket:
    """A claimed place in the queue."""

    id: int
    job_id: UUID


def _queries(connection: Connection) -> Queries:
    """Cheap: one for each use, on the transaction's own connection."""
    return Queries(AsyncpgDriver(connection), _ENVIRONMENT, _QUEUE, _SCHEDULER)


def _row(ticket_id: int) -> _Row:
    """What `log_jobs` and `retry_job` want: they read its id and nothing else."""
    construct: Callable[..., _Row] = _Row.model_construct
    return construct(id=JobId(ticket_id))


async def install(connection: Connection) -> None:
    """Create the queue's tables, or bring them up to the installed PgQueuer. Call it under the migration lock."""
    queries, ours = _queries(connection), version("pgqueuer")
    if not await queries.schema_is_installed():
        async with connection.transaction():
            await queries.install()
            await connection.execute(f"COMMENT ON TABLE {_SETTINGS.queue_table} IS 'pgqueuer {ours}'")
        return
    found = await connection.fetchval("SELECT obj_description($1::text::regclass)", _SETTINGS.queue_table)
    if found is None or _numbers(found) < _numbers(ours):  # an older release never converges a newer schema
        await queries.upgrade()
        await connection.execute(f"COMMENT ON TABLE {_SETTINGS.queue_table} IS 'pgqueuer {ours}'")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.rsplit(" ", 1)[-1].split(".") if part.isdigit())


@dataclass(frozen=True)
class Place:
    """Where a job waits: jobs of a higher priority first, then in order of coming."""

    job_id: UUID
    lane: str
    priority: int


async def put(connection: Connection, places: Sequence[Place]) -> list[int]:
    """One ticket for each place, in order; returns their ids."""
    lanes = [place.lane for place in places]
    payloads: list[bytes | None] = [place.job_id.bytes for place in places]
    ids = await _queries(connection).enqueue(lanes, payloads, [place.priority for place in places])
    return [int(i) for i in ids]


async def take(connection: Connection, lanes: Sequence[str], *, slot: UUID, lease_s: float) -> Ticket | None:
    """Claim the first ticket of these lanes: a waiting one, or one whose lease of `lease_s` seconds ran out.

    None does not mean that there is nothing: another taker may have held the rows for a moment. Ask `has_work`.
    """
    rows = await _queries(connection).dequeue(
        1,
        {QueueEntrypoint(lane): _NO_LIMIT for lane in lanes},
        QueueManagerId(slot),
        None,
        timedelta(seconds=lease_s),
    )
    return next((Ticket(int(row.id), UUID(bytes=row.payload or bytes(16))) for row in rows), None)


def renewing(statement: str) -> str:
    """The same statement, which must return `queue_id` and locks the job's row: it renews that ticket's lease, too.

    As PgQueuer's `update_heartbeat`, which would be a round trip of its own, within a transaction that is two more.
    """
    return (
        f"WITH mine AS ({statement}), renewed AS ("  # noqa: S608 - constants
        f"UPDATE {_SETTINGS.queue_table} AS ticket SET heartbeat = now() FROM mine WHERE ticket.id = mine.queue_id"
        ") SELECT * FROM mine"
    )


async def drop(connection: Connection, ticket_id: int, outcome: Outcome) -> None:
    """The ticket has served. One that is gone already is no error."""
    await _queries(connection).log_jobs([(_row(ticket_id), outcome, None)])


async def release(connection: Connection, ticket_id: int, *, delay_s: float) -> None:
    """Back into the queue at its old place, not before `delay_s` seconds. Wakes nobody: the caller notifies."""
    await _queries(connection).retry_job(_row(ticket_id), timedelta(seconds=delay_s), None)


async def has_work(connection: Connection, lanes: Sequence[str]) -> bool:
    """Whether any ticket of these lanes waits to be taken now."""
    return await _queries(connection).eligible_queued_work([QueueEntrypoint(lane) for lane in lanes]) > 0


async def eta_s(connection: Connection, lanes: Sequence[str]) -> float | None:
    """Seconds until the next deferred ticket of these lanes may be taken."""
    eta = await _queries(connection).next_deferred_eta([QueueEntrypoint(lane) for lane in lanes])
    return None if eta is None else eta.total_seconds()


async def missing(connection: Connection, ticket_ids: Sequence[int]) -> set[int]:
    """Those of the ids that are no ticket."""
    rows = await connection.fetch(
        f"SELECT unnest($1::bigint[]) AS id EXCEPT SELECT id FROM {_SETTINGS.queue_table}",  # noqa: S608 - a constant
        ticket_ids,
    )
    return {int(row["id"]) for row in rows}


async def prune_log(connection: Connection, *, older_than_s: float) -> int:
    """Delete old rows of the queue's log and statistics, which nothing else ever does; returns how many.

    At most 20,000 of each in one call.
    """
    count = 0
    for table in (_SETTINGS.queue_table_log, _SETTINGS.statistics_table):
        said = await connection.execute(
            f"DELETE FROM {table} WHERE ctid = ANY(ARRAY("  # noqa: S608 - a constant
            f"SELECT ctid FROM {table} WHERE created < now() - make_interval(secs => $1) LIMIT $2))",
            older_than_s,
            _PRUNED_AT_ONCE,
        )
        count += int(said.rsplit(" ", 1)[-1])
    return count

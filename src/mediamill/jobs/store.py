"""The job store: every change of a job's state goes through here.

What a worker writes carries the attempt it was given, and changes nothing once another attempt began.
All methods raise StoreUnavailable (retryable) while the database is away, full or read-only.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, Unpack
from uuid import UUID

from mediamill.errors import Conflict, Detail, InvalidRequest, NotFound
from mediamill.jobs import claim, making, queue, schema, upkeep
from mediamill.jobs.database import Connection, Database, Limits, Record, UniqueViolation
from mediamill.jobs.ending import CANCELLED, LIVE, SQL, Ending, end, failed, jobs_of, log_end
from mediamill.jobs.events import Events
from mediamill.jobs.rows import (
    MAX_MESSAGE,
    Batch,
    Beat,
    Idempotency,
    Page,
    Rules,
    Submission,
    Taken,
    Told,
    WorkerSeen,
    clean_text,
    dump,
    dump_or_null,
    job_of,
    new_id,
    parse_id,
)
from mediamill.model import Artifact, Job, JobError, Json, Status

__all__ = ["Batch", "Beat", "Idempotency", "JobStore", "Page", "Rules", "Submission", "Taken", "WorkerSeen", "new_id"]

_POSITION_CAP = 1000
_PAGE_CAP = 200
_REREAD_S = 5.0
"""A waiting reader looks again this often, in case a notification was lost."""
_CRASH_DELAY_CAP_S = 60.0
_BEAT = queue.renewing(SQL["beat"])

# `JobStore.list` hides the builtin inside the class
Jobs: TypeAlias = list[Job]
Workers: TypeAlias = list[WorkerSeen]


class JobStore:
    """Jobs in PostgreSQL. Made by `JobStore.open`; whoever opens it closes it (`async with` does)."""

    def __init__(self, database: Database, rules: Rules | None = None) -> None:
        """Use `open`, which also sees to the schema."""
        self.database = database
        self.rules = rules or Rules()
        self.events = Events(database)
        self._known_lanes: set[str] = set()

    @classmethod
    async def open(
        cls, dsn: str, rules: Rules | None = None, *, limits: Limits | None = None, application: str = "mediamill"
    ) -> JobStore:
        """Connect and bring the schema up to this release.

        Raises: SchemaMismatch; StoreUnavailable.
        """
        store = cls(Database(dsn, limits=limits, application=application), rules)
        await schema.migrate(store.database)
        return store

    async def close(self) -> None:
        """Stop listening and give back every connection."""
        await self.events.close()
        await self.database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # making

    async def submit(self, submission: Submission) -> tuple[Job, bool]:
        """Make a job with its parts and tickets, in one transaction.

        Returns: the job, and whether an earlier call with the same idempotency key had made it.
        Raises: Conflict: the key was used with another fingerprint, or the id exists.
        """
        plan = making.plan(submission)

        async def work(connection: Connection) -> tuple[Job, bool]:
            if submission.idempotency is not None:
                before = await making.claim_key(
                    connection, self.rules, submission.idempotency, job_id=plan.job_id, batch_id=None
                )
                if before is not None:
                    return await self._get(connection, _made_before(before["job_id"], submission.idempotency)), True
            rows = await making.insert(connection, [plan], new_lanes=self._new_lanes([plan]))
            return job_of(rows[0]) if rows else await self._get(connection, plan.job_id), False

        job, replayed = await self._make(work)
        self._known_lanes.add(plan.lane.name)
        return job, replayed

    async def submit_batch(
        self,
        submissions: Sequence[Submission],
        *,
        webhook_url: str | None = None,
        metadata: Mapping[str, Json] | None = None,
        idempotency: Idempotency | None = None,
    ) -> tuple[str, Jobs]:
        """Make several jobs at once, in order; `webhook_url` is told when the last of them ended.

        Raises: Conflict as `submit`.
        """
        batch_id = UUID(new_id())
        plans = [making.plan(s, index=i, batch_id=batch_id) for i, s in enumerate(submissions)]

        async def work(connection: Connection) -> UUID:
            if idempotency is not None:
                before = await making.claim_key(connection, self.rules, idempotency, job_id=None, batch_id=batch_id)
                if before is not None:
                    return _made_before(before["batch_id"], idempotency)
            contract = submissions[0].contract if submissions else "native"
            url = None if webhook_url is None else clean_text(webhook_url)
            await connection.execute(
                SQL["insert_batch"], batch_id, contract, url, dump_or_null(metadata), len(submissions)
            )
            if plans:
                await making.insert(connection, plans, new_lanes=self._new_lanes(plans))
            return batch_id

        made = await self.batch(str(await self._make(work)))
        self._known_lanes.update(p.lane.name for p in plans)
        return made.id, list(made.jobs)

    async def _make(self, work: Callable[[Connection], Awaitable[Any]]) -> Any:
        try:
            return await self.database.retried(work)
        except UniqueViolation as error:
            raise Conflict("A job of this id exists already.") from error

    def _new_lanes(self, plans: Sequence[making.Plan]) -> Sequence[making.Lane]:
        lanes = {p.lane.name: p.lane for p in plans}
        return [lane for name, lane in lanes.items() if name not in self._known_lanes]

    # reading

    async def get(self, job_id: str, *, position: bool = False) -> Job:
        """The job as it is now. Raises NotFound.

        `position`: also count the jobs of its pool before it while it waits (0: it is next; None above 1000).
        """
        async with self.database.connection() as connection:
            uuid = parse_id(job_id)
            job = await self._get(connection, uuid)
            if not position or job.status is not Status.QUEUED:
                return job
            ahead = await connection.fetchval(SQL["count_ahead"], uuid, _POSITION_CAP + 1)
        return job if ahead is None else _with_position(job, ahead)

    async def batch(self, batch_id: str) -> Batch:
        """A batch and its jobs, in order. Raises NotFound."""
        uuid = parse_id(batch_id, what="batch")
        async with self.database.connection() as connection:
            row = await connection.fetchrow(SQL["get_batch"], uuid)
            if row is None:
                raise NotFound(f"There is no batch {batch_id!r}.")
            jobs = await jobs_of(connection, await connection.fetch(SQL["get_batch_jobs"], uuid))
        return _batch_of(row, jobs)

    async def parts(self, job_id: str) -> Jobs:
        """The parts of a job, in order; none when it was not split."""
        async with self.database.connection() as connection:
            return await jobs_of(connection, await connection.fetch(SQL["get_parts"], [parse_id(job_id)]))

    async def list(
        self,
        *,
        status: Status | Collection[Status] | None = None,
        model: str | None = None,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        metadata: Mapping[str, Json] | None = None,
    ) -> Page:
        """A page of at most `limit` (1 to 200) jobs, no parts, in the order of their making.

        `after` is the `next_cursor` of the page before. `metadata`: only jobs whose metadata contain these values.
        Raises: InvalidRequest for a cursor that is none of ours.
        """
        limit = max(1, min(limit, _PAGE_CAP))
        statuses = [status] if isinstance(status, Status) else status
        filters: list[tuple[str, object]] = [
            ("j.status = ANY({}::text[])", None if statuses is None else [str(s) for s in statuses]),
            ("j.model = {}", None if model is None else clean_text(model)),
            ("j.created_at > {}", created_after),
            ("j.created_at < {}", created_before),
            ("j.metadata @> {}::jsonb", None if metadata is None else dump(metadata)),
            ("j.id > {}" if order == "asc" else "j.id < {}", None if after is None else _cursor_id(after)),
        ]
        used = [(text, value) for text, value in filters if value is not None]
        conditions = "".join(f" AND {text.format(f'${n}')}" for n, (text, _) in enumerate(used, start=1))
        tail = f" ORDER BY j.id {'ASC' if order == 'asc' else 'DESC'} LIMIT {limit + 1}"
        async with self.database.connection() as connection:
            rows = await connection.fetch(SQL["list_jobs"] + conditions + tail, *(value for _, value in used))
            jobs = await jobs_of(connection, rows[:limit])
        return Page(tuple(jobs), _cursor(jobs[-1].id) if len(rows) > limit else None)

    async def wait(self, job_id: str, timeout_s: float) -> Job:
        """The job once it has ended, or as it is after `timeout_s` seconds. Raises NotFound."""
        give_up_at = time.monotonic() + timeout_s
        async with self.events.job(str(parse_id(job_id))) as changed:
            while True:
                job = await self.get(job_id)
                left_s = give_up_at - time.monotonic()
                if job.status.ended or left_s <= 0:
                    return job
                await changed.wait(min(left_s, _REREAD_S))

    async def made_by(self, key: Idempotency) -> Job | None:
        """The job that an earlier call with this key made, so that a repeat asks for nothing.

        Raises: Conflict as `submit`.
        """
        async with self.database.connection() as connection:
            row = await making.made_before(connection, self.rules, key)
            return None if row is None else await self._get(connection, _made_before(row["job_id"], key))

    async def batch_made_by(self, key: Idempotency) -> Batch | None:
        """The same for `submit_batch`."""
        async with self.database.connection() as connection:
            row = await making.made_before(connection, self.rules, key)
        return None if row is None else await self.batch(str(_made_before(row["batch_id"], key)))

    async def unfinished(self, caller: str, *, cap: int) -> int:
        """How many jobs that were submitted as this caller's have not ended; counting stops at `cap`."""
        async with self.database.connection() as connection:
            return int(await connection.fetchval(SQL["count_unfinished"], caller, cap))

    async def queue_depth(self, *, cap: int) -> int:
        """How many jobs wait; counting stops at `cap`."""
        async with self.database.connection() as connection:
            return int(await connection.fetchval(SQL["count_queued"], cap))

    # running

    async def take(self, *, slot: UUID, worker: str, pools: Sequence[str], held: Collection[str] = ()) -> Taken | None:
        """Start the next job of these pools, or one whose worker was lost; None: nothing now, see `next_wake_s`.

        A higher priority goes first; then what nobody served for too long; then what is in `held`; then order of
        coming. Do not cancel a call under way: the job it claimed would wait for one lease.

        `slot` is one for each place in which a job runs; `held` are the affinities loaded in it.
        """
        return await claim.take(self.database, self.rules, slot=slot, worker=worker, pools=pools, held=held)

    async def next_wake_s(self, pools: Sequence[str]) -> float:
        """How long a slot that got nothing may sleep, seconds, unless `events.work` wakes it."""
        return await claim.next_wake_s(self.database, self.rules, pools)

    async def beat(self, job_id: str, attempt: int, **told: Unpack[Told]) -> Beat:
        """Renew the lease and write what is told. See Beat for what the answer is worth."""
        asked_at = time.monotonic()
        said = (message := told.get("message")) and clean_text(message, limit=MAX_MESSAGE)
        values = (told.get("progress"), told.get("phase"), said, told.get("eta_s"), told.get("preview"))
        row = await self.database.fetchrow(_BEAT, parse_id(job_id), attempt, *values)
        lease_until = asked_at + self.rules.lease_s
        return Beat(row is not None, row is not None and row["cancel_requested"], asked_at, lease_until)

    async def owned(self, job_id: str, attempt: int) -> Beat:
        """The fence, asked before anything is published; true in a condition while it holds. Renews the lease."""
        return await self.beat(job_id, attempt)

    async def succeed(
        self,
        job_id: str,
        attempt: int,
        *,
        artifacts: Sequence[Artifact],
        output: Mapping[str, Json] | None,
        timings: Mapping[str, float],
        warnings: Sequence[str] = (),
    ) -> bool:
        """End the job with its files, whose bytes are stored. Safe to repeat after a lost answer.

        Returns: False when the job is another attempt's by now: discard what was made. A late call is accepted when
        nobody took the job meanwhile.
        """
        ending = Ending(Status.SUCCEEDED, artifacts=artifacts, output=output, timings=timings, warnings=list(warnings))
        return await self._finish(job_id, attempt, ending)

    async def fail(self, job_id: str, attempt: int, error: JobError, *, timings: Mapping[str, float]) -> bool:
        """End the job as failed. Returns as `succeed`."""
        return await self._finish(job_id, attempt, Ending(Status.FAILED, error, timings=timings))

    async def cancelled(self, job_id: str, attempt: int, *, timings: Mapping[str, float]) -> bool:
        """End the job as cancelled. Returns as `succeed`."""
        return await self._finish(job_id, attempt, Ending(Status.CANCELLED, CANCELLED.error, timings=timings))

    async def _finish(self, job_id: str, attempt: int, ending: Ending) -> bool:
        uuid = parse_id(job_id)

        async def work(connection: Connection) -> Job | None:
            return await end(connection, uuid, ending, attempt=attempt, from_states=(Status.RUNNING,))

        ended = await self.database.retried(work)
        log_end(ended)
        return ended is not None or await self._is(job_id, attempt, {ending.status})

    async def _is(self, job_id: str, attempt: int, states: Collection[Status]) -> bool:
        """Whether the row says what an earlier try of ours would have written: its answer was lost."""
        try:
            job = await self.get(job_id)
        except NotFound:
            return False
        return job.attempt == attempt and job.status in states

    async def hand_back(
        self,
        job_id: str,
        attempt: int,
        *,
        delay_s: float = 0.0,
        charge: Literal["free", "crash"] = "free",
        error: JobError | None = None,
    ) -> bool:
        """Put a running job back into the queue, at its old place, not before `delay_s` seconds.

        A "free" one costs the job nothing. A "crash" counts: each makes the delay grow, and a job that crashed too
        often fails, with `error` when given. A job that was asked to stop ends as cancelled instead.
        Returns: as `succeed`.
        """
        crashed = charge == "crash"

        async def work(connection: Connection) -> bool | None:
            row = await connection.fetchrow(SQL["lock_job"], parse_id(job_id))
            if row is None or row["status"] != Status.RUNNING or row["attempt"] != attempt:
                return None
            ending = self._end_instead(row, error, crashed=crashed)
            if ending is not None:
                log_end(await end(connection, row["id"], ending, attempt=attempt, from_states=(Status.RUNNING,)))
                return True
            wait_s = max(delay_s, self._crash_delay_s(row["crashes"]) if crashed else 0.0)
            back = await connection.fetchrow(SQL["hand_back"], row["id"], attempt, int(crashed), wait_s)
            if back["queue_id"] is not None:
                await queue.release(connection, back["queue_id"], delay_s=wait_s)
            return True

        done = await self.database.retried(work)
        return done is not None or await self._is(
            job_id, attempt, {Status.QUEUED, Status.CANCELLED, Status.FAILED} if crashed else {Status.QUEUED}
        )

    def _end_instead(self, row: Record, error: JobError | None, *, crashed: bool) -> Ending | None:
        if row["cancel_requested"]:
            return CANCELLED
        crashes = row["crashes"] + 1
        if not crashed or crashes < self.rules.max_crashes:
            return None
        if error is not None:
            return Ending(Status.FAILED, error)
        return failed("crashed", f"The process that did the work died {crashes} times.")

    def _crash_delay_s(self, crashes_before: int) -> float:
        return min(_CRASH_DELAY_CAP_S, self.rules.crash_delay_s * 4.0 ** min(crashes_before, 10))

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to stop: a waiting one ends at once, a running one at its worker's next look, an ended one not.

        Raises: NotFound.
        """
        uuid = parse_id(job_id)

        async def work(connection: Connection) -> Job:
            parts = await connection.fetch(SQL["lock_parts"], uuid)  # parts before their parent, always
            row = await connection.fetchrow(SQL["lock_job"], uuid)
            if row is None:
                raise NotFound(f"There is no job {job_id!r}.")
            await connection.execute(SQL["request_cancel"], uuid)
            for one in parts or [row]:
                await self._cancel_one(connection, one)
            return await self._get(connection, uuid)

        return await self.database.retried(work)

    async def _cancel_one(self, connection: Connection, row: Record) -> None:
        if row["status"] == Status.QUEUED or (row["silent_s"] or 0.0) > self.rules.lease_s:
            if row["parts"] == 0:
                log_end(await end(connection, row["id"], CANCELLED, attempt=row["attempt"], from_states=LIVE))
        else:
            await connection.execute(SQL["request_cancel"], row["id"])

    async def _get(self, connection: Connection, job_id: UUID) -> Job:
        jobs = await jobs_of(connection, await connection.fetch(SQL["get_job"], job_id))
        if not jobs:
            raise NotFound(f"There is no job {str(job_id)!r}.")
        return jobs[0]

    # upkeep

    async def fail_expired(self) -> int:
        """End what is past its deadline and mend what lost its ticket; returns how many jobs were touched."""
        return await upkeep.fail_expired(self.database, self.rules)

    async def prune(self, *, ended_before_s: float | None, limit: int = 100) -> Jobs:
        """Tidy up, and list ended jobs (with their parts) that are older than `ended_before_s` seconds.

        The jobs stay until `forget`: delete their bytes first, so that a crash in between loses track of nothing.
        None lists nothing.
        """
        return await upkeep.prune(self.database, self.rules, ended_before_s=ended_before_s, limit=limit)

    async def named_by_others(self, storage_keys: Collection[str], *, than: Collection[str]) -> set[str]:
        """Those of the keys that jobs other `than` these have as results, too: bytes that must stay."""
        async with self.database.connection() as connection:
            own = [parse_id(i) for i in than]
            return {row["key"] for row in await connection.fetch(SQL["named_by_others"], list(storage_keys), own)}

    async def forget(self, job_ids: Collection[str]) -> int:
        """Delete ended jobs with their parts; returns how many (parts not counted)."""
        return await upkeep.forget(self.database, [parse_id(i) for i in job_ids])

    async def secret(self, name: str) -> bytes:
        """32 random bytes under a name, made once and the same for every process."""
        async with self.database.connection() as connection:
            await connection.execute(SQL["make_setting"], name, secrets.token_bytes(32))
            return bytes(await connection.fetchval(SQL["get_setting"], name))

    async def announce(
        self, worker: str, *, pool: str, slots: int, version: str, facts: Mapping[str, Json] | None = None
    ) -> None:
        """Say that a worker process is there; again every few seconds."""
        async with self.database.connection() as connection:
            await connection.execute(SQL["announce"], worker, pool, slots, version, dump(facts or {}))

    async def depart(self, worker: str) -> None:
        """Say that a worker process is gone."""
        async with self.database.connection() as connection:
            await connection.execute(SQL["depart"], worker)

    async def workers(self, *, within_s: float) -> Workers:
        """The worker processes heard of in the last `within_s` seconds."""
        return await upkeep.workers(self.database, within_s=within_s)


def _made_before(made_id: UUID | None, key: Idempotency) -> UUID:
    """What an idempotency key made. Raises Conflict when it was a batch then and is a job now, or the reverse."""
    if made_id is None:
        raise Conflict(f"The idempotency key {key.key[:80]!r} was used before with another request.")
    return made_id


def _with_position(job: Job, ahead: int) -> Job:
    return replace(job, position=ahead if ahead <= _POSITION_CAP else None)


def _batch_of(row: Record, jobs: Sequence[Job]) -> Batch:
    return Batch(
        id=str(row["id"]),
        jobs=tuple(jobs),
        created_at=row["created_at"],
        webhook_url=row["webhook_url"],
        contract=row["contract"],
        metadata=None if row["metadata"] is None else json.loads(row["metadata"]),
    )


def _cursor(job_id: str) -> str:
    return base64.urlsafe_b64encode(UUID(job_id).bytes).decode().rstrip("=")


def _cursor_id(text: str) -> UUID:
    try:
        return UUID(bytes=base64.b64decode(text + "==", altchars=b"-_", validate=True))
    except ValueError as error:
        detail = Detail("after", "must be the `next_cursor` of an earlier page")
        raise InvalidRequest(f"after: {text[:80]!r} is not a cursor of this list.", details=(detail,)) from error

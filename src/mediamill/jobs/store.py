"""The job store: every change of a job's state goes through here.

What a worker writes carries the attempt it was given, and changes nothing once another attempt began.
All methods raise StoreUnavailable (retryable) while the database is away, full or read-only.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Unpack
from uuid import UUID

from mediamill import keys
from mediamill.errors import Conflict, NotFound
from mediamill.jobs import claim, making, queue, schema, upkeep
from mediamill.jobs.database import Connection, Database, Limits, Record, UniqueViolation
from mediamill.jobs.ending import CANCELLED, LIVE, SQL, Ending, end, failed, log_end
from mediamill.jobs.reading import JobReader, Jobs
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

_CRASH_DELAY_CAP_S = 60.0
_DELETION_LOOK_S = 0.1
_BEAT = queue.renewing(SQL["beat"])


class JobStore(JobReader):
    """Jobs in PostgreSQL: all that changes them, and by its base all that reads them.

    Made by `JobStore.open`; whoever opens it closes it (`async with` does).
    """

    def __init__(self, database: Database, rules: Rules | None = None) -> None:
        """Use `open`, which also sees to the schema."""
        super().__init__(database, rules)
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
                    return await self._get(connection, making.made_id(before["job_id"], submission.idempotency)), True
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
                    return making.made_id(before["batch_id"], idempotency)
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
        return await self._beat(parse_id(job_id), attempt, told)

    async def publishing(self, job_id: str, attempt: int, artifacts: Sequence[Artifact]) -> Beat:
        """The fence, asked before anything is published; true in a condition while it holds. Renews the lease.

        Notes the artifacts' keys, so that what comes to lie there is found again should the job end without it, and
        waits while somebody deletes what another job left there.
        """
        uuid = parse_id(job_id)
        beat = await self._beat(uuid, attempt, {}, publishing=artifacts)
        shared = [clean_text(a.key) for a in artifacts if not keys.is_own(a.key)]
        while beat.owned and shared:
            async with self.database.connection() as connection:
                if not await connection.fetchval(SQL["being_deleted"], uuid, shared):
                    break
            await asyncio.sleep(_DELETION_LOOK_S)
        return beat

    async def _beat(self, job_id: UUID, attempt: int, told: Told, *, publishing: Sequence[Artifact] = ()) -> Beat:
        asked_at = time.monotonic()
        said = (message := told.get("message")) and clean_text(message, limit=MAX_MESSAGE)
        values = (told.get("progress"), told.get("phase"), said, told.get("eta_s"), told.get("preview"))
        about = (job_id, attempt, *values)
        if publishing:
            made = ([clean_text(a.key) for a in publishing], [a.sha256 for a in publishing])
            row = await self.database.retried(lambda connection: _beat_and_note(connection, about, made))
        else:
            row = await self.database.fetchrow(_BEAT, *about)
        lease_until = asked_at + self.rules.lease_s
        return Beat(row is not None, row is not None and row["cancel_requested"], asked_at, lease_until)

    async def keep_elsewhere(self, job_id: str, attempt: int, handle: str) -> bool:
        """Note that somebody else's machines have the work, for the next attempt. False when this one is stale."""
        async with self.database.connection() as connection:
            return bool(await connection.fetchval(SQL["keep_elsewhere"], parse_id(job_id), attempt, handle))

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

    # upkeep

    async def fail_expired(self) -> int:
        """End what is past its deadline and mend what lost its ticket; returns how many jobs were touched."""
        return await upkeep.fail_expired(self.database, self.rules)

    async def left_elsewhere(self, *, limit: int = 8) -> dict[str, str]:
        """Handles by job id: work that may still go on on somebody else's machines though its job has ended here."""
        async with self.database.connection() as connection:
            rows = await connection.fetch(SQL["left_elsewhere"], limit)
        return {str(row["id"]): row["elsewhere"] for row in rows}

    async def ended_elsewhere(self, job_id: str, handle: str) -> None:
        """It does not go on any more."""
        async with self.database.connection() as connection:
            await connection.execute(SQL["ended_elsewhere"], parse_id(job_id), handle)

    async def prune(self, *, ended_before_s: float | None, limit: int = 100) -> Jobs:
        """Tidy up, and list ended jobs (with their parts) that are older than `ended_before_s` seconds.

        The jobs stay until `forget`: delete their bytes first, so that a crash in between loses track of nothing.
        None lists nothing.
        """
        return await upkeep.prune(self.database, self.rules, ended_before_s=ended_before_s, limit=limit)

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


async def _beat_and_note(connection: Connection, about: Sequence[object], made: Sequence[object]) -> Record | None:
    row = await connection.fetchrow(_BEAT, *about)
    if row is not None:
        await connection.execute(SQL["note_publication"], about[0], *made)
    return row

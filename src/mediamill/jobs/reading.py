"""What is true about jobs: every read. Nothing here changes a row."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Literal, Self, TypeAlias
from uuid import UUID

from mediamill.errors import NotFound
from mediamill.jobs import making
from mediamill.jobs.database import Connection, Database
from mediamill.jobs.ending import SQL, jobs_of
from mediamill.jobs.events import Events
from mediamill.jobs.rows import (
    Batch,
    Idempotency,
    Page,
    Rules,
    WorkerSeen,
    batch_of,
    clean_text,
    cursor,
    cursor_id,
    dump,
    parse_id,
)
from mediamill.model import Job, Json, Status

_POSITION_CAP = 1000
_PAGE_CAP = 200
_REREAD_S = 5.0
"""A waiting reader looks again this often, in case a notification was lost."""

# `JobReader.list` hides the builtin inside the class
Jobs: TypeAlias = list[Job]
Workers: TypeAlias = list[WorkerSeen]


class JobReader:
    """The reading half of `JobStore`. All methods raise StoreUnavailable while the database is away."""

    def __init__(self, database: Database, rules: Rules | None = None) -> None:
        """Whoever makes it closes it, and with it the database."""
        self.database = database
        self.rules = rules or Rules()
        self.events = Events(database)

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
        return batch_of(row, jobs)

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
            ("j.id > {}" if order == "asc" else "j.id < {}", None if after is None else cursor_id(after)),
        ]
        used = [(text, value) for text, value in filters if value is not None]
        conditions = "".join(f" AND {text.format(f'${n}')}" for n, (text, _) in enumerate(used, start=1))
        tail = f" ORDER BY j.id {'ASC' if order == 'asc' else 'DESC'} LIMIT {limit + 1}"
        async with self.database.connection() as connection:
            rows = await connection.fetch(SQL["list_jobs"] + conditions + tail, *(value for _, value in used))
            jobs = await jobs_of(connection, rows[:limit])
        return Page(tuple(jobs), cursor(jobs[-1].id) if len(rows) > limit else None)

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
            return None if row is None else await self._get(connection, making.made_id(row["job_id"], key))

    async def batch_made_by(self, key: Idempotency) -> Batch | None:
        """The same for `submit_batch`."""
        async with self.database.connection() as connection:
            row = await making.made_before(connection, self.rules, key)
        return None if row is None else await self.batch(str(making.made_id(row["batch_id"], key)))

    async def unfinished(self, caller: str, *, cap: int) -> int:
        """How many jobs that were submitted as this caller's have not ended; counting stops at `cap`."""
        async with self.database.connection() as connection:
            return int(await connection.fetchval(SQL["count_unfinished"], caller, cap))

    async def queue_depth(self, *, cap: int) -> int:
        """How many jobs wait; counting stops at `cap`."""
        async with self.database.connection() as connection:
            return int(await connection.fetchval(SQL["count_queued"], cap))

    async def workers(self, *, within_s: float) -> Workers:
        """The worker processes heard of in the last `within_s` seconds."""
        async with self.database.connection() as connection:
            rows = await connection.fetch(SQL["get_workers"], within_s)
        return [WorkerSeen(**{**row, "facts": json.loads(row["facts"])}) for row in rows]

    async def _get(self, connection: Connection, job_id: UUID) -> Job:
        jobs = await jobs_of(connection, await connection.fetch(SQL["get_job"], job_id))
        if not jobs:
            raise NotFound(f"There is no job {str(job_id)!r}.")
        return jobs[0]


def _with_position(job: Job, ahead: int) -> Job:
    return replace(job, position=ahead if ahead <= _POSITION_CAP else None)

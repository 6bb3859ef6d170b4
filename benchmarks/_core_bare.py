"""What the job core is measured beside: PgQueuer by itself, one statement by itself, and a bare FastAPI around those.

Run as a program it is that bare web application: `python _core_bare.py FD DSN`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import uvicorn
from fastapi import FastAPI, Request
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import EntrypointExecutionParameter, Queries
from pgqueuer.types import QueueEntrypoint, QueueManagerId

CONNECTIONS = 8
INPUT = {"kind": "image", "width": 16, "height": 16, "duration_s": 1.0, "fps": 24.0, "seed": 0, "work_s": 0.0}
_LANE = "noop"
_LANES = {QueueEntrypoint(_LANE): EntrypointExecutionParameter(0)}
_LEASE = timedelta(seconds=30)
_INSERT = "INSERT INTO plain (id, input) VALUES ($1, $2) RETURNING id, status, input, created_at"
_SELECT = "SELECT id, status, input, created_at FROM plain WHERE id = $1"


class BareQueue:
    """PgQueuer's own calls, as its documentation shows them, and nothing around them."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._queries = Queries(AsyncpgDriver(connection))
        self._slot = QueueManagerId(uuid4())

    @classmethod
    async def open(cls, dsn: str) -> BareQueue:
        """On a connection of its own; makes the tables when there are none."""
        queue = cls(await asyncpg.connect(dsn))
        if not await queue._queries.schema_is_installed():
            await queue._queries.install()
        return queue

    async def close(self) -> None:
        await self._connection.close()

    async def put(self, count: int, *, lane: str = _LANE) -> None:
        """In one statement. Only jobs of the default lane are taken."""
        payloads: list[bytes | None] = [uuid4().bytes for _ in range(count)]
        await self._queries.enqueue([lane] * count, payloads, [0] * count)

    async def take(self) -> Job | None:
        return next(iter(await self._queries.dequeue(1, _LANES, self._slot, None, _LEASE)), None)

    async def done(self, job: Job) -> None:
        await self._queries.log_jobs([(job, "successful", None)])

    async def drain(self) -> int:
        """Take and finish until nothing is left; returns how many."""
        count = 0
        while (job := await self.take()) is not None:
            await self.done(job)
            count += 1
        return count

    async def serve(self, taken_at: asyncio.Queue[float]) -> None:
        """Take jobs as they come, woken by the queue's notification, and say when; until cancelled."""
        woken = asyncio.Event()
        await self._connection.add_listener("ch_pgqueuer", lambda *_: woken.set())
        while True:
            job = await self.take()
            if job is None:
                await woken.wait()
                woken.clear()
                continue
            now_s = time.time()
            await self.done(job)
            taken_at.put_nowait(now_s)


class PlainTable:
    """One row a job and a pool of connections: the floor of any store."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, dsn: str) -> PlainTable:
        pool = await asyncpg.create_pool(dsn, min_size=0, max_size=CONNECTIONS)
        await pool.execute(
            "CREATE TABLE IF NOT EXISTS plain (id uuid PRIMARY KEY, status text NOT NULL DEFAULT 'queued', "
            "input jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT clock_timestamp())"
        )
        return cls(pool)

    async def close(self) -> None:
        await self._pool.close()

    async def insert(self, values: dict[str, Any]) -> Any:
        """One row, one statement, one commit."""
        return await self._pool.fetchrow(_INSERT, uuid4(), json.dumps(values))

    async def select(self, row_id: UUID) -> Any:
        return await self._pool.fetchrow(_SELECT, row_id)


def application(table: PlainTable) -> FastAPI:
    """The least that a FastAPI user writes for the same two calls."""
    app = FastAPI()

    @app.post("/jobs", status_code=202)
    async def create(request: Request) -> dict[str, Any]:
        return _answer(await table.insert(await request.json()))

    @app.get("/jobs/{row_id}")
    async def one(row_id: UUID) -> dict[str, Any]:
        return _answer(await table.select(row_id))

    return app


def _answer(row: Any) -> dict[str, Any]:
    return {
        "id": str(row["id"]),
        "status": row["status"],
        "input": json.loads(row["input"]),
        "created_at": row["created_at"].isoformat(),
    }


async def main() -> None:
    """Serve on the listening socket FD until killed."""
    table = await PlainTable.open(sys.argv[2])
    config = uvicorn.Config(application(table), log_config=None, access_log=False, lifespan="off")
    await uvicorn.Server(config).serve(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    asyncio.run(main())

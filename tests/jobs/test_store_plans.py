"""What is asked for every job must not read the whole queue, not even while the planner takes the table for empty."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from mediamill.jobs import queue
from mediamill.jobs.database import Connection
from mediamill.jobs.ending import SQL
from mediamill.jobs.store import JobStore, Submission

QUEUED = 1500
PAGES = 40
"""Of 8 KiB; a walk through the whole queue reads more."""

Statement = tuple[str, tuple[Any, ...]]


def place_in_queue(job_id: UUID) -> Statement:
    return SQL["count_ahead"], (job_id, 100)


def status(job_id: UUID) -> Statement:
    return SQL["get_jobs"], ([job_id],)


def next_lane(_job_id: UUID) -> Statement:
    return SQL["choose_lane"], (["cpu/fake"], ["cpu/fake"], 30.0, 12.0)


def next_ticket(_job_id: UUID) -> Statement:
    query = queue._QUEUE.build_dequeue_query(
        batch_size=1,
        entrypoints=["cpu/fake"],
        concurrency_limits=[0],
        queue_manager_id=uuid4(),
        global_concurrency_limit=None,
        heartbeat_timeout=timedelta(seconds=12),
    )
    return query.sql, tuple(query.args)


@pytest.mark.parametrize("analysed", [False, True])
async def test_a_long_queue_is_not_read_through(store: JobStore, analysed: bool) -> None:
    async with store.database.connection() as connection:
        await connection.execute("VACUUM job, pgqueuer")  # an earlier test's rows count as pages, too
        _, jobs = await store.submit_batch([Submission("fake", {"kind": "image"}, "cpu")] * QUEUED)
        if analysed:
            await connection.execute("ANALYZE job")
        pages = await connection.fetchval("SELECT pg_relation_size('job') / 8192")
        assert pages > PAGES
        asked: list[Callable[[UUID], Statement]] = [place_in_queue, status, next_lane, next_ticket]
        for ask in asked:
            text, values = ask(UUID(jobs[-1].id))
            transaction = connection.transaction()
            await transaction.start()
            await reads_little(connection, text, *values)
            await transaction.rollback()


@pytest.mark.parametrize("analysed", [False, True])
async def test_a_start_and_a_beat_find_their_row_and_ticket_by_key(store: JobStore, analysed: bool) -> None:
    async with store.database.connection() as connection:
        await connection.execute("VACUUM job, pgqueuer")
        _, jobs = await store.submit_batch([Submission("fake", {"kind": "image"}, "cpu")] * QUEUED)
        if analysed:
            await connection.execute("ANALYZE job, pgqueuer")
        job_id = UUID(jobs[-1].id)
        ticket = await connection.fetchval("SELECT queue_id FROM job WHERE id = $1", job_id)
        heartbeat = "SELECT heartbeat FROM pgqueuer WHERE id = $1"
        before = await connection.fetchval(heartbeat, ticket)
        await reads_little(connection, SQL["start_queued"], job_id, ticket, "a worker")
        await reads_little(connection, queue.renewing(SQL["beat"]), job_id, 1, 0.5, None, None, None, None)
        assert await connection.fetchval("SELECT progress FROM job WHERE id = $1", job_id) == 0.5
        assert await connection.fetchval(heartbeat, ticket) > before


async def reads_little(connection: Connection, text: str, *values: Any) -> None:
    told = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", *values))
    plan = told[0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < PAGES, told

"""What is asked for every job must not read the whole queue, not even while the planner takes the table for empty."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from mediamill.jobs import queue
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


def left_elsewhere(_job_id: UUID) -> Statement:
    return SQL["left_elsewhere"], (8,)


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
        asked: list[Callable[[UUID], Statement]] = [place_in_queue, status, next_lane, next_ticket, left_elsewhere]
        for ask in asked:
            text, values = ask(UUID(jobs[-1].id))
            transaction = connection.transaction()
            await transaction.start()
            told = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", *values))
            await transaction.rollback()
            plan = told[0]["Plan"]
            assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < PAGES, (ask.__name__, told)


_INSERT = """
    INSERT INTO job (id, model, contract, pool, lane, input, queued_timeout_s, run_timeout_s, queue_deadline_at, status, queue_id)
    SELECT gen_random_uuid(), 'fake', 'native', $3, $3, '{}', 1, 1, now(), $2, nextval('pgqueuer_id_seq') FROM generate_series(1, $1::int)
"""


async def test_jobs_that_began_are_not_read_through_again_and_again(store: JobStore) -> None:
    """Their index entries stay until a vacuum, or until a walk in the index's order clears them away.

    A planner that expects a few rows gathers them all, and clears nothing. Here its statistics are of a table in which
    most jobs waited.
    """
    async with store.database.connection() as connection:
        await connection.execute(_INSERT, 1000, "succeeded", "cpu")
        await connection.execute(_INSERT, 5000, "queued", "gpu")
        await connection.execute("VACUUM ANALYZE job")
        await connection.execute("DELETE FROM job")
        await connection.execute("VACUUM FULL job")
        await connection.execute(_INSERT, QUEUED, "queued", "gpu")
        await connection.execute("UPDATE job SET status = 'running'")
        await connection.execute(_INSERT, 200, "queued", "gpu")
        last = await connection.fetchval("SELECT id FROM job WHERE status = 'queued' ORDER BY queue_id DESC LIMIT 1")
        for _ in range(2):
            text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {SQL['count_ahead']}"
            told = json.loads(await connection.fetchval(text, last, 1001))
        assert told[0]["Plan"]["Shared Hit Blocks"] < PAGES, told

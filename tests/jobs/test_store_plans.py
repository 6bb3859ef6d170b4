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
    return SQL["get_job"], (job_id,)


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


ASKED: list[Callable[[UUID], Statement]] = [place_in_queue, status, next_lane, next_ticket, left_elsewhere]


@pytest.mark.parametrize("analysed", [False, True])
async def test_a_long_queue_is_not_read_through(store: JobStore, analysed: bool) -> None:
    async with store.database.connection() as connection:
        await connection.execute("VACUUM job, pgqueuer")  # an earlier test's rows count as pages, too
        _, jobs = await store.submit_batch([Submission("fake", {"kind": "image"}, "cpu")] * QUEUED)
        if analysed:
            await connection.execute("ANALYZE job")
        pages = await connection.fetchval("SELECT pg_relation_size('job') / 8192")
        assert pages > PAGES
        for ask in ASKED:
            text, values = ask(UUID(jobs[-1].id))
            transaction = connection.transaction()
            await transaction.start()
            await reads_little(connection, text, *values)
            await transaction.rollback()


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


async def test_a_plan_that_was_kept_since_the_queue_was_empty_does_not_read_it_through(store: JobStore) -> None:
    asked = {ask.__name__: ask(uuid4())[0] for ask in ASKED}
    connection = await store.database.connect()
    try:
        await connection.execute("VACUUM job, pgqueuer")
        for name, text in asked.items():
            await connection.execute(f"PREPARE {name} AS {text}")
            for _ in range(10):  # after five times PostgreSQL may keep a plan
                await connection.execute(executing(name, uuid4()))
        _, jobs = await store.submit_batch([Submission("fake", {"kind": "image"}, "cpu")] * QUEUED)
        for name in asked:
            transaction = connection.transaction()
            await transaction.start()
            await reads_little(connection, executing(name, UUID(jobs[-1].id)))
            await transaction.rollback()
    finally:
        await connection.close()


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
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < PAGES, json.dumps(told)


def executing(name: str, job_id: UUID) -> str:
    """The call of a prepared statement, which takes no parameters of its own."""
    values = next(ask(job_id)[1] for ask in ASKED if ask.__name__ == name)
    return f"EXECUTE {name} ({', '.join(literal(value) for value in values)})"


def literal(value: object) -> str:
    if isinstance(value, list):
        return f"ARRAY[{', '.join(literal(item) for item in value)}]"
    return "NULL" if value is None else str(value) if isinstance(value, (int, float)) else f"'{value}'"

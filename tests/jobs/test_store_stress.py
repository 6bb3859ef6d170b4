"""Takers, beats, ends and cancels at once, with a lease so short that it runs out all the time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from uuid import UUID, uuid4

import asyncpg

from mediamill.jobs import queue
from mediamill.jobs.store import JobStore, Rules, Submission
from mediamill.model import Status
from tests.store_steps import opened, sql, submission, tickets, try_take

LEASE_S = 0.05
JOBS = 42


async def slot(store: JobStore, ended: Counter[str], seed: int) -> None:
    """A worker that is often too slow for its lease, sometimes crashes, and believes only what it is told."""
    dice = random.Random(seed)
    own = uuid4()
    while (await store.queue_depth(cap=1)) or await sql(store, "SELECT count(*) FROM job WHERE status = 'running'"):
        taken = await try_take(store, slot=own, held=["a"] if dice.random() < 0.5 else [])
        if taken is None:
            await asyncio.sleep(0.01)
            continue
        for step in range(dice.randrange(3)):
            await asyncio.sleep(dice.random() * LEASE_S)
            await store.beat(taken.job.id, taken.attempt, progress=step / 3)
        if dice.random() < 0.1:
            await asyncio.sleep(2 * LEASE_S)
        if dice.random() < 0.1:
            await store.hand_back(taken.job.id, taken.attempt)
        elif dice.random() < 0.05:
            await store.cancel(taken.job.id)
        elif await store.succeed(taken.job.id, taken.attempt, artifacts=(), output=None, timings={}):
            ended[taken.job.id] += 1


async def deadlocks(database_url: str) -> int:
    async with opened(database_url) as store:
        return await sql(store, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")


async def test_nothing_deadlocks_and_everything_ends_once(database_url: str) -> None:
    rules = {"lease_s": LEASE_S, "max_lost_workers": 10_000}
    before = await deadlocks(database_url)
    async with opened(database_url, **rules) as one, opened(database_url, **rules) as two:
        await one.submit_batch(
            [submission("ab"[n % 2], webhook_url="https://example.com") for n in range(JOBS // 2)]
            + [
                submission("none", parts=[{"n": 0}, {"n": 1}, {"n": 2}], webhook_url="https://example.com")
                for _ in range(JOBS // 6)
            ]
        )
        ended: Counter[str] = Counter()
        seed = random.randrange(10**9)
        await asyncio.gather(*(slot(store, ended, seed + n) for n, store in enumerate([one, two] * 4)))
        assert await tickets(one) == 0
        live = await one.list(status={Status.QUEUED, Status.RUNNING})
        assert live.jobs == ()
        assert set(ended.values()) <= {1}
        states = await sql(one, "SELECT array_agg(DISTINCT status ORDER BY status) FROM job WHERE parts = 0")
        assert set(states) <= {"succeeded", "cancelled"}
        webhooks = await sql(one, "SELECT count(*) FROM webhook")
        assert webhooks == await sql(one, "SELECT count(*) FROM job WHERE parent_id IS NULL") == JOBS // 2 + JOBS // 6
        assert await sql(one, "SELECT sum(abs(pending)) FROM job") == 0
        assert await sql(one, "SELECT pending FROM batch") == 0
    assert await deadlocks(database_url) == before  # counted when the sessions end


async def test_the_library_alone_would_deadlock_in_one_transaction(database_url: str) -> None:
    """Why a claim is two transactions: ticket then row, against row then ticket, is a deadlock."""
    async with await JobStore.open(database_url, Rules(lease_s=LEASE_S)) as store:
        job, _ = await store.submit(Submission(model="a", input={}, pool="cpu"))
        taken = await try_take(store)
        assert taken is not None
        await asyncio.sleep(2 * LEASE_S)
        claimer, beater = await store.database.connect(), await store.database.connect()
        try:
            for connection in (claimer, beater):
                await connection.execute("SET deadlock_timeout = '50ms'; BEGIN")
            ticket = await queue.take(claimer, ["cpu/a"], slot=uuid4(), lease_s=LEASE_S)
            assert ticket is not None
            await beater.execute("SELECT FROM job WHERE id = $1 FOR UPDATE", UUID(job.id))
            results = await asyncio.gather(
                beater.execute(queue.renewing("SELECT $1::bigint AS queue_id"), ticket.id),
                claimer.execute("UPDATE job SET attempt = attempt + 1 WHERE id = $1", UUID(job.id)),
                return_exceptions=True,
            )
            assert [type(r) for r in results].count(asyncpg.DeadlockDetectedError) == 1
        finally:
            claimer.terminate()
            beater.terminate()

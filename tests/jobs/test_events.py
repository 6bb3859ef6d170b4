"""Who waits is woken: by notification, and after anything that may have lost one."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from mediamill.errors import NotFound
from mediamill.jobs.store import JobStore
from mediamill.model import JobError, Status
from tests.store_steps import make, opened, sql, succeed, take, try_take

SOON_S = 20.0
"""Far longer than a notification takes, far shorter than the slowest of machines needs to hang."""


async def listening(store: JobStore) -> None:
    """Until the process's ear is open; what comes after that is a notification and no net under one."""
    async with asyncio.timeout(SOON_S):
        while not store.events.connected:
            await asyncio.sleep(0.01)


async def settle(wake: object) -> None:
    """Use up the wake-up that comes with each connect."""
    while await wake.wait(0.05):  # type: ignore[attr-defined]
        pass


@pytest.mark.parametrize("change", ["start", "cancel", "hand back", "succeed", "fail", "lost"])
async def test_a_watcher_of_a_job_hears_of_its_changes(database_url: str, change: str) -> None:
    async with opened(database_url) as api, opened(database_url, max_lost_workers=1) as worker:
        job = await make(worker)
        other = await make(worker, pool="gpu")
        attempt = 0 if change == "start" else (await take(worker)).attempt
        async with api.events.job(job.id) as wake, api.events.job(other.id) as silent:
            await listening(api)
            await settle(wake)
            await settle(silent)
            if change == "start":
                await take(worker)
            elif change == "cancel":
                await worker.cancel(job.id)
            elif change == "hand back":
                await worker.hand_back(job.id, attempt)
            elif change == "succeed":
                await worker.succeed(job.id, attempt, artifacts=[], output=None, timings={})
            elif change == "fail":
                await worker.fail(job.id, attempt, JobError("engine_failed", "x"), timings={})
            else:
                await sql(
                    worker, "UPDATE job SET run_deadline_at = now() - interval '1 day' WHERE id = $1", UUID(job.id)
                )
                await worker.fail_expired()
            assert await wake.wait(SOON_S)
            assert not await silent.wait(0)


async def test_progress_wakes_nobody(store: JobStore) -> None:
    job = await make(store)
    await take(store)
    async with store.events.job(job.id) as wake:
        await listening(store)
        await settle(wake)
        await store.beat(job.id, 1, progress=0.5)
        assert not await wake.wait(0.1)


async def test_an_idle_worker_is_woken_by_work_for_its_pools_only(database_url: str) -> None:
    async with (
        opened(database_url) as api,
        opened(database_url) as worker,
        worker.events.work(["cpu", "remote"]) as wake,
        worker.events.work(["gpu"]) as other,
    ):
        await listening(worker)
        await settle(wake)
        await settle(other)
        job = await make(api)
        assert await wake.wait(SOON_S)
        taken = await take(worker)
        await settle(wake)
        await worker.hand_back(job.id, taken.attempt)  # the queue itself notifies of no retry
        assert await wake.wait(SOON_S)
        assert not await other.wait(0)
        await succeed(worker, await take(worker))
        assert not await wake.wait(0.1)  # nor is anybody woken for a ticket that goes


async def test_parts_and_batches_wake_workers_too(store: JobStore) -> None:
    async with store.events.work(["cpu"]) as wake:
        await listening(store)
        await settle(wake)
        await make(store, parts=[{"n": 0}, {"n": 1}])
        assert await wake.wait(SOON_S)


async def test_who_follows_a_parent_is_woken_by_its_first_part_alone(store: JobStore) -> None:
    parent = await make(store, parts=[{"n": 0}, {"n": 1}])
    async with store.events.job(parent.id) as wake:
        await listening(store)
        await settle(wake)
        await take(store)
        assert await wake.wait(SOON_S)
        assert (await store.get(parent.id)).status is Status.RUNNING
        await settle(wake)
        await take(store)
        assert not await wake.wait(0.1)


async def test_a_webhook_to_deliver_wakes_its_deliverers(store: JobStore) -> None:
    job = await make(store, webhook_url="https://example.com")
    async with store.events.webhooks() as wake:
        await listening(store)
        await settle(wake)
        await store.cancel(job.id)
        assert await wake.wait(SOON_S)


async def test_a_wake_up_before_the_wait_counts_once(store: JobStore) -> None:
    async with store.events.work(["cpu"]) as wake:
        wake.set()
        wake.set()
        assert await wake.wait(0)
        await listening(store)
        await settle(wake)
        assert not await wake.wait(0)


class TestWait:
    async def test_it_returns_with_the_end(self, database_url: str) -> None:
        async with opened(database_url) as api, opened(database_url) as worker:
            job = await make(api)
            waits = [asyncio.create_task(api.wait(job.id, SOON_S)) for _ in range(3)]
            await listening(api)
            await succeed(worker, await take(worker), output={"a": 1})
            assert [(await w).output for w in waits] == [{"a": 1}] * 3

    async def test_it_returns_the_job_as_it_is_after_its_time(self, store: JobStore) -> None:
        job = await make(store)
        assert (await store.wait(job.id, 0.05)).status is Status.QUEUED
        assert (await store.wait(job.id, 0)).status is Status.QUEUED

    async def test_it_returns_at_once_for_an_ended_job_and_refuses_an_unknown_one(self, store: JobStore) -> None:
        job = await make(store)
        await store.cancel(job.id)
        assert (await store.wait(job.id, SOON_S)).status is Status.CANCELLED
        with pytest.raises(NotFound):
            await store.wait("0190a3c4-7f5e-7b8a-9c1d-2e3f4a5b6c7d", SOON_S)

    async def test_waiting_for_a_parent_ends_with_its_last_part(self, store: JobStore) -> None:
        parent = await make(store, "no such model", parts=[{"n": 0}])
        wait = asyncio.create_task(store.wait(parent.id, SOON_S))
        await listening(store)
        await succeed(store, await take(store))
        assert (await wait).status is Status.FAILED


async def test_a_lost_listening_connection_comes_back_and_everybody_is_woken(store: JobStore) -> None:
    job = await make(store, pool="gpu")
    async with store.events.work(["cpu"]) as work, store.events.job(job.id) as changed:
        await listening(store)
        for wake in (work, changed):
            await settle(wake)
        for _ in range(3):
            killed = await sql(
                store,
                "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND query LIKE 'LISTEN%' AND pid <> pg_backend_pid()",
            )
            assert killed == 1
            assert await work.wait(SOON_S)
            assert await changed.wait(SOON_S)
        await settle(work)
        await make(store)
        assert await work.wait(SOON_S)


async def test_one_connection_listens_however_many_wait(store: JobStore) -> None:
    job = await make(store)
    waits = [asyncio.create_task(store.wait(job.id, 30)) for _ in range(10)]
    await listening(store)
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    assert await sql(store, count + " AND pid <> pg_backend_pid()") == 1
    await store.cancel(job.id)
    assert {(await w).status for w in waits} == {Status.CANCELLED}
    assert store.events._wakes == {}


async def test_a_store_that_nobody_waits_on_does_not_listen(store: JobStore) -> None:
    await make(store)
    assert await try_take(store) is not None
    assert not store.events.connected

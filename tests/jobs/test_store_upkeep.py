"""Deadlines, mending and tidying, by whichever process comes by."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from mediamill.jobs.store import Idempotency, JobStore
from mediamill.model import JobError, Status
from tests.store_steps import age, artifact, make, opened, silence, sql, submission, succeed, take, tickets, try_take


async def code_of(store: JobStore, job_id: str) -> tuple[str, str | None]:
    job = await store.get(job_id)
    return str(job.status), job.error and job.error.code


async def test_what_is_past_its_deadline_is_ended_and_nothing_else(database_url: str) -> None:
    async with opened(database_url, lease_s=20) as store:
        names = ("running", "over", "just over", "deaf", "hearing")
        jobs = {name: await make(store, webhook_url="https://example.com", run_timeout_s=60) for name in names}
        for _ in names:
            await take(store)
        jobs |= {name: await make(store, webhook_url="https://example.com") for name in ("waiting", "late")}
        await age(store, jobs["over"].id, run_deadline_at=300)
        await age(store, jobs["just over"].id, run_deadline_at=5)
        await age(store, jobs["late"].id, queue_deadline_at=1)
        for name in ("deaf", "hearing"):
            await store.cancel(jobs[name].id)
        await silence(store, jobs["deaf"].id, 60)
        for name in ("running", "over", "just over", "hearing"):
            await store.beat(jobs[name].id, 1)
        assert await store.fail_expired() == 3
        assert {name: await code_of(store, job.id) for name, job in jobs.items()} == {
            "running": ("running", None),
            "over": ("failed", "deadline_exceeded"),
            "just over": ("running", None),
            "deaf": ("cancelled", "cancelled"),
            "hearing": ("running", None),
            "waiting": ("queued", None),
            "late": ("failed", "deadline_exceeded"),
        }
        assert not (await store.beat(jobs["over"].id, 1)).owned
        assert await sql(store, "SELECT count(*) FROM webhook") == 3
        assert await tickets(store) == 4
        assert await store.fail_expired() == 0


async def test_several_sweepers_at_once_end_a_job_once(store: JobStore) -> None:
    for _ in range(5):
        job = await make(store, webhook_url="https://example.com")
        await age(store, job.id, queue_deadline_at=1)
    assert sum(await asyncio.gather(*(store.fail_expired() for _ in range(4)))) == 5
    assert await sql(store, "SELECT count(*) FROM webhook") == 5


class TestReconcile:
    async def test_a_waiting_job_without_a_ticket_gets_one(self, store: JobStore) -> None:
        lost, kept = await make(store), await make(store)
        await sql(store, "DELETE FROM pgqueuer WHERE id = (SELECT queue_id FROM job WHERE id = $1)", UUID(lost.id))
        assert await store.fail_expired() == 1
        assert [(await take(store)).job.id for _ in range(2)] == [kept.id, lost.id]

    async def test_a_running_job_without_a_ticket_is_left_to_its_worker_while_it_beats(self, database_url: str) -> None:
        async with opened(database_url, lease_s=20) as store:
            job = await make(store)
            taken = await take(store)
            await sql(store, "DELETE FROM pgqueuer")
            assert (await store.beat(job.id, 1)).owned
            assert await store.fail_expired() == 0
            await age(store, job.id, beat_at=60)
            assert await store.fail_expired() == 1
            assert (await take(store)).attempt == 2
            assert not await succeed(store, taken)

    async def test_sweepers_at_the_same_moment_write_one_ticket(self, store: JobStore) -> None:
        await make(store)
        await sql(store, "DELETE FROM pgqueuer")
        assert sum(await asyncio.gather(*(store.fail_expired() for _ in range(4)))) == 1
        assert await tickets(store) == 1

    async def test_a_ticket_of_an_ended_or_vanished_job_is_dropped_by_its_taker(self, store: JobStore) -> None:
        ended, vanished, good = await make(store), await make(store), await make(store)
        await sql(store, "UPDATE job SET status = 'cancelled' WHERE id = $1", UUID(ended.id))
        await sql(store, "DELETE FROM job WHERE id = $1", UUID(vanished.id))
        assert (await take(store)).job.id == good.id
        assert await tickets(store) == 1

    async def test_a_second_ticket_of_a_job_starts_nothing(self, store: JobStore) -> None:
        job = await make(store)
        await sql(
            store,
            "INSERT INTO pgqueuer (priority, entrypoint, payload, status) SELECT 9, lane, $1, 'queued' FROM job",
            UUID(job.id).bytes,
        )
        assert (await take(store)).attempt == 1
        assert await try_take(store) is None
        assert await tickets(store) == 1

    async def test_a_lane_that_is_unknown_becomes_known(self, store: JobStore) -> None:
        await make(store, "a", affinity="weights/1")
        await sql(store, "DELETE FROM lane")
        assert await try_take(store) is None
        await store.fail_expired()
        assert await sql(store, "SELECT affinity FROM lane") == "weights/1"
        await take(store)


class TestPrune:
    async def test_old_ended_jobs_are_listed_until_they_are_forgotten(self, store: JobStore) -> None:
        split = await store.submit(submission("none", parts=[{"n": 0}, {"n": 1}]))
        old, young, live = [await make(store) for _ in range(3)]
        for name in ("p0.mp4", "p1.mp4", "old.mp4", "young.mp4"):
            await succeed(store, await take(store), artifacts=[artifact(name)])
        for job_id in (split[0].id, old.id):
            await age(store, job_id, finished_at=7200)
        for _ in range(2):
            due = await store.prune(ended_before_s=3600)
            assert {job.id for job in due} == {
                split[0].id,
                old.id,
                *(part.id for part in await store.parts(split[0].id)),
            }
            assert {a.name for job in due for a in job.artifacts} == {"p0.mp4", "p1.mp4", "old.mp4"}
        assert await store.forget([job.id for job in due]) == 2
        assert await store.prune(ended_before_s=3600) == []
        assert {job.id for job in (await store.list()).jobs} == {young.id, live.id}
        assert await sql(store, "SELECT count(*) FROM job") == 2

    async def test_a_job_whose_webhook_is_on_its_way_stays(self, store: JobStore) -> None:
        job = await make(store, webhook_url="https://example.com")
        await store.cancel(job.id)
        await age(store, job.id, finished_at=7200)
        assert await store.prune(ended_before_s=3600) == []
        await sql(store, "UPDATE webhook SET delivered_at = now()")
        assert [due.id for due in await store.prune(ended_before_s=3600)] == [job.id]

    async def test_a_live_job_cannot_be_forgotten(self, store: JobStore) -> None:
        job = await make(store)
        assert await store.forget([job.id]) == 0
        await store.get(job.id)

    async def test_nothing_is_listed_without_a_limit_and_the_queues_log_is_cut(self, store: JobStore) -> None:
        await make(store)
        await succeed(store, await take(store))
        assert await sql(store, "SELECT count(*) FROM pgqueuer_log") == 3
        await sql(store, "UPDATE pgqueuer_log SET created = created - interval '2 days' WHERE status <> 'successful'")
        assert await store.prune(ended_before_s=None) == []
        assert await sql(store, "SELECT string_agg(status::text, ',') FROM pgqueuer_log") == "successful"
        assert len((await store.list()).jobs) == 1

    async def test_used_up_keys_and_empty_batches_go(self, store: JobStore) -> None:
        _, jobs = await store.submit_batch([submission()], idempotency=Idempotency("a", "k", "f"))
        await store.cancel(jobs[0].id)
        await age(store, jobs[0].id, finished_at=7200)
        await sql(store, "UPDATE batch SET created_at = created_at - interval '2 days'")
        await sql(store, "UPDATE idempotency SET created_at = created_at - interval '2 days'")
        await store.forget([jobs[0].id])
        await store.prune(ended_before_s=3600)
        assert await sql(store, "SELECT (SELECT count(*) FROM batch) + (SELECT count(*) FROM idempotency)") == 0


@pytest.mark.parametrize("ended", ["failed", "cancelled"])
async def test_what_ended_badly_is_pruned_like_the_rest(store: JobStore, ended: str) -> None:
    job = await make(store)
    taken = await take(store)
    if ended == "failed":
        await store.fail(job.id, taken.attempt, JobError("engine_failed", "x"), timings={})
    else:
        await store.cancelled(job.id, taken.attempt, timings={})
    await age(store, job.id, finished_at=7200)
    assert [due.status for due in await store.prune(ended_before_s=60)] == [Status(ended)]

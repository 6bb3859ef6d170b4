"""Taking jobs, the fence, and everything that can befall a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from mediamill.jobs import queue
from mediamill.jobs.database import Limits
from mediamill.jobs.store import JobStore
from mediamill.model import JobError, Phase, Status
from tests.store_steps import age, artifact, make, opened, silence, sql, succeed, take, tickets, try_take

BROKEN = JobError("engine_failed", "It broke.")


@pytest.fixture
async def brisk(database_url: str) -> AsyncIterator[JobStore]:
    """A store with a short lease and no pause after crashes: what is silent for a minute is lost."""
    async with opened(database_url, lease_s=0.3, crash_delay_s=0.0, max_lost_workers=3) as store:
        yield store


async def test_jobs_of_one_priority_go_in_order_of_coming_and_a_higher_one_first(store: JobStore) -> None:
    first, second = await make(store), await make(store, "other")
    urgent, idle = await make(store, priority=7), await make(store, priority=-1)
    order = [(await take(store)).job.id for _ in range(4)]
    assert order == [urgent.id, first.id, second.id, idle.id]
    assert await try_take(store) is None


async def test_a_slot_takes_from_its_own_pools_only(store: JobStore) -> None:
    await make(store, pool="gpu")
    assert await try_take(store, pools=["cpu", "remote"]) is None
    assert (await take(store, pools=["cpu", "gpu"])).job.model == "fake"


async def test_each_job_goes_to_one_taker(store: JobStore) -> None:
    made = {(await make(store)).id for _ in range(20)}
    seen: list[str] = []

    async def slot() -> None:
        nothing = 0
        while nothing < 5:
            taken = await try_take(store, slot=uuid4())
            nothing = 0 if taken else nothing + 1
            if taken:
                seen.append(taken.job.id)

    await asyncio.gather(*(slot() for _ in range(6)))
    assert sorted(seen) == sorted(made)


class TestFence:
    async def test_what_a_lost_worker_writes_changes_nothing(self, brisk: JobStore) -> None:
        job = await make(brisk, webhook_url="https://example.com")
        old = await take(brisk, worker="frozen")
        await silence(brisk, job.id, 60)
        new = await take(brisk, worker="fresh")
        assert (new.job.id, new.attempt) == (job.id, 2)
        beat = await brisk.beat(job.id, old.attempt, progress=0.9)
        assert (beat.owned, bool(beat)) == (False, False)
        assert not await brisk.publishing(job.id, old.attempt, [artifact()])
        assert not await succeed(brisk, old, artifacts=[artifact()])
        assert not await brisk.fail(job.id, old.attempt, BROKEN, timings={})
        assert not await brisk.cancelled(job.id, old.attempt, timings={})
        assert not await brisk.hand_back(job.id, old.attempt)
        assert (await brisk.get(job.id)).progress == 0.0
        assert await tickets(brisk) == 1
        assert await succeed(brisk, new, artifacts=[artifact("new.mp4")])
        assert [a.name for a in (await brisk.get(job.id)).artifacts] == ["new.mp4"]
        assert await sql(brisk, "SELECT count(*) FROM webhook") == 1
        assert await tickets(brisk) == 0

    async def test_a_late_end_counts_when_nobody_took_the_job_meanwhile(self, brisk: JobStore) -> None:
        job = await make(brisk)
        taken = await take(brisk)
        await silence(brisk, job.id, 3600)
        assert await succeed(brisk, taken)

    async def test_an_end_whose_answer_was_lost_can_be_repeated(self, store: JobStore) -> None:
        job = await make(store, webhook_url="https://example.com")
        taken = await take(store)
        assert [await succeed(store, taken, artifacts=[artifact()]) for _ in range(3)] == [True] * 3
        assert not await store.fail(job.id, taken.attempt, BROKEN, timings={})
        assert len((await store.get(job.id)).artifacts) == 1
        assert await sql(store, "SELECT count(*) FROM webhook") == 1

    async def test_a_hand_back_whose_answer_was_lost_can_be_repeated(self, store: JobStore) -> None:
        job = await make(store)
        taken = await take(store)
        for _ in range(2):
            assert await store.hand_back(job.id, taken.attempt, charge="crash", delay_s=60)
        assert await sql(store, "SELECT crashes FROM job") == 1

    async def test_an_end_that_fails_half_way_leaves_everything_as_it_was(self, store: JobStore) -> None:
        job = await make(store, webhook_url="https://example.com")
        taken = await take(store)
        await sql(store, "ALTER TABLE artifact ADD CONSTRAINT no CHECK (name <> 'bad')")
        with pytest.raises(Exception, match="violates check constraint"):
            await succeed(store, taken, artifacts=[artifact(), artifact("bad")])
        assert (await store.get(job.id)).status is Status.RUNNING
        assert await tickets(store) == 1
        assert await sql(store, "SELECT (SELECT count(*) FROM webhook) + (SELECT count(*) FROM artifact)") == 0
        assert await succeed(store, taken)

    async def test_an_answer_is_worth_one_lease_from_the_moment_of_asking(self, database_url: str) -> None:
        async with opened(database_url, lease_s=0.2) as store:
            await make(store)
            asked_at = time.monotonic()
            taken = await take(store)
            beat = await store.beat(taken.job.id, taken.attempt)
            assert asked_at <= beat.asked_at <= time.monotonic()
            assert beat.lease_until == pytest.approx(beat.asked_at + 0.2)
            assert asked_at + 0.2 <= taken.lease_until <= beat.lease_until
            await asyncio.sleep(0.25)
            assert (beat.owned, bool(beat)) == (True, False)

    async def test_progress_never_falls_within_an_attempt_and_starts_anew_with_the_next(self, brisk: JobStore) -> None:
        job = await make(brisk)
        await take(brisk)
        await brisk.beat(job.id, 1, progress=0.6, phase=Phase.ENCODING)
        await brisk.beat(job.id, 1, progress=0.4)
        running = await brisk.get(job.id)
        assert (running.progress, running.phase) == (0.6, Phase.ENCODING)
        await brisk.hand_back(job.id, 1)
        again = (await take(brisk)).job
        assert (again.progress, again.phase, again.attempt) == (0.0, None, 2)


class TestLostWorkers:
    async def test_a_job_whose_worker_beats_is_not_taken(self, database_url: str) -> None:
        async with opened(database_url, lease_s=20) as store:
            job = await make(store)
            taken = await take(store)
            for _ in range(2):
                await silence(store, job.id, 19)
                assert await store.beat(job.id, taken.attempt)
                async with store.database.connection() as connection:
                    assert await queue.take(connection, ["cpu/fake"], slot=uuid4(), lease_s=20) is None

    async def test_a_poisonous_job_ends_after_so_many_lost_workers(self, brisk: JobStore) -> None:
        job = await make(brisk, webhook_url="https://example.com")
        for attempt in (1, 2, 3):
            assert (await take(brisk)).attempt == attempt
            await silence(brisk, job.id, 60)
        assert await try_take(brisk) is None
        ended = await brisk.get(job.id)
        assert ended.error is not None
        assert (ended.status, ended.error.code) == (Status.FAILED, "crashed")
        assert "3 times" in ended.error.message
        assert await tickets(brisk) == 0
        assert await sql(brisk, "SELECT count(*) FROM webhook") == 1

    async def test_the_taker_that_ends_a_poisonous_job_gets_the_next_one(self, brisk: JobStore) -> None:
        poison = await make(brisk)
        for _ in range(3):
            await take(brisk)
            await silence(brisk, poison.id, 60)
        good = await make(brisk)
        assert (await take(brisk)).job.id == good.id

    async def test_lost_workers_and_crashes_are_counted_apart_and_hand_backs_not_at_all(self, brisk: JobStore) -> None:
        job = await make(brisk)
        for charge in ("lost", "crash", "free", "lost", "free", "crash", "free"):
            taken = await take(brisk)
            if charge == "lost":
                await silence(brisk, job.id, 60)
            else:
                assert await brisk.hand_back(job.id, taken.attempt, charge=charge)
        counts = await sql(brisk, "SELECT array[lost_workers, crashes, attempt] FROM job")
        assert counts == [2, 2, 7]
        assert (await brisk.get(job.id)).status is Status.QUEUED

    async def test_a_cancelled_job_whose_worker_was_lost_ends_instead_of_running_again(self, brisk: JobStore) -> None:
        job = await make(brisk)
        await take(brisk)
        await sql(brisk, "UPDATE job SET cancel_requested = true")
        await silence(brisk, job.id, 60)
        assert await try_take(brisk) is None
        assert (await brisk.get(job.id)).status is Status.CANCELLED

    async def test_a_crash_between_ticket_and_row_costs_a_lease_and_no_attempt(self, brisk: JobStore) -> None:
        job = await make(brisk)
        await sql(brisk, "UPDATE pgqueuer SET status = 'picked', heartbeat = now() - interval '1 minute'")
        assert (await take(brisk)).attempt == 1
        assert await sql(brisk, "SELECT lost_workers FROM job WHERE id = $1", UUID(job.id)) == 0

    async def test_a_taker_with_a_shorter_lease_does_not_take_what_beats(self, database_url: str) -> None:
        async with opened(database_url, lease_s=60) as patient, opened(database_url, lease_s=5) as hasty:
            job = await make(patient)
            await take(patient)
            await sql(hasty, "UPDATE pgqueuer SET heartbeat = now() - interval '1 minute'")
            assert await try_take(hasty) is None
            assert (await patient.beat(job.id, 1)).owned


class TestHandBack:
    async def test_a_free_one_is_ready_at_once_at_its_old_place(self, store: JobStore) -> None:
        job = await make(store)
        await make(store)
        taken = await take(store)
        assert await store.hand_back(job.id, taken.attempt)
        assert (await store.get(job.id)).status is Status.QUEUED
        assert (await take(store)).job.id == job.id

    async def test_a_delayed_one_waits_and_the_sleep_is_as_long(self, store: JobStore) -> None:
        job = await make(store)
        taken = await take(store)
        await store.hand_back(job.id, taken.attempt, delay_s=4.5)
        assert await try_take(store) is None
        assert await try_take(store, held=["fake"]) is None
        assert 0.1 < await store.next_wake_s(["cpu"]) < 4.5

    async def test_crashes_make_the_delay_grow_until_the_job_fails(self, database_url: str) -> None:
        async with opened(database_url, max_crashes=4, crash_delay_s=10) as store:
            job = await make(store)
            delays = []
            for _ in range(3):
                taken = await take(store)
                assert await store.hand_back(job.id, taken.attempt, charge="crash", error=BROKEN)
                delays.append(
                    await sql(store, "SELECT extract(epoch FROM ready_at - clock_timestamp())::float8 FROM job")
                )
                assert await try_take(store) is None
                await age(store, job.id, ready_at=1)
                await sql(store, "UPDATE pgqueuer SET execute_after = now() - interval '1 s'")
            assert [round(delay_s, -1) for delay_s in delays] == [10, 40, 60]
            taken = await take(store)
            assert await store.hand_back(job.id, taken.attempt, charge="crash", error=BROKEN)
            assert (await store.get(job.id)).error == BROKEN
            assert await tickets(store) == 0

    async def test_without_a_reason_the_failure_says_what_happened(self, database_url: str) -> None:
        async with opened(database_url, max_crashes=1) as store:
            job = await make(store)
            await store.hand_back(job.id, (await take(store)).attempt, charge="crash")
            assert (await store.get(job.id)).error == JobError("crashed", "The process that did the work died 1 times.")

    async def test_a_job_that_was_asked_to_stop_ends(self, store: JobStore) -> None:
        job = await make(store)
        taken = await take(store)
        await store.cancel(job.id)
        assert await store.hand_back(job.id, taken.attempt)
        assert (await store.get(job.id)).status is Status.CANCELLED


class TestAffinity:
    async def test_what_is_loaded_goes_first(self, store: JobStore) -> None:
        for model in "abababab":
            await make(store, model)
        order, held = "", ["a"]
        for _ in range(8):
            held = [(await take(store, held=held)).job.model]
            order += held[0]
        assert order == "aaaabbbb"

    async def test_affinity_may_be_another_thing_than_the_model(self, store: JobStore) -> None:
        await make(store, "a", affinity="weights-1")
        await make(store, "b", affinity="weights-2")
        assert (await take(store, held=["weights-2"])).job.model == "b"

    async def test_a_higher_priority_beats_what_is_loaded(self, store: JobStore) -> None:
        for model, priority in (("a", 0), ("b", 1), ("a", 1)):
            await make(store, model, priority=priority)
        order = [(await take(store, held=["a"])).job for _ in range(3)]
        assert [(job.model, p) for job, p in zip(order, (1, 1, 0), strict=True)] == [("a", 1), ("b", 1), ("a", 0)]

    async def test_nothing_waits_behind_loaded_models_for_longer_than_the_bound(self, database_url: str) -> None:
        async with opened(database_url, affinity_wait_s=30) as store:
            for _ in range(3):
                await make(store, "a")
            lone = await make(store, "b")
            assert (await take(store, held=["a"])).job.model == "a"
            await age(store, lone.id, ready_at=31)
            assert (await take(store, held=["a"])).job.id == lone.id
            assert (await take(store, held=["a"])).job.model == "a"

    async def test_a_deep_backlog_does_not_undo_it(self, database_url: str) -> None:
        """When everything has waited for longer than the bound, it counts from when the other was last served."""
        async with opened(database_url, affinity_wait_s=30) as store:
            jobs = [await make(store, model) for model in "abababab"]
            for job in jobs:
                await age(store, job.id, ready_at=500)
            order, held = "", ["a"]
            for _ in range(8):
                held = [(await take(store, held=held)).job.model]
                order += held[0]
            assert order in {"baaaabbb", "bbbbaaaa"}
            assert order.count("ab") + order.count("ba") <= 2

    async def test_deferred_jobs_neither_win_nor_starve(self, database_url: str) -> None:
        async with opened(database_url, affinity_wait_s=0) as store:
            deferred = await make(store, "b", priority=9)
            taken = await take(store)
            await store.hand_back(deferred.id, taken.attempt, delay_s=60)
            await make(store, "a")
            assert (await take(store, held=["a"])).job.model == "a"
            assert await try_take(store, held=["a"]) is None

    async def test_a_lost_job_of_another_model_is_not_forgotten(self, brisk: JobStore) -> None:
        lost = await make(brisk, "b")
        await take(brisk)
        await silence(brisk, lost.id, 60)
        await make(brisk, "a")
        assert (await take(brisk, held=["a"])).job.id == lost.id


class TestDeadlines:
    async def test_a_job_that_waited_too_long_fails_instead_of_starting(self, store: JobStore) -> None:
        late = await make(store, queued_timeout_s=60, webhook_url="https://example.com")
        await age(store, late.id, queue_deadline_at=1)
        good = await make(store)
        assert (await take(store)).job.id == good.id
        ended = await store.get(late.id)
        assert ended.error is not None
        assert (ended.status, ended.error.code) == (Status.FAILED, "deadline_exceeded")
        assert await sql(store, "SELECT count(*) FROM webhook") == 1

    async def test_a_hand_back_gives_the_whole_waiting_time_again(self, store: JobStore) -> None:
        job = await make(store, queued_timeout_s=60)
        taken = await take(store)
        await age(store, job.id, queue_deadline_at=1)
        await store.hand_back(job.id, taken.attempt)
        assert (await take(store)).attempt == 2

    async def test_the_run_limit_is_handed_to_the_worker(self, store: JobStore) -> None:
        await make(store, run_timeout_s=7.5)
        assert (await take(store)).run_deadline_s == 7.5
        left_s = await sql(store, "SELECT extract(epoch FROM run_deadline_at - clock_timestamp())::float8 FROM job")
        assert 0 < left_s <= 7.5


class TestSleep:
    async def test_an_idle_slot_sleeps_until_the_next_lease_may_run_out(self, database_url: str) -> None:
        async with opened(database_url, lease_s=2) as store:
            assert await store.next_wake_s(["cpu"]) == 5
            job = await make(store)
            assert await store.next_wake_s(["cpu"]) == pytest.approx(0.1)
            await take(store)
            assert 0.1 <= await store.next_wake_s(["cpu"]) <= 2
            await silence(store, job.id, 60)
            assert await store.next_wake_s(["cpu"]) <= 2

    async def test_work_of_other_pools_keeps_nobody_awake(self, store: JobStore) -> None:
        await make(store, pool="gpu")
        assert await store.next_wake_s(["cpu"]) == 5


async def test_a_frozen_process_in_a_transaction_does_not_hold_a_job_for_ever(database_url: str) -> None:
    limits = Limits(idle_in_transaction_s=0.5)
    async with opened(database_url, limits=limits) as frozen, opened(database_url) as store:
        job = await make(store)
        taken = await take(store)
        connection = await frozen.database.connect()
        await connection.execute("BEGIN")
        await connection.execute("SELECT FROM job WHERE id = $1 FOR UPDATE", UUID(job.id))
        assert await succeed(store, taken)  # waits for the lock, which goes with the session of the sleeper
        connection.terminate()


async def test_the_time_left_counts_down_and_is_forgotten_with_the_next_word(store: JobStore) -> None:
    job = await make(store)
    taken = await take(store)
    await store.beat(job.id, taken.attempt, progress=0.1, eta_s=60)
    first = (await store.get(job.id)).eta_s
    assert first is not None
    await asyncio.sleep(0.02)
    later = (await store.get(job.id)).eta_s
    assert later is not None
    assert 0 < later < first <= 60
    await store.beat(job.id, taken.attempt, eta_s=0.0)
    assert (await store.get(job.id)).eta_s == 0
    await store.beat(job.id, taken.attempt, progress=0.2)
    assert (await store.get(job.id)).eta_s is None


async def test_the_newest_preview_shows_while_the_attempt_runs(store: JobStore) -> None:
    job = await make(store)
    taken = await take(store)
    for key in ("previews/1.png", "previews/2.png", None):
        await store.beat(job.id, taken.attempt, eta_s=9, preview=key)
    assert (await store.get(job.id)).preview == "previews/2.png"
    assert await store.hand_back(job.id, taken.attempt)
    waiting = await store.get(job.id)
    assert (waiting.preview, waiting.eta_s) == (None, None)
    again = await take(store)
    running = await store.get(job.id)
    assert (running.preview, running.eta_s) == (None, None)
    await store.beat(job.id, again.attempt, eta_s=9, preview="previews/3.png")
    await succeed(store, again)
    ended = await store.get(job.id)
    assert (ended.preview, ended.eta_s) == (None, None)

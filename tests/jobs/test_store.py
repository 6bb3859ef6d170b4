"""Making and reading jobs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest

from mediamill.errors import Conflict, InvalidRequest, NotFound
from mediamill.jobs.rows import clean, new_id
from mediamill.jobs.store import Idempotency, JobStore
from mediamill.model import JobError, Phase, Status
from tests.store_steps import age, artifact, make, sql, submission, succeed, take, tickets, try_take


async def test_a_submitted_job_reads_back_as_it_was_made(store: JobStore) -> None:
    job = await make(
        store,
        "img2vid",
        input={"a": [1, 2.5, None, True, "é 漢"]},
        contract="video_processing",
        webhook_url="https://example.com/hook",
        metadata={"order": "17"},
        warnings=["Unknown field 'x' was ignored."],
    )
    assert job == await store.get(job.id)
    assert (job.status, job.phase, job.progress, job.attempt) == (Status.QUEUED, None, 0.0, 0)
    assert job.input == {"a": [1, 2.5, None, True, "é 漢"]}
    assert (job.contract, job.webhook_url) == ("video_processing", "https://example.com/hook")
    assert (job.metadata, job.warnings) == ({"order": "17"}, ("Unknown field 'x' was ignored.",))
    assert job.created_at.utcoffset() == timedelta(0)


async def test_a_job_goes_from_queued_through_running_to_succeeded(store: JobStore) -> None:
    made = await make(store)
    taken = await take(store, worker="host-1")
    assert (taken.job.id, taken.attempt, taken.run_deadline_s) == (made.id, 1, 3600.0)
    assert await store.beat(made.id, 1, progress=0.5, phase=Phase.GENERATING, message="half")
    running = await store.get(made.id)
    assert (running.status, running.phase, running.progress, running.message) == (
        Status.RUNNING,
        Phase.GENERATING,
        0.5,
        "half",
    )
    assert await store.publishing(made.id, 1, [])
    files = (artifact("b.mp4"), artifact("a.mp4", key="k/a.mp4", size_bytes=2**40))
    assert await succeed(
        store, taken, artifacts=files, output={"n": 1}, timings={"generating_s": 1.5}, warnings=["slow"]
    )
    job = await store.get(made.id)
    assert (job.status, job.phase, job.progress, job.output) == (Status.SUCCEEDED, None, 1.0, {"n": 1})
    assert job.artifacts == files
    assert job.warnings == ("slow",)
    assert job.timings["generating_s"] == 1.5
    assert 0 <= job.timings["queued_s"] < 60
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.created_at <= job.started_at <= job.finished_at
    assert await tickets(store) == 0


@pytest.mark.parametrize(
    "job_id",
    [
        "",
        "x",
        "\0",
        "../../etc",
        "{0190a3c4-7f5e-7b8a-9c1d-2e3f4a5b6c7d}",
        "0190a3c4-7f5e-7b8a-9c1d-2e3f4a5b6c7d",
        "0190a3c47f5e7b8a9c1d2e3f4a5b6c7d",
    ],
)
async def test_what_is_no_job_is_not_found(store: JobStore, job_id: str) -> None:
    for call in (store.get(job_id), store.cancel(job_id), store.wait(job_id, 0), store.batch(job_id)):
        with pytest.raises(NotFound):
            await call


async def test_a_job_is_found_under_either_spelling_of_its_id(store: JobStore) -> None:
    job = await make(store)
    assert await store.get(UUID(job.id).hex) == job


async def test_an_id_given_by_the_caller_is_used_once(store: JobStore) -> None:
    given = new_id()
    assert (await make(store, job_id=given)).id == given
    with pytest.raises(Conflict):
        await make(store, job_id=given)


def test_ids_of_one_process_sort_by_their_making_and_do_not_repeat() -> None:
    ids = [new_id() for _ in range(2000)]
    assert ids == sorted(set(ids))
    assert {UUID(i).version for i in ids} == {7}
    assert len({i[-12:] for i in ids}) == 2000


async def test_texts_that_the_database_cannot_hold_are_cleaned(store: JobStore) -> None:
    job = await make(store, input={"p\0": "a\0b", "s": ["\ud800x"], "n": float("nan")}, metadata={"m": "\0"})
    assert job.input == {"p": "ab", "s": ["?x"], "n": None}
    assert job.metadata == {"m": ""}
    taken = await take(store)
    assert (await store.beat(job.id, 1, message="h\0i\ud800" + "x" * 5000)).owned
    message = (await store.get(job.id)).message
    assert message is not None
    assert message.startswith("hi?x")
    assert len(message) == 2000
    assert await store.fail(job.id, taken.attempt, JobError("engine_failed", "broke\0n"), timings={})
    assert (await store.get(job.id)).error == JobError("engine_failed", "broken")


def test_cleaning_leaves_ordinary_values_alone() -> None:
    value = {"a": [1, 2.5, "x", None, True], "b": {"c": "\t\n"}}
    assert clean(value) == value


class TestIdempotency:
    async def test_the_same_key_and_body_give_the_same_job(self, store: JobStore) -> None:
        key = Idempotency("anonymous", "k1", "f1")
        first, replayed = await store.submit(submission(idempotency=key))
        again, replayed_again = await store.submit(submission(idempotency=key))
        assert (first.id, replayed, replayed_again) == (again.id, False, True)
        assert await tickets(store) == 1

    async def test_another_body_under_the_same_key_is_a_conflict(self, store: JobStore) -> None:
        await make(store, idempotency=Idempotency("anonymous", "k1", "f1"))
        with pytest.raises(Conflict, match="k1"):
            await make(store, idempotency=Idempotency("anonymous", "k1", "f2"))
        with pytest.raises(Conflict, match="k1"):
            await store.submit_batch([submission()], idempotency=Idempotency("anonymous", "k1", "f1"))
        assert await tickets(store) == 1

    async def test_a_very_long_key_is_a_key_like_any_other(self, store: JobStore) -> None:
        keys = [Idempotency("a", "x" * 50_000 + end, "f") for end in "aab"]
        made = [(await store.submit(submission(idempotency=key))) for key in keys]
        assert [replayed for _, replayed in made] == [False, True, False]

    async def test_keys_of_different_callers_are_different(self, store: JobStore) -> None:
        jobs = [await make(store, idempotency=Idempotency(caller, "k1", "f1")) for caller in ("a", "b")]
        assert jobs[0].id != jobs[1].id

    async def test_calls_at_the_same_moment_make_one_job(self, store: JobStore) -> None:
        key = Idempotency("a", "k", "f")
        made = await asyncio.gather(*(store.submit(submission(idempotency=key)) for _ in range(12)))
        assert len({job.id for job, _ in made}) == 1
        assert sorted(replayed for _, replayed in made) == [False] + [True] * 11
        assert await tickets(store) == 1

    async def test_a_key_can_be_used_anew_after_a_day(self, store: JobStore) -> None:
        key = Idempotency("a", "k", "f")
        first = await make(store, idempotency=key)
        await sql(store, "UPDATE idempotency SET created_at = created_at - interval '25 hours'")
        second, replayed = await store.submit(submission(idempotency=Idempotency("a", "k", "other")))
        assert (replayed, second.id == first.id) == (False, False)

    async def test_a_batch_is_replayed_as_a_batch(self, store: JobStore) -> None:
        key = Idempotency("a", "k", "f")
        first = await store.submit_batch([submission(), submission()], idempotency=key)
        assert await store.submit_batch([submission(), submission()], idempotency=key) == first
        assert await tickets(store) == 2


async def test_a_submit_is_whole_or_nothing(store: JobStore) -> None:
    given = await make(store)
    with pytest.raises(Conflict):
        await store.submit_batch([submission(), submission(job_id=given.id)], webhook_url="https://example.com")
    counts = await sql(store, "SELECT array[(SELECT count(*) FROM job), (SELECT count(*) FROM batch)]")
    assert counts == [1, 0]
    assert await tickets(store) == 1


class TestBatch:
    async def test_its_jobs_keep_their_order_and_one_webhook_is_written_at_the_last_end(self, store: JobStore) -> None:
        batch_id, jobs = await store.submit_batch(
            [submission(input={"n": n}) for n in range(3)], webhook_url="https://example.com/b", metadata={"a": 1}
        )
        assert [job.input["n"] for job in jobs] == [0, 1, 2]
        assert [(job.part, job.batch_id) for job in jobs] == [(n, batch_id) for n in range(3)]
        await store.cancel(jobs[2].id)
        for _ in range(2):
            assert await sql(store, "SELECT count(*) FROM webhook") == 0
            await succeed(store, await take(store))
        assert await sql(store, "SELECT array_agg(batch_id::text || url) FROM webhook") == [
            f"{batch_id}https://example.com/b"
        ]
        batch = await store.batch(batch_id)
        assert [str(job.status) for job in batch.jobs] == ["succeeded", "succeeded", "cancelled"]
        assert (batch.webhook_url, batch.metadata) == ("https://example.com/b", {"a": 1})


class TestList:
    async def test_pages_follow_each_other_in_both_orders(self, store: JobStore) -> None:
        ids = [(await make(store)).id for _ in range(7)]
        for order, expected in (("asc", ids), ("desc", ids[::-1])):
            seen, cursor, sizes = [], None, []
            while True:
                page = await store.list(limit=3, order=order, after=cursor)
                seen += [job.id for job in page.jobs]
                sizes.append(len(page.jobs))
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert (seen, sizes) == (expected, [3, 3, 1])

    async def test_a_new_job_does_not_shift_the_pages(self, store: JobStore) -> None:
        ids = [(await make(store)).id for _ in range(4)]
        first = await store.list(limit=2)
        await make(store)
        second = await store.list(limit=2, after=first.next_cursor)
        assert [job.id for job in (*first.jobs, *second.jobs)] == ids[::-1]
        assert second.next_cursor is None

    async def test_filters_narrow_and_combine(self, store: JobStore) -> None:
        old = await make(store, "a", metadata={"who": "x", "n": 1})
        new = await make(store, "b", metadata={"who": "x"})
        other = await make(store, "b")
        await age(store, old.id, created_at=3600)
        await store.cancel(other.id)
        between = (await store.get(new.id)).created_at - timedelta(minutes=1)
        cases = [
            ({"model": "b"}, [other, new]),
            ({"status": Status.QUEUED}, [new, old]),
            ({"status": {Status.CANCELLED, Status.FAILED}}, [other]),
            ({"status": []}, []),
            ({"metadata": {"who": "x"}}, [new, old]),
            ({"metadata": {"n": 1}}, [old]),
            ({"created_after": between}, [other, new]),
            ({"created_before": between}, [old]),
            ({"model": "b", "status": Status.QUEUED}, [new]),
        ]
        for filters, expected in cases:
            found = [job.id for job in (await store.list(**filters)).jobs]
            assert found == [job.id for job in expected], filters

    async def test_artifacts_come_along(self, store: JobStore) -> None:
        await make(store)
        await succeed(store, await take(store), artifacts=[artifact("a.mp4")])
        assert (await store.list()).jobs[0].artifacts == (artifact("a.mp4"),)

    @pytest.mark.parametrize("cursor", ["x", "", "é", "AAAA", "a" * 500])
    async def test_a_cursor_that_is_none_is_refused_by_name(self, store: JobStore, cursor: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await store.list(after=cursor)
        assert [detail.path for detail in caught.value.details] == ["after"]


class TestPosition:
    async def test_it_counts_what_goes_first_in_the_same_pool(self, store: JobStore) -> None:
        first, second = await make(store), await make(store)
        urgent = await make(store, priority=5)
        await make(store, pool="gpu")
        positions = {}
        for job in (first, second, urgent):
            positions[job.id] = (await store.get(job.id, position=True)).position
        assert positions == {first.id: 1, second.id: 2, urgent.id: 0}
        await take(store)
        assert (await store.get(first.id, position=True)).position == 0
        assert (await store.get(urgent.id, position=True)).position is None
        assert (await store.get(first.id)).position is None

    async def test_beyond_the_cap_it_is_not_said(self, store: JobStore) -> None:
        await store.submit_batch([submission() for _ in range(1002)])
        last = await make(store)
        assert (await store.get(last.id, position=True)).position is None
        assert await store.queue_depth(cap=10_000) == 1003
        assert await store.queue_depth(cap=500) == 500


class TestCancel:
    async def test_a_waiting_job_ends_at_once(self, store: JobStore) -> None:
        job = await make(store, webhook_url="https://example.com", sealed=b"secret")
        cancelled = await store.cancel(job.id)
        assert (cancelled.status, cancelled.error) == (
            Status.CANCELLED,
            JobError("cancelled", "The job was cancelled."),
        )
        assert await tickets(store) == 0
        assert await try_take(store) is None
        assert await sql(store, "SELECT count(*) FROM webhook WHERE job_id = $1", UUID(job.id)) == 1
        assert await sql(store, "SELECT sealed FROM job") is None

    async def test_a_running_job_hears_of_it_with_its_next_beat(self, store: JobStore) -> None:
        job = await make(store)
        taken = await take(store)
        asked = await store.cancel(job.id)
        assert (asked.status, asked.cancel_requested) == (Status.RUNNING, True)
        assert (await store.beat(job.id, taken.attempt)).cancel_requested
        assert await store.cancelled(job.id, taken.attempt, timings={"generating_s": 0.5})
        ended = await store.get(job.id)
        assert (ended.status, ended.timings["generating_s"]) == (Status.CANCELLED, 0.5)

    async def test_an_ended_job_stays_as_it_is(self, store: JobStore) -> None:
        await make(store)
        taken = await take(store)
        await succeed(store, taken)
        before = await store.get(taken.job.id)
        assert await store.cancel(taken.job.id) == before

    async def test_a_running_job_whose_worker_is_gone_ends_at_once(self, store: JobStore) -> None:
        job = await make(store)
        await take(store)
        await age(store, job.id, beat_at=60)
        assert (await store.cancel(job.id)).status is Status.CANCELLED
        assert await tickets(store) == 0


async def test_secrets_are_handed_to_the_run_and_erased_with_the_end(store: JobStore) -> None:
    await make(store, sealed=b"cipher")
    taken = await take(store)
    assert taken.sealed == b"cipher"
    await succeed(store, taken)
    assert await sql(store, "SELECT sealed FROM job") is None


async def test_a_made_secret_is_the_same_for_everybody(store: JobStore) -> None:
    values = await asyncio.gather(*(store.secret("url") for _ in range(5)), store.secret("webhook"))
    assert len(set(values[:5])) == 1
    assert values[5] != values[0]
    assert {len(value) for value in values} == {32}


async def test_workers_are_seen_while_they_announce_themselves(store: JobStore) -> None:
    await store.announce("a", pool="cpu", slots=2, version="1")
    await store.announce("b", pool="gpu", slots=1, version="1")
    await store.announce("a", pool="cpu", slots=3, version="1", facts={"held": ["x"]})
    seen = await store.workers(within_s=10)
    assert [(w.name, w.pool, w.slots, w.facts) for w in seen] == [("a", "cpu", 3, {"held": ["x"]}), ("b", "gpu", 1, {})]
    await store.depart("b")
    await sql(store, "UPDATE worker SET seen_at = seen_at - interval '1 minute'")
    assert await store.workers(within_s=10) == []

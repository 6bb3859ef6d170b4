"""A worker carries jobs from the queue to their ends, whatever their children, the storage or the database do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from uuid import UUID

import asyncpg
import psutil
import pytest

from mediamill import catalog
from mediamill.catalog import Entry
from mediamill.catalog.fake import FakeRequest
from mediamill.config import Settings
from mediamill.errors import StorageRefused, StorageUnavailable
from mediamill.jobs.store import JobStore, Rules, Submission
from mediamill.jobs.sweep import Sweeper
from mediamill.model import Job, Phase, Status, StoredObject
from mediamill.storage import LocalUrls
from mediamill.storage.memory import MemoryStorage
from tests.fixtures_db import TestServer
from tests.jobs.workshop import Workshop
from tests.store_steps import sql


@pytest.fixture
def database_server(embedded_server: TestServer) -> TestServer:
    """One server is enough: what differs between servers is in the store's tests."""
    return embedded_server


def settings_in(folder: Path, **rest: object) -> Settings:
    return Settings(**{"data_dir": folder, "fake_engines": "all", "cancel_grace_s": 20, **rest})


@pytest.fixture
def workshop(store: JobStore, tmp_path: Path) -> Workshop:
    return Workshop(store, settings_in(tmp_path))


@pytest.fixture
async def closing() -> AsyncIterator[contextlib.AsyncExitStack]:
    """For what a test opens and has to close even when it fails."""
    async with contextlib.AsyncExitStack() as stack:
        yield stack


class Troubled(MemoryStorage):
    """Fails some puts; calls back after each, and after each copy."""

    def __init__(self, *errors: Exception, after_put: object = None, after_copy: object = None) -> None:
        super().__init__(LocalUrls("http://files", b"secret"))
        self.errors = list(errors)
        self.puts = 0
        self.after_put = after_put
        self.after_copy = after_copy

    async def copy(self, source_key: str, key: str) -> None:
        await super().copy(source_key, key)
        if callable(self.after_copy):
            await self.after_copy(source_key)

    async def put(self, key: str, source: Path, *, media_type: str) -> StoredObject:
        self.puts += 1
        if self.errors:
            raise self.errors.pop(0)
        stored = await super().put(key, source, media_type=media_type)
        if callable(self.after_put):
            await self.after_put(key)
        return stored


def at_once(jobs: list[Job]) -> int:
    """The most of these ended jobs that ran at the same time."""
    marks = [(j.started_at, 1) for j in jobs] + [(j.finished_at, -1) for j in jobs]
    running = most = 0
    for _, change in sorted(marks):
        running += change
        most = max(most, running)
    return most


async def test_a_job_ends_with_its_bytes_and_leaves_nothing_else(workshop: Workshop, tmp_path: Path) -> None:
    async with workshop.working():
        job = await workshop.end_of(await workshop.make(kind="video", duration_s=0.5, fps=12))
        (artifact,) = job.artifacts
        assert (job.status, job.progress, job.attempt) == (Status.SUCCEEDED, 1.0, 1)
        assert (artifact.key, artifact.media_type) == (f"outputs/{job.id}/output.mp4", "video/mp4")
        assert (artifact.facts.frames, artifact.facts.fps, artifact.facts.has_audio) == (6, 12, True)
        stored = await workshop.storage.stat(artifact.key)
        assert (stored.size_bytes, stored.sha256) == (artifact.size_bytes, artifact.sha256)
        assert job.output == {"fake": True, "seed": 1}
        assert {"queued_s", "fetching_s", "loading_s", "encoding_s", "uploading_s"} <= set(job.timings)
    assert await workshop.keys() == [artifact.key]
    assert list((tmp_path / "work").iterdir()) == []


async def test_exactly_as_many_at_once_as_there_are_slots(workshop: Workshop) -> None:
    jobs = [await workshop.make(work_s=0.3) for _ in range(5)]
    async with workshop.working(slots=2):
        ended = [await workshop.end_of(job) for job in jobs]
    assert {job.status for job in ended} == {Status.SUCCEEDED}
    assert at_once(ended) == 2
    assert len(workshop.providers) == 2


async def test_progress_is_true_rises_and_comes_at_most_four_times_a_second(workshop: Workshop) -> None:
    seen: list[Job] = []
    async with workshop.working():
        job = await workshop.make(work_s=1.2)
        while not (now := await workshop.store.get(job.id)).status.ended:
            seen.append(now)
            await asyncio.sleep(0.01)
    fractions = [j.progress for j in seen]
    assert fractions == sorted(fractions)
    took_s = (await workshop.store.get(job.id)).timings["generating_s"]
    assert 2 <= len({j.progress for j in seen if j.phase is Phase.GENERATING}) <= 4 * took_s + 3


@pytest.fixture
def filed() -> Iterator[str]:
    """A model whose results go to a folder of the caller's."""
    entry = Entry(
        "filed", "", FakeRequest, engine="fake", output_kind="image", key_prefix=lambda _request: "project/clips/"
    )
    catalog.register(entry)
    catalog.load.cache_clear()
    yield entry.name
    del catalog._entries[entry.name]
    catalog.load.cache_clear()


@pytest.fixture
def two_models() -> Iterator[tuple[str, str]]:
    names = ("model-a", "model-b")
    for name in names:
        catalog.register(Entry(name, "", FakeRequest, engine="fake", output_kind="image"))
    catalog.load.cache_clear()
    yield names
    for name in names:
        del catalog._entries[name]
    catalog.load.cache_clear()


async def test_a_slot_prefers_jobs_of_the_model_it_holds(workshop: Workshop, two_models: tuple[str, str]) -> None:
    jobs = [await workshop.make(model) for _ in range(3) for model in two_models]
    async with workshop.working():
        ended = [await workshop.end_of(job) for job in jobs]
    ended.sort(key=lambda job: job.started_at or job.created_at)
    assert [job.model for job in ended] == ["model-a"] * 3 + ["model-b"] * 3


async def test_a_cancelled_job_stops_and_its_child_goes_on(workshop: Workshop) -> None:
    async with workshop.working():
        job = await workshop.make(work_s=600)
        await workshop.generating(job)
        child = workshop.providers[0].child_pid
        await workshop.store.cancel(job.id)
        ended = await workshop.end_of(job)
        assert (ended.status, ended.artifacts) == (Status.CANCELLED, ())
        assert ended.timings["generating_s"] > 0
        assert (await workshop.end_of(await workshop.make())).status is Status.SUCCEEDED
        assert workshop.providers[0].child_pid == child
    assert [key for key in await workshop.keys() if job.id in key] == []


async def test_the_caller_sees_the_cancel_while_a_child_uses_up_its_grace(store: JobStore, tmp_path: Path) -> None:
    workshop = Workshop(store, settings_in(tmp_path, cancel_grace_s=2.5))
    async with workshop.working():
        job = await workshop.make(work_s=600, misbehave="ignore_cancel")
        await workshop.generating(job)
        child = workshop.providers[0].child_pid
        await store.cancel(job.id)
        assert (await workshop.end_of(job)).status is Status.CANCELLED
        assert child is not None
        assert psutil.pid_exists(child), "the row did not wait for the child"
        assert (await workshop.end_of(await workshop.make())).status is Status.SUCCEEDED
        assert not psutil.pid_exists(child)


async def test_a_cancel_before_the_result_is_out_lets_nothing_out(store: JobStore, tmp_path: Path, filed: str) -> None:
    async def cancel(key: str) -> None:
        await store.cancel(key.split("/")[1])

    workshop = Workshop(store, settings_in(tmp_path), Troubled(after_put=cancel))
    async with workshop.working():
        ended = await workshop.end_of(await workshop.make(filed))
    assert (ended.status, ended.artifacts, await workshop.keys()) == (Status.CANCELLED, (), [])


async def test_a_cancel_while_the_result_is_let_out_is_too_late(store: JobStore, tmp_path: Path, filed: str) -> None:
    async def cancel(staged_key: str) -> None:
        await store.cancel(staged_key.split("/")[1])
        await asyncio.sleep(0.8)

    workshop = Workshop(store, settings_in(tmp_path), Troubled(after_copy=cancel))
    async with workshop.working():
        ended = await workshop.end_of(await workshop.make(filed))
    assert (ended.status, [a.key for a in ended.artifacts]) == (Status.SUCCEEDED, ["project/clips/output.png"])
    assert await workshop.keys() == ["project/clips/output.png"]


async def test_a_result_that_takes_too_long_to_let_out_is_taken_back(
    store: JobStore, tmp_path: Path, filed: str
) -> None:
    async def cancel(staged_key: str) -> None:
        await store.cancel(staged_key.split("/")[1])
        await asyncio.sleep(600)

    storage = Troubled(after_copy=cancel)
    workshop = Workshop(store, settings_in(tmp_path), storage)
    async with workshop.working():
        ended = await workshop.end_of(await workshop.make(filed))
    assert (ended.status, ended.artifacts, await workshop.keys()) == (Status.CANCELLED, (), [])
    storage.after_copy = None
    async with workshop.working():
        first = await workshop.end_of(await workshop.make(filed))
        storage.after_copy = cancel
        again = await workshop.end_of(await workshop.make(filed))
    assert (first.status, again.status) == (Status.SUCCEEDED, Status.CANCELLED)
    assert await workshop.keys() == [a.key for a in first.artifacts], "another job's result stays"


async def test_a_child_that_crashes_three_times_fails_its_job_and_not_the_worker(
    database_url: str, tmp_path: Path
) -> None:
    async with await JobStore.open(database_url, Rules(crash_delay_s=0.05)) as store:
        workshop = Workshop(store, settings_in(tmp_path))
        async with workshop.working():
            job = await workshop.end_of(await workshop.make(misbehave="crash"))
            assert (job.status, job.attempt) == (Status.FAILED, 3)
            assert job.error is not None
            assert job.error.code == "crashed"
            assert "SIGSEGV" in job.error.message
            assert (await workshop.end_of(await workshop.make())).status is Status.SUCCEEDED


async def test_a_failure_of_the_engine_is_told_and_not_repeated(workshop: Workshop) -> None:
    async with workshop.working():
        job = await workshop.end_of(await workshop.make(misbehave="oom"))
    assert (job.status, job.attempt) == (Status.FAILED, 1)
    assert job.error is not None
    assert (job.error.code, "lower width" in job.error.message) == ("out_of_memory", True)


async def test_a_run_past_its_time_limit_fails(workshop: Workshop) -> None:
    values = {"kind": "image", "width": 32, "height": 32, "work_s": 600}
    async with workshop.working():
        job, _ = await workshop.store.submit(Submission("fake", values, "cpu", run_timeout_s=0.5))
        ended = await workshop.end_of(job)
    assert ended.error is not None
    assert (ended.error.code, "0.5 s" in ended.error.message) == ("deadline_exceeded", True)


async def test_an_input_that_the_catalog_does_not_accept_ends_the_job(workshop: Workshop) -> None:
    async with workshop.working():
        job = await workshop.end_of(await workshop.make(width=-1))
    assert job.error is not None
    assert job.error.code == "internal"


async def test_a_held_interpreter_lock_costs_no_lease(database_url: str, tmp_path: Path) -> None:
    async with await JobStore.open(database_url, Rules(lease_s=1.0)) as store:
        one, other = (Workshop(store, settings_in(tmp_path / name)) for name in "ab")
        async with one.working(), other.working():
            job = await one.end_of(await one.make(misbehave="gil", work_s=2.2))
        assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)


async def test_a_lost_lease_stops_the_work_and_nothing_is_written(workshop: Workshop) -> None:
    async with workshop.working():
        job = await workshop.make(work_s=600)
        await workshop.generating(job)
        await sql(workshop.store, "UPDATE job SET attempt = attempt + 1 WHERE id = $1", UUID(job.id))
        assert (await workshop.end_of(await workshop.make())).status is Status.SUCCEEDED, "the slot is free again"
        now = await workshop.store.get(job.id)
        assert (now.status, now.attempt, now.error) == (Status.RUNNING, 2, None)
    assert [key for key in await workshop.keys() if job.id in key] == []


async def test_what_was_made_by_an_attempt_that_is_not_the_last_is_never_published(
    store: JobStore, tmp_path: Path
) -> None:
    async def take_over(key: str) -> None:
        await sql(store, "UPDATE job SET attempt = attempt + 1 WHERE id = $1", UUID(key.split("/")[1]))

    workshop = Workshop(store, settings_in(tmp_path), Troubled(after_put=take_over))
    async with workshop.working():
        job = await workshop.make()
        await workshop.until(job, lambda j: j.attempt == 2)
        async with asyncio.timeout(30):
            while await workshop.keys():
                await asyncio.sleep(0.02)
    now = await store.get(job.id)
    assert (now.status, now.artifacts) == (Status.RUNNING, ())


async def test_a_storage_that_hiccups_costs_no_second_run(store: JobStore, tmp_path: Path) -> None:
    away = [StorageUnavailable("The bucket does not answer.") for _ in range(2)]
    workshop = Workshop(store, settings_in(tmp_path), Troubled(*away))
    async with workshop.working():
        job = await workshop.end_of(await workshop.make())
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)


async def test_a_storage_that_refuses_fails_the_job_and_its_address_stays_in_the_log(
    store: JobStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workshop = Workshop(
        store, settings_in(tmp_path), Troubled(StorageRefused("The bucket 'b' refused: quota exceeded."))
    )
    async with workshop.working():
        job = await workshop.end_of(await workshop.make())
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("storage_refused", "The storage refused the operation.")
    assert "The bucket 'b' refused: quota exceeded." in caplog.text


async def test_where_weights_should_lie_stays_in_the_log(
    store: JobStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = str(tmp_path / "no weights")
    workshop = Workshop(store, settings_in(tmp_path, fake_engines="", model_locations={"ZIMAGE": away}))
    async with workshop.working():
        job = await workshop.end_of(await workshop.make("zimage", prompt="a fox", width=64, height=64))
    assert job.error is not None
    assert (job.error.code, str(tmp_path) in job.error.message) == ("model_unavailable", False)
    assert "MEDIAMILL_MODEL_ZIMAGE" in job.error.message
    assert away in caplog.text


class Silent(MemoryStorage):
    """Takes every request and never answers, once `silent` is set."""

    def __init__(self) -> None:
        super().__init__(LocalUrls("http://files", b"secret"))
        self.silent = False

    async def put(self, key: str, source: Path, *, media_type: str) -> StoredObject:
        await self._answer()
        return await super().put(key, source, media_type=media_type)

    async def delete(self, key: str) -> None:
        await self._answer()
        await super().delete(key)

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, datetime]]:
        await self._answer()
        async for found in super().list(prefix):
            yield found

    async def _answer(self) -> None:
        while self.silent:
            await asyncio.sleep(0.05)


async def test_a_storage_that_never_answers_keeps_no_slot_and_no_worker(store: JobStore, tmp_path: Path) -> None:
    storage = Silent()
    sweeper = Sweeper(store, storage, tmp_path / "work")
    workshop = Workshop(store, settings_in(tmp_path, drain_s=0.2), storage)
    values = {"kind": "image", "width": 32, "height": 32}
    async with asyncio.timeout(60), workshop.working(sweeper=sweeper):
        await workshop.end_of(await workshop.make())  # a child that has loaded: the second below is for the storage
        storage.silent = True
        job, _ = await store.submit(Submission("fake", values, "cpu", run_timeout_s=1))
        ended = await workshop.end_of(job)
        assert ended.error is not None
        assert (ended.error.code, "uploading" in ended.error.message) == ("deadline_exceeded", True)
        await workshop.running(await workshop.make(work_s=600))
        workshop.stop.set()


async def test_draining_ends_what_runs_and_takes_nothing_more(workshop: Workshop) -> None:
    async with workshop.working() as working:
        running, waiting = await workshop.make(work_s=0.6), await workshop.make()
        await workshop.generating(running)
        workshop.stop.set()
        await working
    assert (await workshop.store.get(running.id)).status is Status.SUCCEEDED
    left = await workshop.store.get(waiting.id)
    assert (left.status, left.attempt) == (Status.QUEUED, 0)
    assert await workshop.store.workers(within_s=60) == []


@pytest.mark.parametrize("how", ["drain limit", "second signal"])
async def test_a_worker_that_has_to_go_hands_its_job_back_for_free(store: JobStore, tmp_path: Path, how: str) -> None:
    workshop = Workshop(store, settings_in(tmp_path, drain_s=0.2 if how == "drain limit" else 600))
    working = asyncio.create_task(workshop.worker().run(workshop.stop))
    job = await workshop.make(work_s=3)
    await workshop.generating(job)
    child = workshop.providers[0].child_pid
    workshop.stop.set()
    if how == "second signal":
        await asyncio.sleep(0.05)
        working.cancel()
    await asyncio.wait([working])
    left = await store.get(job.id)
    assert (left.status, left.attempt, left.error) == (Status.QUEUED, 1, None)
    assert child is not None
    assert not psutil.pid_exists(child)
    workshop.stop.clear()
    async with workshop.working():
        ended = await workshop.end_of(job)
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 2)


async def test_a_read_only_database_costs_neither_the_worker_nor_the_work(
    workshop: Workshop, database_url: str, closing: contextlib.AsyncExitStack
) -> None:
    name = await sql(workshop.store, "SELECT current_database()")
    admin = await asyncpg.connect(database_url, server_settings={"default_transaction_read_only": "off"})
    closing.push_async_callback(admin.close)

    async def read_only(on: bool) -> None:
        change = "SET default_transaction_read_only = on" if on else "RESET default_transaction_read_only"
        await admin.execute(f"ALTER DATABASE {name} {change}")
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    async with workshop.working():
        job = await workshop.make(work_s=0.5)
        await workshop.generating(job)
        await read_only(on=True)
        async with asyncio.timeout(30):
            while not await workshop.keys("attempts"):
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        assert (await workshop.until(job, lambda _: True)).status is Status.RUNNING
        await read_only(on=False)
        ended = await workshop.end_of(job)
        assert (ended.status, ended.attempt, len(ended.artifacts)) == (Status.SUCCEEDED, 1, 1)
        assert (await workshop.end_of(await workshop.make())).status is Status.SUCCEEDED


async def test_a_worker_says_that_it_is_there_and_what_it_holds(workshop: Workshop) -> None:
    async with workshop.working(pool="cpu", slots=2):
        async with asyncio.timeout(30):
            while not (seen := await workshop.store.workers(within_s=60)):
                await asyncio.sleep(0.02)
        assert [(w.pool, w.slots, w.facts["held"]) for w in seen] == [("cpu", 2, [])]
    assert await workshop.store.workers(within_s=60) == []


async def test_a_killed_child_costs_one_attempt(database_url: str, tmp_path: Path) -> None:
    async with await JobStore.open(database_url, Rules(crash_delay_s=0.05)) as store:
        workshop = Workshop(store, settings_in(tmp_path))
        async with workshop.working():
            job = await workshop.make(work_s=0.8)
            await workshop.generating(job)
            child = workshop.providers[0].child_pid
            assert child is not None
            os.kill(child, signal.SIGKILL)
            ended = await workshop.end_of(job)
        assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 2)

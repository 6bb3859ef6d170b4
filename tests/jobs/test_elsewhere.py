"""A job's work on RunPod outlives whoever watched it, is paid for once, and ends when the job does."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from mediamill.config import Settings
from mediamill.errors import Misconfigured
from mediamill.inputs import Inputs, UrlGuard
from mediamill.jobs.elsewhere import LeftElsewhere
from mediamill.jobs.files import Files
from mediamill.jobs.places import opened_place
from mediamill.jobs.store import JobStore, Rules, Submission
from mediamill.jobs.worker import Worker, WorkerDeps
from mediamill.model import Job, Status
from mediamill.storage import LocalUrls
from mediamill.storage.memory import MemoryStorage
from tests.fixtures_db import TestServer
from tests.media_samples import still
from tests.runpod_host import IN_PROGRESS, KEY, RunPodHost, completed, hosting, inline
from tests.store_steps import sql, take


@pytest.fixture
def database_server(embedded_server: TestServer) -> TestServer:
    """One server is enough: what differs between servers is in the store's tests."""
    return embedded_server


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[JobStore]:
    """Leases are short: tests wait for one."""
    async with await JobStore.open(database_url, Rules(lease_s=1.0)) as opened:
        yield opened


@pytest.fixture
def host() -> Iterator[RunPodHost]:
    with hosting(endpoints={"ep-any"}) as started:
        yield started


@pytest.fixture
def picture(tmp_path: Path) -> bytes:
    return still(tmp_path / "sample.png", 64, 48).read_bytes()


class Yard:
    """Remote workers on one store and one host."""

    def __init__(self, store: JobStore, host: RunPodHost, folder: Path) -> None:
        self.store, self.host, self.folder = store, host, folder
        self.storage = MemoryStorage(LocalUrls("http://files", b"secret"))
        self.settings = Settings(
            _env_file=None,
            data_dir=folder,
            lease_s=1.0,
            drain_s=0.1,
            runpod_api_key=KEY,
            runpod_base_url=host.base_url,
            runpod_endpoint_id="ep-any",
            routes={"fake": "runpod"},
        )

    @contextlib.asynccontextmanager
    async def deps(self) -> AsyncIterator[WorkerDeps]:
        guard = UrlGuard(())
        inputs = Inputs(cache_dir=self.folder / "c", storage=self.storage, guard=guard, cache_bytes=1, timeout_s=5)
        async with opened_place(self.settings, "remote", Files(self.storage, guard, inputs)) as place:
            assert place.end is not None
            left = LeftElsewhere(self.store, place.end)
            yield WorkerDeps(self.settings, self.store, self.storage, place.inputs, place.slot, left_elsewhere=left)

    @contextlib.asynccontextmanager
    async def working(self, *, slots: int = 4) -> AsyncIterator[asyncio.Task[None]]:
        """A worker that is told to go, and drained, at the end."""
        stop = asyncio.Event()
        async with self.deps() as deps:
            task = asyncio.create_task(Worker(deps, pool="remote", slots=slots).run(stop))
            try:
                yield task
            finally:
                stop.set()
                await asyncio.wait({task})

    async def make(self, **values: Any) -> Job:
        asked = {"kind": "image", "width": 64, "height": 48, "seed": 1}
        job, _ = await self.store.submit(Submission(model="fake", input=asked, pool="remote", **values))
        return job

    async def until(self, job: Job, what: Callable[[Job], object]) -> Job:
        async with asyncio.timeout(30):
            while not what(found := await self.store.get(job.id)):
                await asyncio.sleep(0.02)
        return found

    async def ended(self, job: Job) -> Job:
        return await self.until(job, lambda j: j.status.ended)

    async def on_host(self, count: int = 1) -> None:
        """That many jobs have come there, and their handles lie in rows."""
        async with asyncio.timeout(30):
            while len(self.host.jobs) < count or await self.handles() < count:
                await asyncio.sleep(0.02)

    async def handles(self) -> int:
        return int(await sql(self.store, "SELECT count(*) FROM job WHERE elsewhere IS NOT NULL"))

    async def seen(self, look: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not look():
                await asyncio.sleep(0.02)


@pytest.fixture
def yard(store: JobStore, host: RunPodHost, tmp_path: Path) -> Yard:
    return Yard(store, host, tmp_path)


async def test_a_job_ends_with_its_file_and_leaves_nothing(yard: Yard, picture: bytes) -> None:
    yard.host.script = lambda _body: [
        {**IN_PROGRESS, "output": {"progress": 0.5}},
        completed(inline("output.png", picture, "image/png"), output={"seed": 1}, warnings=["Small."]),
    ]
    async with yard.working():
        job = await yard.ended(await yard.make())
        assert await yard.handles() == 0
    (artifact,) = job.artifacts
    assert (job.status, job.output, job.warnings) == (Status.SUCCEEDED, {"seed": 1}, ("Small.",))
    assert (artifact.key, artifact.facts.width_px, artifact.facts.height_px) == (f"outputs/{job.id}/output.png", 64, 48)
    assert {"queued_s", "loading_s", "generating_s", "uploading_s"} <= job.timings.keys()
    assert b"".join([c async for c in yard.storage.open(artifact.key)]) == picture
    assert (len(yard.host.jobs), yard.host.cancels) == (1, [])


async def test_a_worker_that_is_told_to_go_leaves_the_work_there_for_the_next_one(yard: Yard, picture: bytes) -> None:
    async with yard.working():
        job = await yard.make()
        await yard.on_host()
    handed_back = await yard.store.get(job.id)
    assert (handed_back.status, handed_back.attempt) == (Status.QUEUED, 1)
    (there,) = yard.host.jobs.values()
    there.states = [completed(inline("output.png", picture))]
    async with yard.working():
        done = await yard.ended(job)
    assert (done.status, done.attempt) == (Status.SUCCEEDED, 2)
    assert (len(yard.host.jobs), yard.host.cancels) == (1, [])


async def test_a_job_whose_worker_was_lost_goes_on_there(yard: Yard, picture: bytes) -> None:
    """The row says that it runs, and nobody beats."""
    async with yard.deps() as deps:
        job = await yard.make()
        lost = Worker(deps, pool="remote", slots=1)
        task = asyncio.create_task(lost.run(asyncio.Event()))
        await yard.on_host()
        slots = [slot.carry for slot in lost._slots if slot.carry is not None]
        await sql(yard.store, "UPDATE job SET attempt = attempt + 1 WHERE id = $1", UUID(job.id))  # somebody else's now
        await yard.seen(lambda: all(carry.interrupt == "lease lost" for carry in slots))
        task.cancel()
        await asyncio.wait({task})
    assert yard.host.cancels == []
    next(iter(yard.host.jobs.values())).states = [completed(inline("output.png", picture))]
    async with yard.working():
        done = await yard.ended(job)
    assert (done.status, done.attempt, len(yard.host.jobs)) == (Status.SUCCEEDED, 3, 1)


async def test_a_cancel_reaches_the_work_there(yard: Yard) -> None:
    async with yard.working():
        job = await yard.make()
        await yard.on_host()
        await yard.store.cancel(job.id)
        assert (await yard.ended(job)).status is Status.CANCELLED
        await yard.seen(lambda: yard.host.cancels == list(yard.host.jobs))
    assert await yard.handles() == 0


async def test_a_job_that_was_cancelled_while_nobody_watched_is_cancelled_there_too(yard: Yard) -> None:
    async with yard.working():
        job = await yard.make()
        await yard.on_host()
    assert (await yard.store.cancel(job.id)).status is Status.CANCELLED
    assert yard.host.cancels == []
    yard.host.trouble["cancel"] = deque([503, "drop"])
    async with yard.working():
        await yard.seen(lambda: yard.host.cancels)
    assert yard.host.cancels == list(yard.host.jobs)
    assert await yard.handles() == 0


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ({"status": "FAILED", "error": "CUDA out of memory"}, "out_of_memory"),
        ({"status": "COMPLETED", "output": {"artifacts": [inline("a.png", b"nonsense")]}}, "provider_error"),
        (IN_PROGRESS, "deadline_exceeded"),
    ],
)
async def test_a_job_that_failed_here_is_over_there(yard: Yard, state: dict[str, Any], code: str) -> None:
    yard.host.script = lambda _body: [state]
    async with yard.working():
        job = await yard.ended(await yard.make(run_timeout_s=1.5))
        assert (job.status, job.error and job.error.code) == (Status.FAILED, code)
        await yard.seen(lambda: yard.host.cancels == list(yard.host.jobs))
    assert await yard.handles() == 0


async def test_a_stale_attempt_keeps_nothing_and_its_work_is_cancelled(yard: Yard) -> None:
    job = await yard.make()
    taken = await take(yard.store, pools=("remote",))
    assert not await yard.store.keep_elsewhere(job.id, taken.attempt + 1, "runpod:ep-any/x")
    assert await yard.store.keep_elsewhere(job.id, taken.attempt, "runpod:ep-any/x")
    assert await yard.store.left_elsewhere() == {}
    await yard.store.hand_back(job.id, taken.attempt)
    again = await take(yard.store, pools=("remote",))
    assert again.elsewhere == "runpod:ep-any/x"
    await yard.store.cancelled(job.id, again.attempt, timings={})
    assert await yard.store.left_elsewhere() == {job.id: "runpod:ep-any/x"}
    await yard.store.ended_elsewhere(job.id, "runpod:ep-any/another")
    assert await yard.store.left_elsewhere() == {job.id: "runpod:ep-any/x"}
    await yard.store.ended_elsewhere(job.id, "runpod:ep-any/x")
    assert await yard.store.left_elsewhere() == {}


async def test_a_remote_worker_without_a_key_does_not_start(yard: Yard) -> None:
    files = Files(yard.storage, UrlGuard(()), None)  # type: ignore[arg-type]
    with pytest.raises(Misconfigured, match="RUNPOD_API_KEY"):
        async with opened_place(yard.settings.unrouted(), "remote", files):
            pass

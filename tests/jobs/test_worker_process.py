"""A worker process that freezes past its lease, and one that is killed: another finishes the job, exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from mediamill.config import Settings
from mediamill.jobs.store import JobStore, Rules, Submission
from mediamill.jobs.sweep import Sweeper
from mediamill.model import Job, Status
from mediamill.storage import open_storage
from tests.chaos import worker
from tests.fixtures_db import TestServer
from tests.jobs.workshop import Workshop
from tests.media_samples import still
from tests.store_steps import silence

LEASE_S = 1.5
_WORKER = """
import asyncio, signal, sys
from mediamill.config import Settings
from mediamill.jobs.worker import run_worker

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await run_worker(Settings(), pool="cpu", slots=1, stop=stop)

asyncio.run(main())
"""


@pytest.fixture
def database_server(embedded_server: TestServer) -> TestServer:
    """One server is enough: what differs between servers is in the store's tests."""
    return embedded_server


@contextlib.asynccontextmanager
async def worker_process(database_url: str, folder: Path, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`command`: arguments of Python; none: a plain worker."""
    environment = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": database_url,
        "MEDIAMILL_DATA_DIR": str(folder),
        "MEDIAMILL_LEASE_SECONDS": str(LEASE_S),
        "MEDIAMILL_FAKE_ENGINES": "all",
        "MEDIAMILL_CANCEL_GRACE_SECONDS": "0.3",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(command or ("-c", _WORKER)),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=log,
            env=environment,
            cwd=folder,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_frozen_then_a_killed_worker(database_url: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, fake_engines="all", storage_mode="file", cancel_grace_s=0.3)
    storage = open_storage(settings, public_url="http://127.0.0.1", secret=b"secret")
    async with (
        await JobStore.open(database_url, Rules(lease_s=LEASE_S)) as store,
        worker_process(database_url, tmp_path) as process,
    ):
        workshop = Workshop(store, settings, storage)

        async def ours_after_theirs(stopped_by: signal.Signals) -> Job:
            """A job that the process starts and, having lost it, another worker ends."""
            job = await workshop.make(kind="video", duration_s=0.2, work_s=2.0)
            await workshop.generating(job)
            process.send_signal(stopped_by)
            async with workshop.working():
                return await workshop.end_of(job)

        first = await ours_after_theirs(signal.SIGSTOP)
        assert (first.status, first.attempt, len(first.artifacts)) == (Status.SUCCEEDED, 2, 1)
        process.send_signal(signal.SIGCONT)
        second = await workshop.end_of(await workshop.make())
        assert second.status is Status.SUCCEEDED, "the woken worker goes on"
        assert await store.get(first.id) == first, "it changed nothing of what it had lost"

        children = psutil.Process(process.pid).children(recursive=True)
        third = await ours_after_theirs(signal.SIGKILL)
        assert (third.status, third.attempt) == (Status.SUCCEEDED, 2)
        _, alive = await asyncio.to_thread(psutil.wait_procs, children, timeout=10)
        assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []

        for job in (first, third):
            (artifact,) = job.artifacts
            stored = await storage.stat(artifact.key)
            assert (stored.size_bytes, artifact.facts.frames) == (artifact.size_bytes, 5)
        await Sweeper(store, storage, settings.scratch_root, stray_after_s=0).sweep_strays()
        assert [key async for key, _ in storage.list("attempts")] == []
        await storage.close()


async def test_what_a_killed_worker_had_published_goes_with_the_cancelled_job(
    database_url: str, tmp_path: Path
) -> None:
    """Into a caller's own folder, where nothing but the job's row tells whose a file is."""
    settings = Settings(data_dir=tmp_path, storage_mode="file")
    storage = open_storage(settings, public_url="http://127.0.0.1", secret=b"secret")
    photo = still(tmp_path / "photo.png", 64, 36)
    (tmp_path / "bombs").mkdir()
    (tmp_path / "bombs" / "published.kill").touch()
    script = Path(worker.__file__)
    async with (
        await JobStore.open(database_url, Rules(lease_s=LEASE_S)) as store,
        worker_process(database_url, tmp_path, str(script), str(tmp_path / "bombs"), "1") as process,
    ):
        await storage.put("uploads/u/photo.png", photo, media_type="image/png")
        stills = [{"id": "1", "image_url": "file:uploads/u/photo.png", "duracao": 0.1}]
        job, _ = await store.submit(Submission("img2vid", {"images": stills, "path": "Project/"}, "cpu"))
        assert await process.wait() == -signal.SIGKILL
        assert [key async for key, _ in storage.list("Project")] == ["Project/video_1.mp4"]
        await silence(store, job.id, 60)
        assert (await store.cancel(job.id)).status is Status.CANCELLED
        await Sweeper(store, storage, settings.scratch_root, stray_after_s=0).sweep()
        assert [key async for key, _ in storage.list("Project")] == []
        await storage.close()

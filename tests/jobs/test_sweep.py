"""The sweep deletes what nobody wants any more, and nothing else."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mediamill.errors import StorageRefused
from mediamill.jobs.store import JobStore, new_id
from mediamill.jobs.sweep import Sweeper, remove_abandoned, scratch_folder
from mediamill.model import Job, Status
from mediamill.storage import LocalUrls
from mediamill.storage.memory import MemoryStorage
from tests.fixtures_db import TestServer
from tests.store_steps import age, artifact, make, sql, succeed, take

HOUR_S = 3600.0
DAY_S = 86_400.0


@pytest.fixture
def database_server(embedded_server: TestServer) -> TestServer:
    """One server is enough: what differs between servers is in the store's tests."""
    return embedded_server


class Aged(MemoryStorage):
    """Objects of a chosen age."""

    def __init__(self, folder: Path) -> None:
        super().__init__(LocalUrls("http://files", b"secret"))
        self.source = folder / "bytes"
        self.source.write_bytes(b"bytes")
        self.ages_s: dict[str, float] = {}
        self.stuck: set[str] = set()
        self.refusals = 0

    async def hold(self, ages_s: Mapping[str, float]) -> None:
        for key, age_s in ages_s.items():
            await self.put(key, self.source, media_type="video/mp4")
            self.ages_s[key] = age_s

    async def delete(self, key: str) -> None:
        if key in self.stuck:
            self.refusals += 1
            raise StorageRefused("The bucket refused: the object is locked.")
        await super().delete(key)

    async def list(self, prefix: str):
        async for key, modified_at in super().list(prefix):
            yield key, modified_at - timedelta(seconds=self.ages_s.get(key, 0.0))

    async def keys(self) -> set[str]:
        return {key async for key, _ in self.list("")}


@pytest.fixture
def storage(tmp_path: Path) -> Aged:
    return Aged(tmp_path)


def sweeper(store: JobStore, storage: Aged, tmp_path: Path, **rest: float) -> Sweeper:
    return Sweeper(store, storage, tmp_path / "work", **rest)


async def done(store: JobStore, key: str) -> Job:
    job = await make(store)
    await succeed(store, await take(store), artifacts=[artifact(key=key)])
    return await store.get(job.id)


async def test_ended_jobs_go_with_their_files_once_they_are_older_than_the_retention(
    store: JobStore, storage: Aged, tmp_path: Path
) -> None:
    old, fresh = await done(store, "clips/old.mp4"), await done(store, "clips/fresh.mp4")
    await age(store, old.id, finished_at=2 * HOUR_S)
    kept = {"clips/fresh.mp4", f"uploads/{fresh.id}/a.png"}
    gone = {"clips/old.mp4", f"uploads/{old.id}/a.png", f"previews/{old.id}/p.png"}
    await storage.hold(dict.fromkeys(kept | gone, 3 * HOUR_S))
    await sweeper(store, storage, tmp_path, retention_s=HOUR_S).sweep()
    assert await storage.keys() == kept
    assert [job.id for job in (await store.list()).jobs] == [fresh.id]


async def test_what_a_later_job_put_in_its_place_stays(store: JobStore, storage: Aged, tmp_path: Path) -> None:
    """Callers name folders, and name them again."""
    old, again = await done(store, "clips/video_1.mp4"), await done(store, "clips/video_1.mp4")
    await age(store, old.id, finished_at=2 * HOUR_S)
    await storage.hold({"clips/video_1.mp4": HOUR_S})
    sweep = sweeper(store, storage, tmp_path, retention_s=HOUR_S).sweep
    await sweep()
    assert await storage.keys() == {"clips/video_1.mp4"}
    assert [job.id for job in (await store.list()).jobs] == [again.id]
    await age(store, again.id, finished_at=2 * HOUR_S)
    await sweep()
    assert await storage.keys() == set()


async def test_a_file_that_cannot_be_deleted_holds_up_no_other(store: JobStore, storage: Aged, tmp_path: Path) -> None:
    jobs = [await done(store, f"clips/{n}.mp4") for n in range(3)]
    for at, job in enumerate(jobs):
        await age(store, job.id, finished_at=(9 - at) * HOUR_S)
    stray = [f"attempts/{jobs[0].id}/1/{name}.mp4" for name in "abc"]
    await storage.hold(dict.fromkeys(["clips/0.mp4", "clips/1.mp4", "clips/2.mp4", *stray], 3 * DAY_S))
    storage.stuck = {"clips/0.mp4", stray[0]}
    await sweeper(store, storage, tmp_path).sweep_strays()
    assert await storage.keys() == {"clips/0.mp4", "clips/1.mp4", "clips/2.mp4", stray[0]}
    storage.stuck = {"clips/0.mp4"}
    await sweeper(store, storage, tmp_path, retention_s=HOUR_S).sweep()
    assert await storage.keys() == {"clips/0.mp4"}
    assert [job.id for job in (await store.list()).jobs] == [jobs[0].id], "its row still knows the file"
    storage.stuck = set()
    await sweeper(store, storage, tmp_path, retention_s=HOUR_S).sweep()
    assert await storage.keys() == set()
    assert (await store.list()).jobs == ()


async def test_a_storage_that_deletes_nothing_is_left_alone(store: JobStore, storage: Aged, tmp_path: Path) -> None:
    keys = [f"clips/{n}.mp4" for n in range(20)]
    for key in keys:
        await age(store, (await done(store, key)).id, finished_at=2 * HOUR_S)
    await storage.hold(dict.fromkeys(keys, HOUR_S))
    storage.stuck = set(keys)
    with pytest.raises(StorageRefused):
        await sweeper(store, storage, tmp_path, retention_s=HOUR_S).sweep()
    assert storage.refusals < 10


async def test_without_a_retention_everything_is_kept(store: JobStore, storage: Aged, tmp_path: Path) -> None:
    job = await done(store, "clips/old.mp4")
    await age(store, job.id, finished_at=365 * DAY_S)
    await storage.hold({"clips/old.mp4": 365 * DAY_S, f"uploads/{new_id()}/a.png": 365 * DAY_S})
    for sweep in (sweeper(store, storage, tmp_path).sweep, sweeper(store, storage, tmp_path).sweep_strays):
        await sweep()
    assert len(await storage.keys()) == 2
    assert (await store.get(job.id)).status is Status.SUCCEEDED


async def test_staged_files_stay_only_with_the_running_attempt(store: JobStore, storage: Aged, tmp_path: Path) -> None:
    ended = await done(store, "clips/a.mp4")
    running = await make(store)
    await take(store)
    await sql(store, "UPDATE job SET attempt = 3 WHERE status = 'running'")
    kept = {f"attempts/{running.id}/3/a.mp4", f"attempts/{new_id()}/1/other-database.mp4"}
    gone = {f"attempts/{running.id}/2/a.mp4", f"attempts/{ended.id}/1/a.mp4"}
    await storage.hold(dict.fromkeys(kept | gone, HOUR_S))
    young = f"attempts/{ended.id}/1/young.mp4"
    await storage.hold({young: 10.0, "clips/a.mp4": HOUR_S})
    await sweeper(store, storage, tmp_path).sweep_strays()
    assert await storage.keys() == {*kept, young, "clips/a.mp4"}


async def test_old_previews_and_uploads_go(store: JobStore, storage: Aged, tmp_path: Path) -> None:
    kept = {f"previews/{new_id()}/a.png": HOUR_S, f"uploads/{new_id()}/a.png": DAY_S}
    await storage.hold({**kept, f"previews/{new_id()}/b.png": 2 * DAY_S, f"uploads/{new_id()}/b.png": 3 * DAY_S})
    await sweeper(store, storage, tmp_path, retention_s=HOUR_S).sweep_strays()
    assert await storage.keys() == set(kept)


def test_a_dead_processs_scratch_folder_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    dead = tmp_path / "dead"
    (dead / "job.1" / "work").mkdir(parents=True)
    lock = tmp_path / "dead.lock"
    lock.touch()
    os.utime(lock, (time.time() - 60,) * 2)
    with scratch_folder(tmp_path, "alive") as alive:
        (alive / "job.2").mkdir()
        os.utime(tmp_path / "alive.lock", (time.time() - 60,) * 2)
        assert remove_abandoned(tmp_path) == 1
        assert (alive / "job.2").is_dir()
        assert not dead.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_just_made_is_not_yet_abandoned(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with (tmp_path / "new.lock").open("x") as made:
        assert remove_abandoned(tmp_path) == 0
        fcntl.flock(made, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (tmp_path / "new").is_dir()


async def test_it_runs_by_itself_and_ends_when_told(store: JobStore, storage: Aged, tmp_path: Path) -> None:
    job = await make(store, queued_timeout_s=1)
    await age(store, job.id, queue_deadline_at=1)
    (tmp_path / "work").mkdir()
    stop = asyncio.Event()
    task = asyncio.create_task(sweeper(store, storage, tmp_path).run(stop))
    ended = await store.wait(job.id, 30)
    stop.set()
    await task
    assert ended.error is not None
    assert ended.error.code == "deadline_exceeded"
    assert ended.finished_at is not None
    assert ended.finished_at <= datetime.now(UTC)

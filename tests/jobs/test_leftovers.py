"""What an attempt published of a job that then ended without it goes, and nothing that another job put there."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path
from uuid import UUID

import pytest

from mediamill.errors import StorageRefused, StorageUnavailable
from mediamill.jobs.leftovers import Leftover, Leftovers
from mediamill.jobs.store import JobStore, Taken
from mediamill.jobs.sweep import Sweeper
from mediamill.model import Artifact, JobError
from mediamill.storage import LocalUrls
from mediamill.storage.memory import MemoryStorage
from tests.fixtures_db import TestServer
from tests.store_steps import age, artifact, make, sql, succeed, take

KEY = "Project/clip.mp4"


@pytest.fixture
def database_server(embedded_server: TestServer) -> TestServer:
    """One server is enough: what differs between servers is in the store's tests."""
    return embedded_server


class Folder(MemoryStorage):
    """Objects whose whole content is a word; deleting one may take until it is let go, or fail."""

    def __init__(self, folder: Path) -> None:
        super().__init__(LocalUrls("http://files", b"secret"))
        self.folder = folder
        self.going = asyncio.Event()
        self.let_go = asyncio.Event()
        self.let_go.set()
        self.broken: Exception | None = None
        self.slow_s = 0.0

    async def write(self, word: str, key: str = KEY) -> Artifact:
        source = self.folder / "word"
        source.write_text(word)
        await self.put(key, source, media_type="video/mp4")
        return of(word, key)

    async def delete(self, key: str) -> None:
        self.going.set()
        await self.let_go.wait()
        await asyncio.sleep(self.slow_s)
        if self.broken is not None:
            raise self.broken
        await super().delete(key)

    async def words(self) -> dict[str, str]:
        keys = [key async for key, _ in self.list("")]
        return {key: b"".join([chunk async for chunk in self.open(key)]).decode() for key in keys}


def of(word: str, key: str = KEY) -> Artifact:
    return artifact("clip.mp4", key=key, sha256=hashlib.sha256(word.encode()).hexdigest())


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


async def publish(store: JobStore, storage: Folder, word: str, key: str = KEY) -> Taken:
    """A job of its own that has published and not ended."""
    await make(store)
    taken = await take(store)
    assert await store.publishing(taken.job.id, taken.attempt, [of(word, key)])
    await storage.write(word, key)
    return taken


async def fail(store: JobStore, taken: Taken) -> None:
    assert await store.fail(taken.job.id, taken.attempt, JobError("crashed", "x"), timings={})


async def sweep(store: JobStore, storage: Folder, **rest: float) -> None:
    await Sweeper(store, storage, storage.folder / "work", **{"stray_after_s": 0.0, **rest}).sweep()


async def notes(store: JobStore) -> int:
    return await sql(store, "SELECT count(*) FROM publication")


async def test_it_goes_when_the_job_has_failed_and_stays_while_it_runs(store: JobStore, storage: Folder) -> None:
    failed = await publish(store, storage, "failed")
    running = await publish(store, storage, "running", "Project/other.mp4")
    own = await publish(store, storage, "own", f"outputs/{failed.job.id}/output.mp4")
    await sweep(store, storage)
    assert len(await storage.words()) == 3
    for taken in (failed, own):
        await fail(store, taken)
        await age(store, taken.job.id, finished_at=100)
    await sweep(store, storage, stray_after_s=200)
    assert len(await storage.words()) == 3, "a copy may still be under way"
    await sweep(store, storage)
    assert await storage.words() == {"Project/other.mp4": "running"}
    assert await succeed(store, running, artifacts=[of("running", "Project/other.mp4")])
    assert await notes(store) == 0


async def test_what_is_not_the_jobs_stays(store: JobStore, storage: Folder) -> None:
    """Put there by hand, or by another service that shares the bucket."""
    failed = await publish(store, storage, "made")
    await fail(store, failed)
    await storage.write("by hand")
    await sweep(store, storage)
    assert await storage.words() == {KEY: "by hand"}
    assert await notes(store) == 0


async def test_a_later_jobs_result_stays_even_when_it_has_the_same_bytes(store: JobStore, storage: Folder) -> None:
    failed = await publish(store, storage, "same")
    later = await publish(store, storage, "same")
    await fail(store, failed)
    await sweep(store, storage)
    assert await storage.words() == {KEY: "same"}, "it is being published"
    assert await succeed(store, later, artifacts=[of("same")])
    await sweep(store, storage)
    assert await storage.words() == {KEY: "same"}, "it is named"
    assert await notes(store) == 0


async def test_the_last_of_several_that_end_without_it_takes_it_along(store: JobStore, storage: Folder) -> None:
    first = await publish(store, storage, "first")
    await make(store)
    second = await take(store)  # it only gets as far as to note what it is about to publish
    assert await store.publishing(second.job.id, second.attempt, [of("second")])
    await fail(store, first)
    await sweep(store, storage)
    assert await storage.words() == {KEY: "first"}
    await fail(store, second)
    await sweep(store, storage)
    assert (await storage.words(), await notes(store)) == ({}, 0)


async def test_what_only_an_earlier_attempt_made_goes_when_a_later_one_succeeded(
    store: JobStore, storage: Folder
) -> None:
    taken = await publish(store, storage, "one too many", "Project/second.mp4")
    await store.hand_back(taken.job.id, taken.attempt)
    again = await take(store)
    assert not await store.publishing(taken.job.id, taken.attempt, [of("stale", "Project/third.mp4")])
    assert await store.publishing(again.job.id, again.attempt, [of("right")])
    await storage.write("right")
    assert await succeed(store, again, artifacts=[of("right")])
    assert await notes(store) == 1, "a stale attempt notes nothing"
    await sweep(store, storage)
    assert (await storage.words(), await notes(store)) == ({KEY: "right"}, 0)


async def test_the_retention_leaves_what_another_job_is_publishing_in_the_same_place(
    store: JobStore, storage: Folder
) -> None:
    old = await publish(store, storage, "old")
    assert await succeed(store, old, artifacts=[of("old")])
    later = await publish(store, storage, "new")
    await age(store, old.job.id, finished_at=100)
    await sweep(store, storage, retention_s=50)
    assert [job.id for job in (await store.list()).jobs] == [later.job.id]
    assert await storage.words() == {KEY: "new"}
    assert await succeed(store, later, artifacts=[of("new")])
    await sweep(store, storage)
    assert (await storage.words(), await notes(store)) == ({KEY: "new"}, 0)


async def test_the_retention_of_a_job_whose_place_was_awaited_in_vain_leaves_nothing(
    store: JobStore, storage: Folder
) -> None:
    old = await publish(store, storage, "old")
    assert await succeed(store, old, artifacts=[of("old")])
    await make(store)
    later = await take(store)
    assert await store.publishing(later.job.id, later.attempt, [of("never copied")])
    await age(store, old.job.id, finished_at=100)
    await sweep(store, storage, retention_s=50)
    await fail(store, later)
    await sweep(store, storage)
    assert (await storage.words(), await notes(store)) == ({}, 0)


async def test_who_publishes_waits_for_who_deletes(store: JobStore, storage: Folder) -> None:
    failed = await publish(store, storage, "same")
    await fail(store, failed)
    await make(store)
    later = await take(store)
    storage.let_go.clear()
    sweeping = asyncio.create_task(sweep(store, storage))
    await storage.going.wait()
    asked = asyncio.create_task(store.publishing(later.job.id, later.attempt, [of("same")]))
    done, _ = await asyncio.wait({asked}, timeout=0.3)
    assert not done
    await sweep(store, storage)  # another's sweep meanwhile takes nothing up
    storage.let_go.set()
    await sweeping
    assert await asked
    await storage.write("same")
    assert await succeed(store, later, artifacts=[of("same")])
    await sweep(store, storage)
    assert (await storage.words(), await notes(store)) == ({KEY: "same"}, 0)


async def test_a_deletion_that_broke_off_is_done_again_and_holds_up_nobody_for_ever(
    store: JobStore, storage: Folder
) -> None:
    failed = await publish(store, storage, "failed")
    await fail(store, failed)
    storage.broken = StorageUnavailable("The bucket does not answer.")
    await sweep(store, storage)
    storage.broken = None
    await sweep(store, storage)
    assert await storage.words() == {KEY: "failed"}, "the first deletion may still be under way"
    await make(store)
    later = await take(store)
    asked = asyncio.create_task(
        store.publishing(later.job.id, later.attempt, [of("later", "Project/b.mp4"), of("later")])
    )
    await sql(store, "UPDATE publication SET deleting_until = clock_timestamp() WHERE deleting_until IS NOT NULL")
    assert await asked
    await fail(store, later)
    await sweep(store, storage)
    assert (await storage.words(), await notes(store)) == ({}, 0)


async def test_one_that_cannot_be_deleted_is_tried_again(store: JobStore, storage: Folder) -> None:
    await fail(store, await publish(store, storage, "failed"))
    storage.broken = StorageRefused("The bucket refused: the object is locked.")
    await sweep(store, storage)
    storage.broken = None
    await sweep(store, storage)
    assert (await storage.words(), await notes(store)) == ({}, 0)


async def test_a_key_that_no_storage_takes_holds_up_no_sweep(store: JobStore, storage: Folder) -> None:
    await make(store)
    taken = await take(store)
    key = "/".join(["ü" * 100] * 10)
    assert await store.publishing(taken.job.id, taken.attempt, [of("x", key)])
    await fail(store, taken)
    await sweep(store, storage)
    assert await notes(store) == 0


async def test_a_copy_that_arrives_late_is_looked_for_again(store: JobStore, storage: Folder) -> None:
    """A copy that was broken off, of a worker that deleted its leftovers itself."""
    failed = await publish(store, storage, "failed")
    await fail(store, failed)
    leftover = Leftover(KEY, failed.job.id, (of("failed").sha256,))
    assert await Leftovers(store.database, storage).delete(leftover, look_again=True)
    assert await storage.words() == {}
    await storage.write("failed")
    await sweep(store, storage)
    assert (await storage.words(), await notes(store)) == ({}, 0)


async def test_many_are_found_page_by_page(store: JobStore, storage: Folder) -> None:
    await make(store)
    taken = await take(store)
    made = [await storage.write("w", f"Project/{n}.mp4") for n in range(230)]
    assert await store.publishing(taken.job.id, taken.attempt, made)
    await fail(store, taken)
    await sweep(store, storage)
    assert (await storage.words(), await notes(store)) == ({}, 0)


async def test_whoever_succeeds_has_its_bytes_while_others_come_and_go_in_the_same_place(
    store: JobStore, storage: Folder
) -> None:
    """All jobs make the same bytes under the same key; two sweepers delete without pause what the failed ones left."""
    rng = random.Random(7)
    busy = asyncio.Event()
    storage.slow_s = 0.02

    async def sweeping() -> None:
        while not busy.is_set():
            await sweep(store, storage)
            await asyncio.sleep(0)

    async def carrying(turns: int) -> None:
        for _ in range(turns):
            await make(store)
            taken = await take(store)
            beat = await store.publishing(taken.job.id, taken.attempt, [of("same")])
            assert beat
            await asyncio.sleep(rng.uniform(0, 0.01))
            await storage.write("same")
            await asyncio.sleep(rng.uniform(0, 0.01))
            if rng.random() < 0.7:
                await fail(store, taken)
                continue
            assert await succeed(store, taken, artifacts=[of("same")])
            assert await storage.words() == {KEY: "same"}
            await sql(
                store, "DELETE FROM artifact WHERE job_id = $1", UUID(taken.job.id)
            )  # it names nothing any more: what it left is the next one's

    sweepers = [asyncio.create_task(sweeping()) for _ in range(2)]
    await asyncio.gather(*(carrying(10) for _ in range(3)))
    busy.set()
    await asyncio.gather(*sweepers)

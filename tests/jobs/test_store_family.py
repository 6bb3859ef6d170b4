"""Jobs in parts: the last part's end ends the parent, in the same transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from mediamill import catalog
from mediamill.errors import UnsupportedMedia
from mediamill.jobs.store import JobStore, Submission
from mediamill.model import Job, JobError, Json, Phase, Status
from tests.store_steps import age, artifact, opened, silence, sql, succeed, take, tickets, try_take

BROKEN = JobError("engine_failed", "It broke.")


class SplitRequest(catalog.Request):
    n: int = 0
    merge_raises: str = ""


def merge(request: SplitRequest, parts: Sequence[Job]) -> Mapping[str, Json]:
    if request.merge_raises == "ours":
        raise UnsupportedMedia("Nothing of this can be used.")
    if request.merge_raises:
        raise ZeroDivisionError
    return {"n": request.n, "parts": [None if part.error else dict(part.output or {}) for part in parts]}


@pytest.fixture(autouse=True)
def entries() -> Iterator[None]:
    """Two catalog entries of this test's own: one that merges, and one that does not say how."""
    common: dict[str, Any] = {"summary": "", "request": SplitRequest, "engine": "fake", "output_kind": "video"}
    own = {
        "family-merging": catalog.Entry(name="family-merging", merge=merge, **common),
        "family-plain": catalog.Entry(name="family-plain", **common),
    }
    catalog.load.cache_clear()
    catalog._entries.update(own)
    yield
    for name in own:
        del catalog._entries[name]
    catalog.load.cache_clear()


async def family(store: JobStore, model: str = "family-merging", *, parts: int = 3, **fields: Any) -> Job:
    job, _ = await store.submit(
        Submission(
            **{
                "model": model,
                "input": {"n": 7},
                "pool": "cpu",
                "parts": [{"n": number} for number in range(parts)],
                **fields,
            }
        )
    )
    return job


async def test_the_parts_run_and_the_parent_ends_with_the_last_of_them(store: JobStore) -> None:
    parent = await family(store, webhook_url="https://example.com", metadata={"a": 1})
    assert parent.status is Status.QUEUED
    assert await tickets(store) == 3
    runs = [await take(store) for _ in range(3)]
    assert [(run.job.input["n"], run.job.part, run.job.parent_id) for run in runs] == [
        (n, n, parent.id) for n in range(3)
    ]
    assert (await store.get(parent.id)).status is Status.RUNNING
    for n in (2, 0, 1):
        assert (await store.get(parent.id)).status is Status.RUNNING
        files = [artifact(f"{n}-{i}.mp4") for i in range(2)]
        await succeed(store, runs[n], artifacts=files, output={"made": n}, warnings=["same", f"w{n}"])
    ended = await store.get(parent.id)
    assert (ended.status, ended.progress) == (Status.SUCCEEDED, 1.0)
    assert ended.output == {"n": 7, "parts": [{"made": 0}, {"made": 1}, {"made": 2}]}
    assert [a.name for a in ended.artifacts] == ["0-0.mp4", "0-1.mp4", "1-0.mp4", "1-1.mp4", "2-0.mp4", "2-1.mp4"]
    assert ended.warnings == ("same", "w0", "w1", "w2")
    assert ended.started_at is not None
    assert await sql(store, "SELECT array_agg(job_id::text) FROM webhook") == [parent.id]
    assert [part.status for part in await store.parts(parent.id)] == [Status.SUCCEEDED] * 3


async def test_its_progress_is_the_mean_of_its_parts(store: JobStore) -> None:
    parent = await family(store, parts=4)
    first, second = await take(store), await take(store)
    await succeed(store, first)
    await store.beat(second.job.id, second.attempt, progress=0.5, phase=Phase.ENCODING)
    shown = await store.get(parent.id)
    assert shown.progress == pytest.approx(1.5 / 4)
    assert shown.phase is Phase.ENCODING
    assert (await store.list()).jobs[0].progress == pytest.approx(1.5 / 4)


async def test_lists_show_the_parent_and_not_its_parts(store: JobStore) -> None:
    parent = await family(store)
    assert [job.id for job in (await store.list()).jobs] == [parent.id]
    assert (await store.get(parent.id, position=True)).position == 0


async def end_parts(store: JobStore, how: str) -> None:
    """s: succeeds, f: fails, c: is cancelled while it waits, l: loses its last worker."""
    for letter in how:
        if letter == "c":
            waiting = await sql(store, "SELECT id::text FROM job WHERE parts = 0 AND status = 'queued' ORDER BY part")
            await store.cancel(waiting)
            continue
        taken = await take(store)
        if letter == "s":
            await succeed(store, taken, output={"made": taken.job.part}, artifacts=[artifact(f"{taken.job.part}.mp4")])
        elif letter == "f":
            await store.fail(taken.job.id, taken.attempt, BROKEN, timings={})
        else:
            await silence(store, taken.job.id, 60)
            await sql(store, "UPDATE job SET lost_workers = 9 WHERE id = $1", UUID(taken.job.id))
            assert await try_take(store) is None or letter != how[-1]


@pytest.mark.parametrize(
    ("model", "ends", "raises", "expected"),
    [
        ("family-merging", "ssf", "", ("succeeded", None)),
        ("family-merging", "ssc", "", ("succeeded", None)),
        ("family-merging", "fff", "", ("failed", "engine_failed")),
        ("family-merging", "fff", "ours", ("failed", "unsupported_media")),
        ("family-merging", "sss", "ours", ("failed", "unsupported_media")),
        ("family-merging", "sss", "theirs", ("failed", "internal")),
        ("family-merging", "sff", "theirs", ("failed", "engine_failed")),
        ("family-plain", "sss", "", ("succeeded", None)),
        ("family-plain", "sfs", "", ("failed", "engine_failed")),
        ("family-unknown", "sss", "", ("failed", "not_found")),
    ],
)
async def test_what_the_parent_ends_as(
    store: JobStore, model: str, ends: str, raises: str, expected: tuple[str, str | None]
) -> None:
    parent = await family(store, model, input={"n": 7, "merge_raises": raises}, webhook_url="https://example.com")
    await end_parts(store, ends)
    ended = await store.get(parent.id)
    assert (str(ended.status), ended.error and ended.error.code) == expected
    assert len(ended.artifacts) == (ends.count("s") if ended.status is Status.SUCCEEDED else 0)
    assert await sql(store, "SELECT count(*) FROM webhook") == 1
    assert await tickets(store) == 0


async def test_a_part_that_loses_its_last_worker_counts_down_too(database_url: str) -> None:
    async with opened(database_url, lease_s=0.3) as store:
        parent = await family(store)
        await end_parts(store, "ssl")
        ended = await store.get(parent.id)
        assert (ended.status, (ended.output or {})["parts"]) == (Status.SUCCEEDED, [{"made": 0}, {"made": 1}, None])


class TestCancel:
    async def test_a_waiting_family_ends_at_once(self, store: JobStore) -> None:
        parent = await family(store)
        assert (await store.cancel(parent.id)).status is Status.CANCELLED
        assert {part.status for part in await store.parts(parent.id)} == {Status.CANCELLED}
        assert await tickets(store) == 0

    async def test_a_running_part_is_asked_to_stop_and_its_end_ends_the_parent(self, store: JobStore) -> None:
        parent = await family(store)
        taken = await take(store)
        asked = await store.cancel(parent.id)
        assert (asked.status, asked.cancel_requested) == (Status.RUNNING, True)
        assert (await store.beat(taken.job.id, taken.attempt)).cancel_requested
        assert await try_take(store) is None
        await store.cancelled(taken.job.id, taken.attempt, timings={})
        ended = await store.get(parent.id)
        assert (ended.status, ended.error and ended.error.code) == (Status.CANCELLED, "cancelled")

    async def test_a_family_that_was_quicker_than_its_cancel_succeeds(self, store: JobStore) -> None:
        parent = await family(store, parts=1)
        taken = await take(store)
        await store.cancel(parent.id)
        await succeed(store, taken)
        assert (await store.get(parent.id)).status is Status.SUCCEEDED


async def test_a_part_that_waited_too_long_fails_for_itself(store: JobStore) -> None:
    parent = await family(store, "family-plain", queued_timeout_s=60)
    await end_parts(store, "ss")
    last = (await store.parts(parent.id))[2]
    await age(store, last.id, queue_deadline_at=1)
    assert await store.fail_expired() == 1
    ended = await store.get(parent.id)
    assert (ended.status, ended.error and ended.error.code) == (Status.FAILED, "deadline_exceeded")


async def test_a_family_in_a_batch_counts_once(store: JobStore) -> None:
    parts = [{"n": 0}, {"n": 1}]
    split = Submission(model="family-merging", input={"n": 1}, pool="cpu", parts=parts)
    whole = Submission(model="fake", input={}, pool="cpu")
    batch_id, jobs = await store.submit_batch([split, whole], webhook_url="https://example.com")
    assert [job.part for job in jobs] == [0, 1]
    for left in (1, 1, 0):
        assert await sql(store, "SELECT count(*) FROM webhook") == 0
        await succeed(store, await take(store))
        assert await sql(store, "SELECT pending FROM batch") in {left, 1, 2}
    assert await sql(store, "SELECT array_agg(batch_id::text) FROM webhook") == [batch_id]


@pytest.fixture
async def stores(database_url: str) -> AsyncIterator[list[JobStore]]:
    """Two processes' worth of stores."""
    async with opened(database_url) as one, opened(database_url) as other:
        yield [one, other]


async def test_parts_that_end_at_the_same_moment_end_each_parent_once(stores: list[JobStore]) -> None:
    parents = [await family(stores[0], parts=8, webhook_url="https://example.com") for _ in range(5)]
    runs = [await take(stores[0], slot=uuid4()) for _ in range(40)]
    ends = (succeed(stores[n % 2], run, output={"made": run.job.part}) for n, run in enumerate(runs))
    assert await asyncio.gather(*ends) == [True] * 40
    for parent in parents:
        ended = await stores[0].get(parent.id)
        assert [p["made"] for p in (ended.output or {})["parts"]] == list(range(8))
    assert await sql(stores[0], "SELECT count(*) FROM webhook") == 5


async def test_cancelling_a_family_while_its_parts_end_does_not_deadlock(stores: list[JobStore]) -> None:
    for _ in range(4):
        parent = await family(stores[0], parts=8)
        runs = [await take(stores[0], slot=uuid4()) for _ in range(6)]
        await asyncio.gather(*(succeed(stores[n % 2], run) for n, run in enumerate(runs)), stores[1].cancel(parent.id))
        ended = await stores[0].get(parent.id)
        assert ended.status is Status.CANCELLED
        assert await sql(stores[0], "SELECT pending FROM job WHERE id = $1", UUID(parent.id)) == 0
        assert await tickets(stores[0]) == 0

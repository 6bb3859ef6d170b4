"""The steps that tests of the job store are made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

from mediamill.jobs.database import Limits
from mediamill.jobs.store import JobStore, Rules, Submission, Taken
from mediamill.model import Artifact, Job, MediaFacts

SLOT = uuid4()
_LOOKS = 20
_SOON_S = 0.5


@asynccontextmanager
async def opened(url: str, *, limits: Limits | None = None, **rules: Any) -> AsyncIterator[JobStore]:
    """A store with rules of its own."""
    async with await JobStore.open(url, Rules(**rules), limits=limits) as store:
        yield store


def submission(model: str = "fake", **fields: Any) -> Submission:
    return Submission(**{"model": model, "input": {"seed": 1}, "pool": "cpu", **fields})


async def make(store: JobStore, model: str = "fake", **fields: Any) -> Job:
    job, _ = await store.submit(submission(model, **fields))
    return job


async def try_take(
    store: JobStore,
    *,
    held: Collection[str] = (),
    pools: Sequence[str] = ("cpu",),
    worker: str = "w",
    slot: UUID = SLOT,
) -> Taken | None:
    return await store.take(slot=slot, worker=worker, pools=pools, held=held)


async def take(store: JobStore, **how: Any) -> Taken:
    """Takes what is there as a worker does: nothing got means nothing there only where there is none to wake up for."""
    for _ in range(_LOOKS):
        taken = await try_take(store, **how)
        if taken is not None:
            return taken
        wake_s = await store.next_wake_s(how.get("pools", ("cpu",)))
        if wake_s > _SOON_S:
            break
        await asyncio.sleep(wake_s)
    raise AssertionError("there was nothing to take")


async def succeed(store: JobStore, taken: Taken, **what: Any) -> bool:
    done = {"artifacts": (), "output": None, "timings": {}, **what}
    return await store.succeed(taken.job.id, taken.attempt, **done)


def artifact(name: str = "output.mp4", **fields: Any) -> Artifact:
    facts = MediaFacts(width_px=320, height_px=180, duration_s=1.5, fps=24.0, frames=36, video_codec="h264")
    known = {"key": f"outputs/{name}", "media_type": "video/mp4", "size_bytes": 7, "sha256": "ab" * 32, "facts": facts}
    return Artifact(name=name, **{**known, **fields})


async def sql(store: JobStore, statement: str, *values: object) -> Any:
    """One value, straight from the database."""
    async with store.database.connection() as connection:
        return await connection.fetchval(statement, *values)


async def age(store: JobStore, job_id: str, **ages_s: float) -> None:
    """Move a job's times into the past, as if that many seconds had gone by since."""
    sets = ", ".join(f"{column} = clock_timestamp() - make_interval(secs => {s})" for column, s in ages_s.items())
    await sql(store, f"UPDATE job SET {sets} WHERE id = $1", UUID(job_id))


async def silence(store: JobStore, job_id: str, seconds: float) -> None:
    """As if the job's worker had last been heard that long ago: in its row and on its ticket."""
    await age(store, job_id, beat_at=seconds)
    await sql(
        store,
        "UPDATE pgqueuer SET heartbeat = now() - make_interval(secs => $2) WHERE id = (SELECT queue_id FROM job WHERE id = $1)",
        UUID(job_id),
        seconds,
    )


async def tickets(store: JobStore) -> int:
    return await sql(store, "SELECT count(*) FROM pgqueuer")

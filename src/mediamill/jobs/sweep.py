"""What every worker process does from time to time: deadlines, retention, and what killed processes left behind.

All of it is safe to do by several processes at once and to break off anywhere: bytes go before the rows that name them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mediamill.errors import MediamillError, NotFound, StoreUnavailable
from mediamill.jobs.store import JobStore
from mediamill.model import Job, Storage

_log = logging.getLogger(__name__)

DEADLINES_EVERY_S = 5.0
SWEEP_EVERY_S = 60.0
STRAYS_EVERY_S = 3600.0
PREVIEWS_KEPT_S = 86_400.0
UPLOADS_KEPT_S = 2 * 86_400.0
"""At least: a job may wait for a day before it reads them."""
_BATCH = 100
_JOB_FOLDER = re.compile(r"(?P<kind>attempts|outputs)/(?P<job>[0-9a-f-]{32,36})/(?P<rest>.+)")


@dataclass(frozen=True)
class Sweeper:
    """Times in seconds. `retention_s` 0 keeps ended jobs and their files for ever."""

    store: JobStore
    storage: Storage
    scratch_root: Path
    retention_s: float = 0.0
    stray_after_s: float = 120.0
    """An object of an unfinished attempt, or one that no job names, is looked at when it is older."""

    async def run(self, stop: asyncio.Event) -> None:
        """Sweep until `stop` is set. A database or storage that is away is tried again the next time."""
        due_s = dict.fromkeys((DEADLINES_EVERY_S, SWEEP_EVERY_S, STRAYS_EVERY_S), 0.0)
        chores = {
            DEADLINES_EVERY_S: self.store.fail_expired,
            SWEEP_EVERY_S: self.sweep,
            STRAYS_EVERY_S: self.sweep_strays,
        }
        while not stop.is_set():
            for every_s, chore in chores.items():
                if time.monotonic() < due_s[every_s] or stop.is_set():
                    continue
                try:
                    await chore()
                except (MediamillError, OSError) as error:
                    level = logging.INFO if isinstance(error, StoreUnavailable) else logging.WARNING
                    _log.log(level, "sweep broken off: %s", error)
                due_s[every_s] = time.monotonic() + every_s * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DEADLINES_EVERY_S):
                    await stop.wait()

    async def sweep(self) -> None:
        """Scratch folders of dead workers, the queue's log, and everything older than the retention."""
        await asyncio.to_thread(remove_abandoned, self.scratch_root)
        while jobs := await self.store.prune(ended_before_s=self.retention_s or None, limit=_BATCH):
            for job in jobs:
                await self._delete_bytes(job)
            forgotten = await self.store.forget([job.id for job in jobs if job.parent_id is None])
            _log.info("%d ended jobs are past their retention and gone", forgotten)
            if not forgotten:
                return

    async def sweep_strays(self) -> None:
        """Objects that no job names: of attempts that are over, old previews, old uploads."""
        await self._sweep_attempts()
        await self._sweep_unnamed()
        await self._delete_older("previews", PREVIEWS_KEPT_S)
        if self.retention_s:
            await self._delete_older("uploads", max(self.retention_s, UPLOADS_KEPT_S))

    async def _delete_bytes(self, job: Job) -> None:
        for artifact in job.artifacts:
            await self.storage.delete(artifact.key)
        for folder in (f"uploads/{job.id}", f"previews/{job.id}", f"attempts/{job.id}"):
            for key in [key async for key, _ in self.storage.list(folder)]:
                await self.storage.delete(key)

    async def _sweep_attempts(self) -> None:
        """Staged files are wanted only by the running attempt that staged them."""
        jobs: dict[str, Job | None] = {}
        async for found, key, modified_at in self._job_objects("attempts"):
            job_id, rest = found["job"], found["rest"]
            if job_id not in jobs:
                jobs[job_id] = await self._job(job_id)
            job = jobs[job_id]
            number = rest.partition("/")[0]
            if job is None:  # of another database that shares the bucket, or of a job that is gone
                over = _age_s(modified_at) > UPLOADS_KEPT_S
            else:
                over = job.status.ended or (number.isdecimal() and int(number) < job.attempt)
            if over:
                await self.storage.delete(key)

    async def _sweep_unnamed(self) -> None:
        """Published files of a job that then ended without them: its worker died between the two."""
        jobs: dict[str, Job | None] = {}
        async for found, key, modified_at in self._job_objects("outputs"):
            if _age_s(modified_at) > 2 * STRAYS_EVERY_S + self.stray_after_s:
                continue  # seen by an earlier sweep
            if found["job"] not in jobs:
                jobs[found["job"]] = await self._job(found["job"])
            job = jobs[found["job"]]
            named = job is None or key in {artifact.key for artifact in job.artifacts}
            if job is not None and job.status.ended and not named and _ended_s(job) > self.stray_after_s:
                await self.storage.delete(key)

    async def _job_objects(self, kind: str) -> AsyncIterator[tuple[re.Match[str], str, datetime]]:
        async for key, modified_at in self.storage.list(kind):
            found = _JOB_FOLDER.fullmatch(key)
            if found is not None and _age_s(modified_at) > self.stray_after_s:
                yield found, key, modified_at

    async def _job(self, job_id: str) -> Job | None:
        with contextlib.suppress(NotFound):
            return await self.store.get(job_id)
        return None

    async def _delete_older(self, folder: str, than_s: float) -> None:
        async for key, modified_at in self.storage.list(folder):
            if _age_s(modified_at) > than_s:
                await self.storage.delete(key)


def _age_s(moment: datetime) -> float:
    return (datetime.now(UTC) - moment) / timedelta(seconds=1)


def _ended_s(job: Job) -> float:
    return 0.0 if job.finished_at is None else _age_s(job.finished_at)


@contextlib.contextmanager
def scratch_folder(root: Path, name: str) -> Iterator[Path]:
    """A folder of this process below `root`, deleted on exit, and by `remove_abandoned` after this process's death."""
    root.mkdir(parents=True, exist_ok=True)
    lock = root / f"{name}.lock"
    with lock.open("x+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        folder = root / name
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def remove_abandoned(root: Path) -> int:
    """Delete the folders of processes that are gone; returns how many. A living process's lock protects its own."""
    removed = 0
    for lock in root.glob("*.lock"):
        with contextlib.suppress(OSError), lock.open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(held.fileno()).st_mtime < 1.0:
                continue  # just made, and about to be locked
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
            removed += 1
    return removed


__all__ = ["Sweeper", "remove_abandoned", "scratch_folder"]

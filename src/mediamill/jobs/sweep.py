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
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mediamill import keys
from mediamill.errors import MediamillError, NotFound, StoreUnavailable
from mediamill.jobs.leftovers import Leftover, Leftovers
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
_ENOUGH = 5
"""Deletes that fail in a row before a sweep is broken off."""
_STAGED = re.compile(rf"{keys.ATTEMPTS}/(?P<job>[0-9a-f-]{{32,36}})/(?P<rest>.+)")


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
        """Sweep until `stop` is set, which breaks off what is under way.

        A database or storage that is away is tried again the next time.
        """
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
                    await _unless(stop, chore())
                except (MediamillError, OSError) as error:
                    level = logging.INFO if isinstance(error, StoreUnavailable) else logging.WARNING
                    _log.log(level, "sweep broken off: %s", error)
                due_s[every_s] = time.monotonic() + every_s * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DEADLINES_EVERY_S):
                    await stop.wait()

    async def sweep(self) -> None:
        """Scratch folders of dead workers, leftovers, the queue's log, and everything older than the retention."""
        await asyncio.to_thread(remove_abandoned, self.scratch_root)
        bin_ = _Bin(self.storage, Leftovers(self.store.database, self.storage))
        async for leftover in bin_.leftovers.of_ended_jobs(older_than_s=self.stray_after_s):
            await bin_.delete_leftover(leftover)
        stuck: set[str] = set()
        while True:
            found = await self.store.prune(ended_before_s=self.retention_s or None, limit=_BATCH + len(stuck))
            due = [job for job in found if _family(job) not in stuck]
            if not due:
                return
            stuck |= await self._delete_bytes(due, bin_)
            gone = {_family(job) for job in due} - stuck
            _log.info("%d ended jobs are past their retention and gone", await self.store.forget(gone))

    async def sweep_strays(self) -> None:
        """Objects of attempts that are over, old previews, old uploads."""
        bin_ = _Bin(self.storage, Leftovers(self.store.database, self.storage))
        await self._sweep_attempts(bin_)
        await self._delete_older(keys.PREVIEWS, PREVIEWS_KEPT_S, bin_)
        if self.retention_s:
            await self._delete_older(keys.UPLOADS, max(self.retention_s, UPLOADS_KEPT_S), bin_)

    async def _delete_bytes(self, jobs: Sequence[Job], bin_: _Bin) -> set[str]:
        """Delete everything of these jobs but what later ones put in its place; returns the families not rid of."""
        forgetting = [job.id for job in jobs]
        stuck = set()
        for job in jobs:
            gone = [
                await bin_.delete_leftover(Leftover(a.key, job.id, (a.sha256,)), forgetting=forgetting)
                for a in job.artifacts
            ]
            own: list[str] = []
            for folder in (keys.upload_folder(job.id), keys.preview_folder(job.id), f"{keys.ATTEMPTS}/{job.id}"):
                own += [key async for key, _ in self.storage.list(folder)]
            if not all([*gone, *[await bin_.delete(key) for key in own]]):
                stuck.add(_family(job))
        return stuck

    async def _sweep_attempts(self, bin_: _Bin) -> None:
        """Staged files are wanted only by the running attempt that staged them."""
        jobs: dict[str, Job | None] = {}
        async for key, modified_at in self.storage.list(keys.ATTEMPTS):
            found = _STAGED.fullmatch(key)
            if found is None or _age_s(modified_at) < self.stray_after_s:
                continue
            job_id, number = found["job"], found["rest"].partition("/")[0]
            if job_id not in jobs:
                jobs[job_id] = await self._job(job_id)
            job = jobs[job_id]
            if job is None:  # of another database that shares the bucket, or of a job that is gone
                over = _age_s(modified_at) > UPLOADS_KEPT_S
            else:
                over = job.status.ended or (number.isdecimal() and int(number) < job.attempt)
            if over:
                await bin_.delete(key)

    async def _job(self, job_id: str) -> Job | None:
        with contextlib.suppress(NotFound):
            return await self.store.get(job_id)
        return None

    async def _delete_older(self, folder: str, than_s: float, bin_: _Bin) -> None:
        async for key, modified_at in self.storage.list(folder):
            if _age_s(modified_at) > than_s:
                await bin_.delete(key)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, object]) -> None:
    """Do it, or break it off when `stop` is set: a worker that is to go does not wait for a storage."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


@dataclass
class _Bin:
    """Deletes one object after another; one that cannot be deleted holds up no other."""

    storage: Storage
    leftovers: Leftovers
    failed_in_a_row: int = 0

    async def delete(self, key: str) -> bool:
        """Whether it is gone. Raises its error when several could not be deleted in a row: then none can."""
        async with self._forgiving(key):
            await self.storage.delete(key)
            return True
        return False

    async def delete_leftover(self, leftover: Leftover, *, forgetting: Collection[str] = ()) -> bool:
        """Whether it is seen to: gone, or somebody else's by now. Raises as `delete`."""
        async with self._forgiving(leftover.key):
            return await self.leftovers.delete(leftover, forgetting=forgetting)
        return False

    @contextlib.asynccontextmanager
    async def _forgiving(self, key: str) -> AsyncIterator[None]:
        try:
            yield
        except StoreUnavailable:
            raise
        except (MediamillError, OSError) as error:
            self.failed_in_a_row += 1
            if self.failed_in_a_row >= _ENOUGH:
                raise
            _log.warning("an object cannot be deleted and is tried again by the next sweep: %s: %s", key, error)
        else:
            self.failed_in_a_row = 0


def _family(job: Job) -> str:
    return job.parent_id or job.id


def _age_s(moment: datetime) -> float:
    return (datetime.now(UTC) - moment) / timedelta(seconds=1)


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

"""One job in one slot, from its start to its end in the store.

Three things happen side by side: the work, the beat (progress, lease and cancel in one write), and whatever may break
in: a cancel, a lost lease, a worker that has to go. Only the attempt that still owns the job publishes or writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeVar

from mediamill import keys
from mediamill.durable import FULL
from mediamill.errors import (
    Cancelled,
    Crashed,
    EngineFailed,
    LeaseLost,
    MediamillError,
    RetryLater,
    StoreUnavailable,
    for_callers,
)
from mediamill.jobs.events import Wake
from mediamill.jobs.leftovers import Leftover, Leftovers
from mediamill.jobs.store import JobStore, Taken
from mediamill.model import Artifact, JobError, Progress, Provider, Storage
from mediamill.perform import Assignment, InputSource, Performed, Phases, discard, perform, publish

_log = logging.getLogger(__name__)

TICK_S = 0.25
"""Progress is written at most this often."""
IDLE_BEAT_S = 0.5
"""Without progress: what a lost notification costs a cancel."""
CANCEL_SHOWN_S = 1.5
"""After this the caller sees `cancelled`, even while a child still uses up a longer grace time."""
LET_OUT_S = 1.0
"""A result that is being published may still get out whole this long after a cancel; then the job has succeeded."""
CLEAN_WITHIN_S = 3.0
"""A storage that does not answer holds up a slot for no longer; the sweep has time."""
PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0)
DISK_PAUSE_S = 30.0
_NO_ROOM = FULL | {errno.EROFS}

T = TypeVar("T")


class SlotProvider(Provider, Protocol):
    """A place where one slot's jobs run, one at a time."""

    def held(self) -> tuple[str, ...]:
        """What is loaded there."""
        ...

    async def prepare(self) -> None:
        """Begin what the first job would wait for, where that is worth it. Before any job."""
        ...

    async def close(self) -> None:
        """End it and everything it started. Safe to repeat."""
        ...


class Interrupt(StrEnum):
    """Why work is broken off; the first one counts."""

    CANCEL = "cancel"
    LEASE_LOST = "lease lost"
    HAND_BACK = "hand back"


@dataclass(frozen=True)
class Tools:
    """What all jobs of a worker share."""

    store: JobStore
    storage: Storage
    inputs: InputSource
    scratch: Path


@dataclass
class Carry:
    """One attempt under way."""

    tools: Tools
    taken: Taken
    provider: SlotProvider
    interrupt: Interrupt | None = None
    _interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    _latest: Progress | None = None
    _noted_s: float = 0.0
    _preview: str | None = None
    _performed: Performed | None = None
    _unowned: bool = False
    """Whether objects may lie under final keys that the job's row does not name: publishing has begun."""
    _phases: Phases = field(default_factory=Phases)

    async def run(self) -> None:
        """Do the job and write how it ended. Raises nothing but cancellation."""
        try:
            await self._run()
        except Exception:  # noqa: BLE001 - the job edge: a fault of ours costs this attempt its lease, never the worker
            _log.exception("job broke its worker's code", extra=self._facts)
        finally:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def stop(self, why: Interrupt) -> None:
        """Break the work off."""
        if self.interrupt is None:
            self.interrupt = why
            self._interrupted.set()

    @property
    def _facts(self) -> dict[str, object]:
        return {"job_id": self.taken.job.id, "attempt": self.taken.attempt}

    @property
    def _folder(self) -> Path:
        return self.tools.scratch / f"{self.taken.job.id}.{self.taken.attempt}"

    async def _run(self) -> None:
        working = asyncio.create_task(self._work())
        broken_off = asyncio.create_task(self._interrupted.wait())
        beating = asyncio.create_task(self._beat())
        try:
            await asyncio.wait({working, broken_off}, return_when=asyncio.FIRST_COMPLETED)
            if self._unowned and self.interrupt is Interrupt.CANCEL:
                await asyncio.wait({working}, timeout=LET_OUT_S)
            if not working.done():
                await self._break_off(working, beating)
                return
            await _end_task(beating)
            await self._settle(working)
        finally:
            for task in (working, broken_off, beating):
                await _end_task(task)

    async def _work(self) -> tuple[Artifact, ...]:
        """Perform and publish; returns the artifacts that now lie under their final keys."""
        taken, tools = self.taken, self.tools
        await asyncio.to_thread(self._folder.mkdir, parents=True)
        self._performed = await perform(
            Assignment(taken.job, taken.attempt, taken.run_deadline_s, taken.elsewhere),
            provider=self.provider,
            storage=tools.storage,
            inputs=tools.inputs,
            scratch=self._folder,
            on_progress=self._note,
            on_preview=self._note_preview,
            keep_elsewhere=self._keep_elsewhere,
        )
        return await publish(self._performed, tools.storage, still_ours=self._still_ours)

    def _note_preview(self, key: str) -> None:
        self._preview = key

    async def _keep_elsewhere(self, handle: str) -> None:
        """From now on the row decides: the next attempt goes on with it, and the job's end ends it there."""
        if not await self._insist(lambda: self._store.keep_elsewhere(*self._fence, handle)):
            raise LeaseLost

    def _note(self, progress: Progress) -> None:
        self._latest, self._noted_s = progress, time.monotonic()
        if progress.phase is not None and progress.phase != self._phases.current:
            self._phases.enter(progress.phase)

    async def _still_ours(self, artifacts: Sequence[Artifact]) -> None:
        """Asked immediately before each few copies; what a process heard before it was frozen is worth nothing."""
        owned = await self._insist(lambda: self._store.publishing(*self._fence, artifacts))
        if not owned.owned:
            raise LeaseLost
        if owned.cancel_requested and not self._unowned:
            raise Cancelled
        if not owned:  # the answer was too long under way
            await self._still_ours(artifacts)
        self._unowned = True

    async def _beat(self) -> None:
        """Write progress, keep the lease, hear of a cancel: one statement, at most four times a second."""
        job_id = self.taken.job.id
        written: Progress | None = None
        asked_s = time.monotonic()
        async with self.tools.store.events.job(job_id) as changed:
            while True:
                woken = await self._tick(changed)
                latest = self._latest
                if not (woken or latest is not written or time.monotonic() - asked_s >= IDLE_BEAT_S):
                    continue
                asked_s = time.monotonic()
                with contextlib.suppress(StoreUnavailable):
                    await self._beat_once(latest)
                    written = latest

    async def _tick(self, changed: Wake) -> bool:
        started_s = time.monotonic()
        woken = await changed.wait(TICK_S)
        if woken and self.interrupt is None:
            return True
        await asyncio.sleep(max(0.0, TICK_S - (time.monotonic() - started_s)))
        return woken

    async def _beat_once(self, latest: Progress | None) -> None:
        beat = await self.tools.store.beat(
            self.taken.job.id,
            self.taken.attempt,
            progress=None if latest is None else latest.fraction,
            phase=None if latest is None else latest.phase,
            message=None if latest is None else latest.message,
            eta_s=self._eta_s(latest),
            preview=self._preview,
        )
        if not beat.owned:
            self.stop(Interrupt.LEASE_LOST)
        elif beat.cancel_requested:
            self.stop(Interrupt.CANCEL)

    def _eta_s(self, latest: Progress | None) -> float | None:
        """What is left by now of the time that the engine named."""
        if latest is None or latest.eta_s is None:
            return None
        return max(0.0, latest.eta_s - (time.monotonic() - self._noted_s))

    # ends

    async def _break_off(self, working: asyncio.Task[tuple[Artifact, ...]], beating: asyncio.Task[None]) -> None:
        """Stop the work, then write what the interrupt asks for."""
        store, job_id, attempt = self.tools.store, self.taken.job.id, self.taken.attempt
        _log.info("job broken off: %s", self.interrupt, extra=self._facts)
        if self.interrupt is Interrupt.HAND_BACK:
            await self.provider.close()
        working.cancel()
        await asyncio.wait({working}, timeout=CANCEL_SHOWN_S if self.interrupt is Interrupt.CANCEL else None)
        await _end_task(beating)
        match self.interrupt:
            case Interrupt.CANCEL:
                await self._insist(lambda: store.cancelled(job_id, attempt, timings=self._phases.timings()))
            case Interrupt.HAND_BACK:
                await self._insist(lambda: store.hand_back(job_id, attempt))
        await _end_task(working)
        await self._clean()

    async def _settle(self, working: asyncio.Task[tuple[Artifact, ...]]) -> None:
        """Write how work that ended by itself went."""
        try:
            artifacts = working.result()
        except LeaseLost:
            _log.warning("job belongs to another worker by now", extra=self._facts)
        except Cancelled:
            await self._finish(lambda: self._store.cancelled(*self._fence, timings=self._phases.timings()))
        except RetryLater as error:
            await self._hand_back(error, delay_s=error.delay_s)
        except Crashed as error:
            await self._crashed(error)
        except MediamillError as error:
            await self._fail(error)
        except OSError as error:
            if error.errno in _NO_ROOM:
                await self._hand_back(RetryLater(f"No room for scratch files: {error.strerror}."), delay_s=DISK_PAUSE_S)
            else:
                await self._fail_unexpectedly(error)
        except Exception as error:  # noqa: BLE001 - the job edge: whatever it is, the job ends with it
            await self._fail_unexpectedly(error)
        else:
            await self._succeed(artifacts)
        await self._clean()

    @property
    def _store(self) -> JobStore:
        return self.tools.store

    @property
    def _fence(self) -> tuple[str, int]:
        return self.taken.job.id, self.taken.attempt

    async def _succeed(self, artifacts: tuple[Artifact, ...]) -> None:
        performed = self._performed
        assert performed is not None  # noqa: S101 - published
        try:
            done = await self._insist(
                lambda: self._store.succeed(
                    *self._fence,
                    artifacts=artifacts,
                    output=performed.output or None,
                    timings=performed.timings,
                    warnings=performed.warnings,
                )
            )
        except MediamillError:
            raise
        except Exception as error:  # noqa: BLE001 - the job edge: a result that cannot be written must not be lost in silence
            await self._fail_unexpectedly(error)
            return
        self._unowned = not done
        if not done:
            _log.warning("job's result came too late and is discarded", extra=self._facts)

    async def _fail(self, error: MediamillError) -> None:
        tail = error.log_tail if isinstance(error, EngineFailed) else ""
        _log.warning("job failed: %s%s", error.message, f"\n{tail}" if tail else "", extra=self._facts)
        told = JobError(error.code, for_callers(error).message)
        await self._finish(lambda: self._store.fail(*self._fence, told, timings=self._phases.timings()))

    async def _fail_unexpectedly(self, error: Exception) -> None:
        _log.error("job failed unexpectedly", exc_info=error, extra=self._facts)
        told = JobError("internal", f"The job failed unexpectedly ({type(error).__name__}).")
        await self._finish(lambda: self._store.fail(*self._fence, told, timings=self._phases.timings()))

    async def _hand_back(self, error: MediamillError, *, delay_s: float) -> None:
        _log.warning("job handed back for %.1f s: %s", delay_s, error.message, extra=self._facts)
        await self._finish(lambda: self._store.hand_back(*self._fence, delay_s=delay_s))

    async def _crashed(self, error: Crashed) -> None:
        _log.warning("job lost its child: %s", error.message, extra=self._facts)
        told = JobError(error.code, error.message)
        await self._finish(lambda: self._store.hand_back(*self._fence, charge="crash", error=told))

    async def _finish(self, call: Callable[[], Awaitable[bool]]) -> None:
        if not await self._insist(call):
            _log.warning("job belongs to another worker by now", extra=self._facts)

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Try again while the database is away: the bytes are safe, and the fence makes a repeat harmless."""
        tries = 0
        while True:
            try:
                return await call()
            except StoreUnavailable as error:
                if tries == 0:
                    _log.warning("database is away, tried again: %s", error.message, extra=self._facts)
            await asyncio.sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
            tries += 1

    async def _clean(self) -> None:
        """Delete this attempt's staged files, and published ones of a job that ended without them.

        A copy that was broken off may still arrive, so the sweep looks again. A live job's are left: its next attempt
        replaces them.
        """
        try:
            async with asyncio.timeout(CLEAN_WITHIN_S):
                await self._delete_unwanted()
        except (MediamillError, TimeoutError) as error:
            _log.info("left to the sweep: %s", str(error) or "the storage does not answer", extra=self._facts)

    async def _delete_unwanted(self) -> None:
        performed, storage, job_id = self._performed, self.tools.storage, self.taken.job.id
        if performed is not None:
            await discard(performed, storage)
            if self._unowned:
                leftovers = Leftovers(self._store.database, storage)
                for made in (staged.artifact for staged in performed.staged):
                    await leftovers.delete(Leftover(made.key, job_id, (made.sha256,)), look_again=True)
        elif self._latest is not None:
            folder = keys.attempt_folder(job_id, self.taken.attempt)
            for key in [key async for key, _ in storage.list(folder)]:
                await storage.delete(key)


async def _end_task(task: asyncio.Task[T]) -> None:
    """Cancel and wait; its outcome is not wanted any more."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()

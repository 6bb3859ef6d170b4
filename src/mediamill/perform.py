"""Steps 5 to 7 of the data walk: inputs fetched, work run, outputs stored and published. Knows no database."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mediamill import catalog, keys
from mediamill.catalog import Entry, InputRef
from mediamill.errors import (
    DeadlineExceeded,
    EngineFailed,
    InputError,
    MediamillError,
    RetryLater,
    StorageUnavailable,
)
from mediamill.model import (
    Artifact,
    Elsewhere,
    InputFile,
    Job,
    JobError,
    Json,
    OutputData,
    OutputFile,
    Phase,
    Progress,
    Provider,
    Storage,
    Work,
)

_log = logging.getLogger(__name__)

PUTS_AT_ONCE = 4
COPIES_AT_ONCE = 8
PATIENCE_S = 300.0
"""How long a storage that does not answer is tried again before finished work is given up."""
FETCH_AGAIN_S = 10.0
KEEP_LIMIT_S = 5.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0

T = TypeVar("T")


class InputSource(Protocol):
    """What perform needs of `inputs.Inputs`."""

    async def resolve(
        self, refs: Sequence[InputRef], *, into: Path, partial: bool
    ) -> tuple[dict[str, InputFile], dict[str, JobError]]:
        """Local files by field path; with `partial` also errors, else the first one is raised."""
        ...


@dataclass(frozen=True)
class Assignment:
    """One attempt at a job. `deadline_s`: seconds it may take in all, from now. `elsewhere`: as in Work."""

    job: Job
    attempt: int
    deadline_s: float
    elsewhere: str | None = None


@dataclass(frozen=True)
class Staged:
    """A stored output that nobody sees yet: the artifact with its final key, and where its bytes are now."""

    artifact: Artifact
    staged_key: str


@dataclass(frozen=True)
class Performed:
    """What an attempt brought; nothing of it is published."""

    staged: tuple[Staged, ...]
    output: dict[str, Json]
    timings: dict[str, float]
    warnings: tuple[str, ...] = ()


async def perform(
    assignment: Assignment,
    *,
    provider: Provider,
    storage: Storage,
    inputs: InputSource,
    scratch: Path,
    on_progress: Callable[[Progress], None],
    on_preview: Callable[[str], None] | None = None,
    keep_elsewhere: Callable[[str], Awaitable[None]] | None = None,
    patience_s: float = PATIENCE_S,
) -> Performed:
    """Fetch the inputs, run the work, and put its outputs under this attempt's keys.

    Args:
        assignment: The job and this attempt's number and time limit.
        provider: Where it runs. Cancelling the caller's task cancels the work there.
        storage: Where outputs go. One that does not answer is tried again without running the work again.
        inputs: Where input files come from.
        scratch: An empty folder; the caller deletes it.
        on_progress: Called in the event loop; fractions never fall.
        on_preview: Called in the event loop with the key of each stored look at unfinished work; None: none is stored.
        keep_elsewhere: Keeps the handle of work that others took; it then outlives this attempt. None: it does not.
        patience_s: How long to keep trying to store one file.

    Raises:
        What fetching, the provider or the engine raised; DeadlineExceeded; StorageError; RetryLater: nothing was
        done and it should be tried later.
    """
    attempt = _Attempt(assignment, on_progress, _Uploads(storage, on_preview, patience_s), keep_elsewhere)
    try:
        async with asyncio.timeout(assignment.deadline_s):
            work = await attempt.fetch(inputs, scratch)
            await attempt.run(provider, work, scratch)
            return await attempt.performed()
    except (TimeoutError, DeadlineExceeded) as error:  # ours or the provider's, whoever noticed first
        limit = f"The job took longer than {assignment.deadline_s:g} s; it was then {attempt.phases.current}."
        raise DeadlineExceeded(limit) from error
    finally:
        await attempt.uploads.abandon()


async def publish(
    performed: Performed,
    storage: Storage,
    *,
    still_ours: Callable[[Sequence[Artifact]], Awaitable[None]] | None = None,
) -> tuple[Artifact, ...]:
    """Copy the staged outputs to their final keys and return their artifacts. Safe to repeat until `discard`.

    `still_ours` is awaited with the artifacts immediately before each few copies and raises LeaseLost to stop them.
    """
    for at in range(0, len(performed.staged), COPIES_AT_ONCE):
        some = performed.staged[at : at + COPIES_AT_ONCE]
        if still_ours is not None:
            await still_ours([staged.artifact for staged in some])
        await asyncio.gather(*(patiently(_copy(storage, staged), PATIENCE_S) for staged in some))
    return tuple(staged.artifact for staged in performed.staged)


def _copy(storage: Storage, staged: Staged) -> Callable[[], Awaitable[None]]:
    return lambda: storage.copy(staged.staged_key, staged.artifact.key)


async def discard(performed: Performed, storage: Storage) -> None:
    """Delete the staged copies. What cannot be deleted now is left to the sweep."""
    for staged in performed.staged:
        with contextlib.suppress(MediamillError):
            await storage.delete(staged.staged_key)


async def patiently(call: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """Try again, ever more slowly, while the storage does not answer. Raises its last error after `patience_s`."""
    until_s = time.monotonic() + patience_s
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except StorageUnavailable as error:
            if time.monotonic() + pause_s > until_s:
                raise
            _log.warning("storage does not answer, tried again in %.1f s: %s", pause_s, error.message)
        await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads retries, keeps no secret
        pause_s = min(LONGEST_PAUSE_S, pause_s * 2)


@dataclass
class Phases:
    """Seconds spent in each phase, from its making on."""

    spent_s: dict[str, float] = field(default_factory=dict)
    current: Phase = Phase.FETCHING
    since_s: float = field(default_factory=time.monotonic)

    def enter(self, phase: Phase) -> None:
        """The current phase ends, this one begins."""
        now_s = time.monotonic()
        name = f"{self.current}_s"
        self.spent_s[name] = self.spent_s.get(name, 0.0) + now_s - self.since_s
        self.current, self.since_s = phase, now_s

    def timings(self) -> dict[str, float]:
        """As a job's row keeps them, up to now."""
        self.enter(self.current)
        return {name: round(spent_s, 4) for name, spent_s in self.spent_s.items()}


class _Attempt:
    """The state of one perform()."""

    def __init__(
        self,
        assignment: Assignment,
        on_progress: Callable[[Progress], None],
        uploads: _Uploads,
        keep_elsewhere: Callable[[str], Awaitable[None]] | None,
    ) -> None:
        self.elsewhere, self.keep_elsewhere = assignment.elsewhere, keep_elsewhere
        self.job, self.number, self.deadline_s = assignment.job, assignment.attempt, assignment.deadline_s
        self.until_s = time.monotonic() + assignment.deadline_s
        self.entry: Entry = catalog.get(self.job.model)
        self.request: Any = self.entry.request.model_validate(self.job.input)
        self.phases = Phases()
        self.uploads = uploads
        self.output: dict[str, Json] = {}
        self.warnings: list[str] = []
        self.on_progress = on_progress
        self.fraction = 0.0
        prefix = self.entry.key_prefix(self.request) or keys.output_folder("{job_id}")
        self.prefix = prefix.replace("{job_id}", self.job.id)

    async def fetch(self, inputs: InputSource, scratch: Path) -> Work:
        """The typed work with its input files on local disk."""
        self.tell(Progress(0.0, Phase.FETCHING))
        folder = scratch / "inputs"
        await asyncio.to_thread(folder.mkdir, parents=True)
        refs = list(catalog.input_refs(self.request))
        files: Mapping[str, InputFile] = {}
        errors: Mapping[str, JobError] = {}
        if refs:
            try:
                files, errors = await inputs.resolve(refs, into=folder, partial=self.entry.partial_inputs)
            except StorageUnavailable as error:
                raise RetryLater(error.message, delay_s=FETCH_AGAIN_S) from error
        if errors and not self.entry.partial_inputs:
            path, first = next(iter(errors.items()))
            raise InputError(f"{path}: {first.message}")
        params = self.request.model_dump(mode="json")
        return Work(self.job.id, self.number, self.job.model, params, files, errors, self.elsewhere)

    async def run(self, provider: Provider, work: Work, scratch: Path) -> None:
        """Run it, storing each file while the next one is made."""
        self.tell(Progress(0.0, Phase.LOADING))
        folder = scratch / "work"
        await asyncio.to_thread(folder.mkdir, parents=True)
        left_s = max(0.0, self.until_s - time.monotonic())
        async with closing(provider.run(work, scratch=folder, deadline_s=left_s)) as events:
            async for event in events:
                match event:
                    case Progress():
                        self.tell(event)
                    case OutputFile(preview=True):
                        self.uploads.preview(event, keys.preview_folder(self.job.id) + _component(event.name))
                    case OutputFile():
                        name = _component(event.name)
                        staged_key = keys.attempt_folder(self.job.id, self.number) + name
                        self.uploads.start(event, staged_key=staged_key, key=f"{self.prefix}{name}")
                    case OutputData():
                        values = dict(event.values)
                        self.warnings += values.pop("warnings", ())
                        self.output.update(values)
                    case Elsewhere() if self.keep_elsewhere is not None:
                        await _kept(event, self.keep_elsewhere)

    async def performed(self) -> Performed:
        """Everything stored, in the order in which the engine made it."""
        self.tell(Progress(self.fraction, Phase.UPLOADING))
        staged = await self.uploads.finish()
        if not staged and not self.output:
            raise EngineFailed("The engine ended without a result.")
        if not staged and self.entry.output_kind != "json":
            raise EngineFailed("The engine ended without a file.")
        return Performed(staged, self.output, self.phases.timings(), tuple(dict.fromkeys(self.warnings)))

    def tell(self, progress: Progress) -> None:
        """Pass progress on, never falling, and note the phase's time."""
        if progress.phase is not None and progress.phase != self.phases.current:
            self.phases.enter(progress.phase)
        self.fraction = max(self.fraction, min(1.0, progress.fraction))
        self.on_progress(replace(progress, fraction=self.fraction, phase=self.phases.current))


class _Uploads:
    """Outputs on their way into storage, a few at once, while the engine goes on."""

    def __init__(self, storage: Storage, on_preview: Callable[[str], None] | None, patience_s: float) -> None:
        self._storage = storage
        self._on_preview = on_preview
        self._patience_s = patience_s
        self._room = asyncio.Semaphore(PUTS_AT_ONCE)
        self._tasks: dict[str, asyncio.Task[Staged]] = {}
        self._previews: set[asyncio.Task[None]] = set()
        self._looks = 0
        self._shown = 0

    def start(self, file: OutputFile, *, staged_key: str, key: str) -> None:
        if file.name in self._tasks:
            raise EngineFailed(f"The engine made two files named {file.name!r}.")
        self._tasks[file.name] = asyncio.create_task(self._put(file, staged_key, key))

    def preview(self, file: OutputFile, key: str) -> None:
        if self._on_preview is None:
            return
        self._looks += 1
        task = asyncio.create_task(self._put_preview(file, key, self._looks, self._on_preview))
        self._previews.add(task)
        task.add_done_callback(self._previews.discard)

    async def finish(self) -> tuple[Staged, ...]:
        return tuple(await asyncio.gather(*self._tasks.values()))

    async def abandon(self) -> None:
        tasks = [*self._tasks.values(), *self._previews]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _put(self, file: OutputFile, staged_key: str, key: str) -> Staged:
        async with self._room:
            stored = await patiently(
                lambda: self._storage.put(staged_key, file.path, media_type=file.media_type), self._patience_s
            )
        artifact = Artifact(file.name, key, file.media_type, stored.size_bytes, stored.sha256, file.facts)
        return Staged(artifact, staged_key)

    async def _put_preview(self, file: OutputFile, key: str, number: int, tell: Callable[[str], None]) -> None:
        try:
            await self._storage.put(key, file.path, media_type=file.media_type)
            if number > self._shown:  # a slow storage may be done with a later one first
                self._shown = number
                tell(key)
        except (MediamillError, OSError) as error:
            _log.info("a preview was not stored: %s", error)


async def _kept(event: Elsewhere, keep: Callable[[str], Awaitable[None]]) -> None:
    """Keep the handle, also when told to stop meanwhile: half kept, the work would be lost or done twice."""
    keeping = asyncio.ensure_future(keep(event.handle))
    try:
        await asyncio.shield(keeping)
    except asyncio.CancelledError:
        await asyncio.wait({keeping}, timeout=KEEP_LIMIT_S)
        keeping.cancel()
        raise
    finally:
        event.kept = keeping.done() and not keeping.cancelled() and keeping.exception() is None


def _component(name: str) -> str:
    """`name` itself when it is one path component. Raises EngineFailed."""
    if not name or name in {".", ".."} or "/" in name or "\0" in name:
        raise EngineFailed(f"The engine named a file {name!r}; accepted: one path component.")
    return name


@contextlib.asynccontextmanager
async def closing(events: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close the iterator at the end, which is how work is cancelled."""
    try:
        yield events
    finally:
        close: Callable[[], Awaitable[None]] | None = getattr(events, "aclose", None)
        if close is not None:
            await close()

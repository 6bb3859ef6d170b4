"""A worker in the test's own process, on a real store, the memory storage and real children."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mediamill.catalog import InputRef
from mediamill.config import Settings
from mediamill.errors import StoreUnavailable
from mediamill.jobs.store import JobStore, Submission
from mediamill.jobs.worker import Worker, WorkerDeps
from mediamill.model import InputFile, Job, JobError, Phase, Status, Storage
from mediamill.providers import local
from mediamill.providers.local import LocalProvider
from mediamill.storage import LocalUrls
from mediamill.storage.memory import MemoryStorage


class NoInputs:
    """For entries without inputs."""

    async def resolve(
        self, refs: Sequence[InputRef], *, into: Path, partial: bool
    ) -> tuple[dict[str, InputFile], dict[str, JobError]]:
        return {}, {}


@dataclass
class Workshop:
    """Starts workers and knows their children."""

    store: JobStore
    settings: Settings
    storage: Storage = field(default_factory=lambda: MemoryStorage(LocalUrls("http://files", b"secret")))
    providers: list[LocalProvider] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def worker(self, *, pool: str = "cpu", slots: int = 1, **rest: Any) -> Worker:
        deps = WorkerDeps(self.settings, self.store, self.storage, NoInputs(), self._provider, **rest)
        return Worker(deps, pool=pool, slots=slots)

    def _provider(self) -> LocalProvider:
        self.providers.append(local.create(self.settings))
        return self.providers[-1]

    @contextlib.asynccontextmanager
    async def working(self, **how: Any) -> AsyncIterator[asyncio.Task[None]]:
        """A running worker; it is drained at the end unless it has ended before."""
        task = asyncio.create_task(self.worker(**how).run(self.stop))
        try:
            yield task
        finally:
            self.stop.set()
            try:
                await task
            finally:
                self.stop = asyncio.Event()

    async def make(self, model: str = "fake", **params: Any) -> Job:
        values = {"kind": "image", "width": 32, "height": 32, "seed": 1, **params}
        job, _ = await self.store.submit(Submission(model=model, input=values, pool="cpu"))
        return job

    async def end_of(self, job: Job) -> Job:
        return await self.until(job, lambda j: j.status.ended)

    async def until(self, job: Job, what: Callable[[Job], bool]) -> Job:
        """The job as soon as its row satisfies `what`; a database that is away is asked again."""
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(StoreUnavailable):
                    if what(found := await self.store.get(job.id)):
                        return found
                await asyncio.sleep(0.02)

    async def generating(self, job: Job) -> Job:
        return await self.until(job, lambda j: j.phase is Phase.GENERATING)

    async def running(self, job: Job) -> Job:
        return await self.until(job, lambda j: j.status is Status.RUNNING)

    async def keys(self, folder: str = "") -> list[str]:
        return [key async for key, _ in self.storage.list(folder)]

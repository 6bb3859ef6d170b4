"""Where the jobs of a pool run: in child processes of this worker, or elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mediamill.catalog import InputRef
from mediamill.config import Settings
from mediamill.errors import DeadlineExceeded, EngineFailed
from mediamill.inputs import UrlGuard
from mediamill.jobs.carry import SlotProvider
from mediamill.jobs.files import Files
from mediamill.model import InputFile, JobError, OutputFile, Work
from mediamill.perform import InputSource, closing
from mediamill.providers import local, runpod
from mediamill.providers.local import LocalProvider

REMOTE = "remote"
"""The pool of the jobs that run elsewhere."""
PROBE_LIMIT_S = 120.0
"""For the files of one job: the others wait meanwhile."""


@dataclass(frozen=True)
class Place:
    """Open; whoever opened it closes it, but for the slots' providers."""

    slot: Callable[[], SlotProvider]
    """A provider for one more slot."""
    inputs: InputSource
    end: Callable[[str], Awaitable[None]] | None = None
    """Ends work that an attempt left there, by its handle; None where nothing can be left."""


@contextlib.asynccontextmanager
async def opened_place(settings: Settings, pool: str, files: Files) -> AsyncIterator[Place]:
    """The place of a pool. Raises Misconfigured: the pool is `remote` and there is no key for it."""
    if pool != REMOTE:
        yield Place(lambda: local.create(settings, pool=pool), files.inputs)
        return
    async with contextlib.AsyncExitStack() as stack:
        client = runpod.Client(settings)
        stack.push_async_callback(client.close)
        guard = UrlGuard(settings.fetch_allow)
        stack.push_async_callback(guard.close)
        prober = Prober(local.create(settings, engine="received"))
        stack.push_async_callback(prober.child.close)
        provider = runpod.create(settings, client=client, storage=files.storage, guard=guard, probe=prober.probe)
        yield Place(lambda: provider, PassedOn(), provider.end)


class PassedOn:
    """Fetches nothing: references are passed on to whoever does the work."""

    async def resolve(
        self, refs: Sequence[InputRef], *, into: Path, partial: bool
    ) -> tuple[dict[str, InputFile], dict[str, JobError]]:
        """No files, no errors."""
        del refs, into, partial
        return {}, {}


class Prober:
    """Probes what came from elsewhere, in one child for all slots: decoding it is never this process's business."""

    def __init__(self, child: LocalProvider) -> None:
        """The child is started with the first file; whoever made it closes it."""
        self.child = child
        self._turn = asyncio.Lock()

    async def probe(self, files: Sequence[OutputFile], scratch: Path, deadline_s: float) -> list[OutputFile]:
        """The files with their facts. Raises EngineFailed for one that is damaged, or takes too long; Crashed."""
        listed = [{"name": f.name, "path": str(f.path), "media_type": f.media_type} for f in files]
        work = Work("received", 1, "received", {"files": listed})
        limit_s = min(deadline_s, PROBE_LIMIT_S)
        async with self._turn:
            try:
                async with closing(self.child.run(work, scratch=scratch, deadline_s=limit_s)) as events:
                    return [event async for event in events if isinstance(event, OutputFile)]
            except DeadlineExceeded as error:
                raise EngineFailed(f"The files could not be examined within {limit_s:g} s.") from error

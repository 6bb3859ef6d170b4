"""How others on the same database hear of this API process: workers that start later keep files where it does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from mediamill import __version__
from mediamill.api.deps import Deps
from mediamill.errors import StorageError, StoreUnavailable
from mediamill.jobs.fleet import ANNOUNCE_EVERY_S, host_of, name_of
from mediamill.jobs.worker import LEAVING_S

POOL = "api"


@contextlib.asynccontextmanager
async def announced(deps: Deps) -> AsyncIterator[None]:
    """Say every few seconds, until the end of the block, that this process is there and where it keeps files."""
    name = name_of(POOL)
    announcing = asyncio.create_task(_announce(deps, name))
    try:
        yield
    finally:
        announcing.cancel()
        await asyncio.wait([announcing])
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(LEAVING_S):
                await deps.store.depart(name)


async def _announce(deps: Deps, name: str) -> None:
    while True:
        with contextlib.suppress(StoreUnavailable, StorageError):
            facts = {"storage": await deps.storage.identity(), "host": host_of(deps.settings)}
            await deps.store.announce(name, pool=POOL, slots=0, version=__version__, facts=facts)
        await asyncio.sleep(ANNOUNCE_EVERY_S)

"""What the API and the workers open alike: the storage, and what fetches the callers' files."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from mediamill.config import Settings
from mediamill.inputs import Inputs, UrlGuard
from mediamill.jobs import fleet
from mediamill.jobs.store import JobStore
from mediamill.model import Storage
from mediamill.storage import open_storage


@dataclass(frozen=True)
class Files:
    """Open; whoever opened them closes them."""

    storage: Storage
    guard: UrlGuard
    """Of the inputs: what else goes out should have its own."""
    inputs: Inputs


@contextlib.asynccontextmanager
async def opened_files(settings: Settings, store: JobStore, *, public_url: str) -> AsyncIterator[Files]:
    """Open, and closed after the block. `public_url`: base of the URLs that callers get.

    Raises: Misconfigured, also when others on this database keep files elsewhere; StorageError; StoreUnavailable.
    """
    secret = settings.url_secret.get_secret_value().encode() if settings.url_secret else await store.secret("url")
    async with contextlib.AsyncExitStack() as stack:
        storage = open_storage(settings, public_url=public_url, secret=secret)
        stack.push_async_callback(storage.close)
        await fleet.join(settings, store, storage)
        guard = UrlGuard(settings.fetch_allow)
        stack.push_async_callback(guard.close)
        inputs = Inputs(
            cache_dir=settings.data_dir / "cache",
            storage=storage,
            guard=guard,
            cache_bytes=settings.cache_bytes,
            timeout_s=settings.fetch_timeout_s,
        )
        stack.push_async_callback(inputs.close)
        yield Files(storage, guard, inputs)

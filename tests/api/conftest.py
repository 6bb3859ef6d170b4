"""A running API on loopback, over a fresh database and storage in memory."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from mediamill.api.app import create_app, serve_app
from mediamill.api.deps import Deps
from mediamill.config import Settings
from mediamill.inputs.guard import UrlGuard
from mediamill.inputs.resolver import Inputs
from mediamill.jobs.store import JobStore
from mediamill.storage import open_storage


@dataclass
class Service:
    """One running API. `call` gives status, headers and the parsed body."""

    base_url: str
    deps: Deps
    http: aiohttp.ClientSession
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        if isinstance(options.get("data"), bytes):
            options["data"] = io.BytesIO(options["data"])
        async with self.http.request(
            method, URL(f"{self.base_url}{path}", encoded=True), allow_redirects=False, **options
        ) as response:
            raw = await response.read()
            kind = response.headers.get("Content-Type", "")
            return Answer(
                response.status, response.headers, await response.json(content_type=None) if "json" in kind else raw
            )

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.call("POST", path, json=body, headers=named)

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.call("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class Answer:
    status: int
    headers: Any
    body: Any


@contextlib.asynccontextmanager
async def running(store: JobStore, folder: Path, **values: Any) -> AsyncIterator[Service]:
    """The API with these settings; keyless by default."""
    sock = socket.create_server(("127.0.0.1", 0))
    base_url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    defaults = {"storage_mode": "memory", "data_dir": folder / "data", "reserve_bytes": 0, "public_url": base_url}
    settings = Settings(_env_file=None, **(defaults | values))
    storage = open_storage(settings, public_url=base_url, secret=b"test secret")
    guard = UrlGuard(settings.fetch_allow)
    inputs = Inputs(cache_dir=folder / "cache", storage=storage, guard=guard, cache_bytes=10**7, timeout_s=10)
    deps = Deps(settings=settings, store=store, storage=storage, inputs=inputs, guard=guard)
    async with aiohttp.ClientSession() as http:
        service = Service(base_url, deps, http)
        started = asyncio.Event()
        serving = asyncio.ensure_future(serve_app(create_app(deps), sock, service.stop, started=started.set))
        try:
            await started.wait()
            yield service
        finally:
            service.stop.set()
            await serving
            sock.close()
            await guard.close()


@pytest.fixture
def start(store: JobStore, tmp_path: Path) -> Callable[..., contextlib.AbstractAsyncContextManager[Service]]:
    """Start an API with the settings given: `async with start(x_api_key="k") as service`."""
    return lambda **values: running(store, tmp_path, **values)


@pytest.fixture
async def service(start) -> AsyncIterator[Service]:
    """A keyless API."""
    async with start() as started:
        yield started

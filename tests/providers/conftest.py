from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from mediamill import catalog
from mediamill.config import Settings
from mediamill.inputs.guard import UrlGuard
from mediamill.jobs.places import Prober
from mediamill.model import Storage
from mediamill.providers import local, runpod
from mediamill.storage import LocalUrls
from mediamill.storage.memory import MemoryStorage
from tests.media_samples import still, video
from tests.providers import odd
from tests.providers.remote import QUICK, Made, settings_for, unprobed
from tests.runpod_host import RunPodHost, hosting


@pytest.fixture
def odd_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[catalog.Entry]:
    """The outside engine `odd`, findable by child processes, and its catalog entry in this one."""
    odd.install(tmp_path / "outside")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "outside"))
    catalog.register(odd.ENTRY)
    catalog.load.cache_clear()
    yield odd.ENTRY
    del catalog._entries["odd"]
    catalog.load.cache_clear()


@pytest.fixture
async def provider() -> AsyncIterator[local.LocalProvider]:
    """With more grace than anything that stops by itself needs, however busy the machine is."""
    made = local.create(Settings(fake_engines="all", cancel_grace_s=20))
    yield made
    await made.close()


@pytest.fixture
async def strict() -> AsyncIterator[local.LocalProvider]:
    """For children that do not stop by themselves."""
    made = local.create(Settings(fake_engines="all", cancel_grace_s=0.3))
    yield made
    await made.close()


@pytest.fixture
def host() -> Iterator[RunPodHost]:
    with hosting() as started:
        yield started


@pytest.fixture
def png(tmp_path: Path) -> bytes:
    return still(tmp_path / "sample.png", 64, 48).read_bytes()


@pytest.fixture
def mp4(tmp_path: Path) -> bytes:
    return video(tmp_path / "sample.mp4", frames=6).read_bytes()


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage(LocalUrls("http://127.0.0.1:9", b"secret"))


@pytest.fixture
async def make(host: RunPodHost, storage: MemoryStorage) -> AsyncIterator[Made]:
    """A provider on the host; `make(storage=..., probe=..., runpod_api_key=...)`."""
    async with contextlib.AsyncExitStack() as stack:

        def made(
            *, kept_in: Storage = storage, probe: runpod.Probe = unprobed, pace: runpod.Pace = QUICK, **values: Any
        ) -> runpod.RunPod:
            settings = settings_for(host, **values)
            client, guard = runpod.Client(settings), UrlGuard(settings.fetch_allow)
            stack.push_async_callback(client.close)
            stack.push_async_callback(guard.close)
            return runpod.create(settings, client=client, storage=kept_in, guard=guard, probe=probe, pace=pace)

        yield made


@pytest.fixture
async def prober() -> AsyncIterator[Prober]:
    made = Prober(local.create(Settings(_env_file=None), engine="received"))
    yield made
    await made.child.close()

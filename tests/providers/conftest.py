from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mediamill import catalog
from mediamill.config import Settings
from mediamill.providers import local
from tests.providers import odd


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

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mediamill.inputs import Inputs, UrlGuard
from mediamill.storage import LocalUrls
from mediamill.storage.file import FileStorage

PUBLIC_URL = "http://127.0.0.1:8123"


@pytest.fixture
async def guard() -> AsyncIterator[UrlGuard]:
    """Lets tests reach their servers on loopback, and nothing else."""
    made = UrlGuard(["127.0.0.1"])
    yield made
    await made.close()


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path / "outputs", LocalUrls(PUBLIC_URL, b"secret"))


@pytest.fixture
def inputs(tmp_path: Path, storage: FileStorage, guard: UrlGuard) -> Inputs:
    return Inputs(cache_dir=tmp_path / "cache", storage=storage, guard=guard, cache_bytes=10**7, timeout_s=20)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    return folder

"""Objects in this process's memory: for tests and tries; gone with the process, unknown to any other."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mediamill.config import Settings
from mediamill.errors import NotFound
from mediamill.model import StoredObject
from mediamill.storage import LocalUrls, checked_key, folder_prefix

_CHUNK_BYTES = 1024**2


def create(settings: Settings, *, public_url: str, secret: bytes) -> MemoryStorage:
    """An empty storage."""
    return MemoryStorage(LocalUrls(public_url, secret, settings.url_ttl_s))


@dataclass(frozen=True)
class _Held:
    stored: StoredObject
    content: bytes
    modified_at: datetime


class MemoryStorage:
    """Storage in a dict. Keeps the whole of every object in memory."""

    def __init__(self, urls: LocalUrls) -> None:
        """`urls`: how its objects are addressed."""
        self.urls = urls
        self._objects: dict[str, _Held] = {}
        self._identity = f"memory:{secrets.token_hex(16)}"

    async def put(self, key: str, source: Path, *, media_type: str) -> StoredObject:
        """Write the whole file at once."""
        content = source.read_bytes()
        stored = StoredObject(checked_key(key), len(content), hashlib.sha256(content).hexdigest(), media_type)
        self._objects[key] = _Held(stored, content, datetime.now(UTC))
        return stored

    async def copy(self, source_key: str, key: str) -> None:
        """Copy with its media type, replacing `key`. Raises NotFound without a source."""
        held = self._held(source_key)
        stored = StoredObject(checked_key(key), held.stored.size_bytes, held.stored.sha256, held.stored.media_type)
        self._objects[key] = _Held(stored, held.content, datetime.now(UTC))

    async def stat(self, key: str) -> StoredObject:
        """Size, media type and sha256. Raises NotFound."""
        return self._held(key).stored

    async def open(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Stream bytes start (inclusive) to end (exclusive). Raises NotFound at the first step."""
        wanted = self._held(key).content[start:end]
        for at in range(0, len(wanted), _CHUNK_BYTES):
            yield wanted[at : at + _CHUNK_BYTES]

    async def delete(self, key: str) -> None:
        """Delete; a missing key is no error."""
        self._objects.pop(checked_key(key), None)

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, datetime]]:
        """Keys below a folder with their last modification, in key order."""
        folder = folder_prefix(prefix)
        for key, held in sorted(self._objects.items()):
            if key.startswith(folder):
                yield key, held.modified_at

    async def url(self, key: str) -> str:
        """The URL at which this process's API serves it."""
        return self.urls.url(key)

    def key_of(self, url: str) -> str | None:
        """The key when `url` is one of ours."""
        return self.urls.key_of(url)

    async def check(self) -> None:
        """Nothing can be wrong with it."""

    async def identity(self) -> str:
        """Never equal to another instance's."""
        return self._identity

    async def free_bytes(self) -> int | None:
        """None: not known."""
        return None

    async def close(self) -> None:
        """Forget everything."""
        self._objects.clear()

    def _held(self, key: str) -> _Held:
        held = self._objects.get(checked_key(key))
        if held is None:
            raise NotFound(f"There is no object {key!r}.")
        return held

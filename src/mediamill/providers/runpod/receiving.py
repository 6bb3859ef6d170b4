"""A result's files on their way from RunPod into scratch: guarded, capped, checked, and told by their bytes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mediamill.errors import (
    InputError,
    InputUnreachable,
    InvalidRequest,
    NotFound,
    ProviderError,
    TooLarge,
    UnsupportedMedia,
)
from mediamill.inputs.fetch import Limits, fetch
from mediamill.inputs.guard import UrlGuard
from mediamill.inputs.references import check_url, decoded
from mediamill.media.sniff import sniff
from mediamill.model import OutputFile, Storage
from mediamill.providers.runpod.reading import RemoteFile

_log = logging.getLogger(__name__)

LARGEST_FILE_BYTES = 4 * 1024**3
_AT_ONCE = 4
_FIRST_PAUSE_S = 1.0
_TEXT = frozenset({"application/json", "application/x-subrip", "text/plain", "text/vtt", "text/x-ssa"})
"""Media types without a signature that a result may have; a page or a script is none of them."""
_ALSO = {
    "video/x-matroska": frozenset({"video/webm", "audio/webm"}),
    "audio/ogg": frozenset({"video/ogg"}),
    "video/mp4": frozenset({"audio/mp4"}),
}
"""What files of one signature may also be; the probe decides."""
_SUFFIX = {"image/jpeg": ".jpg", "audio/mpeg": ".mp3", "audio/mp4": ".m4a", "video/quicktime": ".mov"}


@dataclass(frozen=True)
class Receiver:
    """Fetches files. The storage and the guard are the caller's to close."""

    storage: Storage
    guard: UrlGuard
    timeout_s: float
    """Longest download of one file."""
    patience_s: float
    """How long a file that cannot be fetched is tried again: it has been paid for."""

    async def receive(self, files: Sequence[RemoteFile], scratch: Path) -> list[OutputFile]:
        """Every file in the scratch folder, not probed yet.

        Raises: ProviderError naming the file: it cannot be had, or is not what was announced.
        """
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(number: int, file: RemoteFile) -> OutputFile:
            async with room:
                return await self._receive(number, file, scratch / f"{number:04d}")

        tasks = [asyncio.ensure_future(one(number, file)) for number, file in enumerate(files)]
        try:
            received = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return received

    async def _receive(self, number: int, file: RemoteFile, path: Path) -> OutputFile:
        what = f"the file {file.name!r}" if file.name else "the file"
        try:
            size_bytes, sha256 = await self._obtain(file, path)
        except (InputError, InvalidRequest, TooLarge, NotFound) as error:
            raise ProviderError(f"RunPod's job ended, but {what} cannot be had: {error.message}") from error
        if file.size_bytes not in {None, size_bytes}:
            raise ProviderError(f"RunPod announced {file.size_bytes} bytes of {what} and delivered {size_bytes}.")
        if file.sha256 not in {None, sha256}:
            raise ProviderError(f"RunPod delivered {what} with another SHA-256 than announced.")
        media_type = await asyncio.to_thread(_media_type, path, file.media_type, what)
        name = file.name or f"output{'' if number == 0 else f'_{number + 1}'}{_suffix(media_type)}"
        return OutputFile(name, path, media_type)

    async def _obtain(self, file: RemoteFile, path: Path) -> tuple[int, str]:
        """Size and SHA-256 of what was written."""
        if file.base64 is not None:
            content = await asyncio.to_thread(decoded, file.base64, field="base64", max_bytes=LARGEST_FILE_BYTES)
            await asyncio.to_thread(path.write_bytes, content)
            return len(content), hashlib.sha256(content).hexdigest()
        url = file.url or ""
        key = self.storage.key_of(url)
        if key is not None:
            return await self._from_storage(key, path)
        check_url(url, "url", self.guard)
        give_up_s = time.monotonic() + self.patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await self._fetch(url, path)
            except InputUnreachable as error:
                if time.monotonic() + pause_s > give_up_s:
                    raise
                _log.info("%s It is tried again in %.1f s.", error.message, pause_s)
            await asyncio.sleep(pause_s)
            pause_s *= 2

    async def _fetch(self, url: str, path: Path) -> tuple[int, str]:
        limits = Limits(LARGEST_FILE_BYTES, self.timeout_s)
        with path.open("w+b") as opened:
            fetched = await fetch(self.guard, url, opened, name="url", limits=limits)
        return fetched.size_bytes, fetched.sha256

    async def _from_storage(self, key: str, path: Path) -> tuple[int, str]:
        """The worker has put it where this installation keeps its files, too."""
        digest = hashlib.sha256()
        with path.open("wb") as opened:
            async for chunk in self.storage.open(key):
                digest.update(chunk)
                opened.write(chunk)
            return opened.tell(), digest.hexdigest()


def _media_type(path: Path, announced: str | None, what: str) -> str:
    """What the bytes say, which must be of the announced kind. Nothing is decoded here."""
    if announced in _TEXT:
        return announced or ""
    try:
        found = sniff(path).media_type
    except UnsupportedMedia as error:
        raise ProviderError(f"RunPod delivered {what}, which cannot be used: {error.message}") from error
    if announced in _ALSO.get(found, ()):
        return announced or found
    if announced is None or announced.split("/")[0] == found.split("/")[0]:
        return found
    raise ProviderError(f"RunPod announced {what} as {announced} and delivered {found}.")


def _suffix(media_type: str) -> str:
    return _SUFFIX.get(media_type) or f".{media_type.rpartition('/')[2].removeprefix('x-')}"

"""Objects as files below one folder; this service's API serves them.

Each object has a sidecar with its media type and sha256. The sidecar names the size and the modification time of the
bytes it speaks of, so one that does not fit (written, and its writer killed before the bytes) is never believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import mimetypes
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from mediamill import keys
from mediamill.config import Settings
from mediamill.durable import FULL, move_into_place, sweep_unfinished, unfinished
from mediamill.errors import NotFound, StorageError, StorageRefused, StorageUnavailable
from mediamill.model import StoredObject
from mediamill.storage import LocalUrls, checked_key, folder_prefix

_CHUNK_BYTES = 1024**2
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_WRONG_KIND = frozenset({errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY})


def create(settings: Settings, *, public_url: str, secret: bytes) -> FileStorage:
    """The storage in `settings.outputs_root`, made when missing. Raises StorageRefused when it cannot be."""
    return FileStorage(settings.outputs_root, LocalUrls(public_url, secret, settings.url_ttl_s))


class FileStorage:
    """Storage in a folder, safe for any number of processes and for hosts that share it."""

    def __init__(self, root: Path, urls: LocalUrls) -> None:
        """Make the folder, its identity, and sweep what killed writers left. `urls`: how objects are addressed."""
        self.root = root.absolute()
        self.urls = urls
        self._sidecars = self.root / keys.PRIVATE / "sidecars"
        self._parts = self.root / keys.PRIVATE / "parts"
        with self._mapped():
            self._parts.mkdir(parents=True, exist_ok=True)
            self._identity = _identity(self.root / keys.PRIVATE)
            sweep_unfinished(self._parts)

    def path_of(self, key: str) -> Path:
        """The object's file; it may not exist. Read only: it is replaced, never changed in place."""
        return self.root / checked_key(key)

    async def put(self, key: str, source: Path, *, media_type: str) -> StoredObject:
        """Copy the whole file, synced, then rename it into place."""
        return await asyncio.to_thread(self._put, checked_key(key), source, media_type)

    async def copy(self, source_key: str, key: str) -> None:
        """Link the same bytes under another key, replacing it. Raises NotFound without a source."""
        await asyncio.to_thread(self._copy, checked_key(source_key), checked_key(key))

    async def stat(self, key: str) -> StoredObject:
        """Size, media type and sha256. Raises NotFound."""
        return await asyncio.to_thread(self._stat, checked_key(key))

    async def open(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Stream bytes start (inclusive) to end (exclusive). Raises NotFound at the first step."""
        with await asyncio.to_thread(self._opened, checked_key(key)) as file:
            file.seek(start)
            left = None if end is None else max(0, end - start)
            while chunk := await asyncio.to_thread(
                file.read, _CHUNK_BYTES if left is None else min(_CHUNK_BYTES, left)
            ):
                yield chunk
                left = None if left is None else left - len(chunk)

    async def delete(self, key: str) -> None:
        """Delete the object, its sidecar and folders that became empty; a missing key is no error."""
        await asyncio.to_thread(self._delete, checked_key(key))

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, datetime]]:
        """Keys below a folder with their last modification."""
        for found in await asyncio.to_thread(lambda: [*self._walk(folder_prefix(prefix))]):
            yield found

    async def url(self, key: str) -> str:
        """The URL at which the API serves it."""
        return self.urls.url(key)

    def key_of(self, url: str) -> str | None:
        """The key when `url` is one of ours."""
        return self.urls.key_of(url)

    async def check(self) -> None:
        """Write, read and delete a small object; raises StorageError with what to mend."""
        await asyncio.to_thread(self._check)

    async def identity(self) -> str:
        """Equal exactly for those who see the same folder, whatever its path on their host."""
        return self._identity

    async def free_bytes(self) -> int | None:
        """Room left on the folder's filesystem."""
        return await asyncio.to_thread(lambda: shutil.disk_usage(self.root).free)

    async def close(self) -> None:
        """Nothing is held open."""

    def _put(self, key: str, source: Path, media_type: str) -> StoredObject:
        with self._mapped(), source.open("rb") as reader, unfinished(self._parts) as (part, writer):
            sha256 = _copied(reader, writer)
            os.fsync(writer.fileno())
            facts = os.fstat(writer.fileno())
            self._write_sidecar(key, facts, media_type, sha256)
            move_into_place(part, self.root / key, durable=not key.startswith(f"{keys.ATTEMPTS}/"))
        return StoredObject(key, facts.st_size, sha256, media_type)

    def _copy(self, source_key: str, key: str) -> None:
        stored = self._stat(source_key)
        source, part = self.root / source_key, self._parts / f"{secrets.token_hex(16)}.part"
        with self._opened(source_key) as file, self._mapped():
            fcntl.flock(file, fcntl.LOCK_SH)  # the link is the same file: no sweep takes it for abandoned
            try:
                os.link(source, part)
            except FileNotFoundError as error:
                raise _missing(source_key) from error
            except OSError:  # no hard links here, or too many
                self._put(key, source, stored.media_type)
                return
            try:
                self._write_sidecar(key, part.stat(), stored.media_type, stored.sha256)
                move_into_place(part, self.root / key)
            finally:
                # Renaming a link onto a link of the same file does nothing and leaves both names.
                part.unlink(missing_ok=True)

    def _stat(self, key: str) -> StoredObject:
        path = self.root / key
        with self._mapped(key):
            for _ in range(3):  # a put replaces sidecar and bytes one after the other
                facts = path.stat()
                if not path.is_file():
                    raise _missing(key)
                if known := self._read_sidecar(key, facts):
                    return StoredObject(key, facts.st_size, known["sha256"], known["media_type"])
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                size_bytes = os.fstat(file.fileno()).st_size
        return StoredObject(key, size_bytes, sha256, mimetypes.guess_type(key)[0] or "application/octet-stream")

    def _opened(self, key: str) -> BinaryIO:
        with self._mapped(key):
            return (self.root / key).open("rb")

    def _delete(self, key: str) -> None:
        path = self.root / key
        with self._mapped(), contextlib.suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
            path.unlink(missing_ok=True)
            self._sidecar(key).unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.root or not _removed(folder):
                    break

    def _walk(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        for folder, subfolders, names in os.walk(self.root / prefix):
            subfolders[:] = sorted(s for s in subfolders if folder != str(self.root) or s != keys.PRIVATE)
            for name in sorted(names):
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    modified_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                    yield path.relative_to(self.root).as_posix(), modified_at

    def _check(self) -> None:
        with self._mapped(), unfinished(self._parts) as (part, file):
            file.write(b"mediamill")
            file.flush()
            if part.read_bytes() != b"mediamill":
                raise StorageUnavailable(f"The storage folder {str(self.root)!r} does not give back what was written.")

    def _sidecar(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._sidecars / name[:2] / f"{name}.json"

    def _write_sidecar(self, key: str, facts: os.stat_result, media_type: str, sha256: str) -> None:
        record = {"key": key, "media_type": media_type, "sha256": sha256, "of": [facts.st_size, facts.st_mtime_ns]}
        with unfinished(self._parts) as (part, file):
            file.write(json.dumps(record).encode())
            file.flush()
            move_into_place(part, self._sidecar(key), durable=False)

    def _read_sidecar(self, key: str, facts: os.stat_result) -> dict[str, str] | None:
        """The sidecar when it speaks of these bytes."""
        try:
            record = json.loads(self._sidecar(key).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        fits = isinstance(record, dict) and record.get("of") == [facts.st_size, facts.st_mtime_ns]
        return record if fits else None

    @contextlib.contextmanager
    def _mapped(self, key: str | None = None) -> Iterator[None]:
        """Turn the system's errors into ours; a missing file means `key` where one is given."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if key is not None:
                raise _missing(key) from error
            if isinstance(error, FileNotFoundError):
                raise
            raise self._storage_error(error) from error
        except OSError as error:
            raise self._storage_error(error) from error

    def _storage_error(self, error: OSError) -> StorageError:
        folder = f"The storage folder {str(self.root)!r}"
        if error.errno in FULL:
            return StorageRefused(f"{folder} has no room left: free some space, or set MEDIAMILL_RETENTION_SECONDS.")
        if error.errno in _FORBIDDEN:
            return StorageRefused(f"{folder} is not writable: give this user the right to write there.")
        if error.errno in _WRONG_KIND:
            return StorageRefused(f"{folder} cannot hold this key: part of it is a file where a folder is needed.")
        return StorageUnavailable(f"{folder} failed: {error.strerror or type(error).__name__}.")


def _missing(key: str) -> NotFound:
    return NotFound(f"There is no object {key!r}.")


def _copied(reader: BinaryIO, writer: BinaryIO) -> str:
    """Copy all bytes; returns their sha256."""
    digest = hashlib.sha256()
    while chunk := reader.read(_CHUNK_BYTES):
        digest.update(chunk)
        writer.write(chunk)
    writer.flush()
    return digest.hexdigest()


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _identity(folder: Path) -> str:
    """The folder's token, written once by whoever comes first."""
    path = folder / "identity"
    if not path.exists():
        with unfinished(folder / "parts") as (part, file):
            file.write(f"file:{secrets.token_hex(16)}".encode())
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(part, path)
    return path.read_text()

"""References of a request become local files: fetched, capped, recognised, cached."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from mediamill import keys
from mediamill.catalog import InputRef
from mediamill.durable import FULL, link_or_copy
from mediamill.errors import (
    Detail,
    InputError,
    InvalidRequest,
    MediamillError,
    NotFound,
    StorageRefused,
    StorageUnavailable,
    TooLarge,
)
from mediamill.inputs.accept import accepted_type
from mediamill.inputs.cache import Cache
from mediamill.inputs.fetch import Limits, fetch
from mediamill.inputs.guard import UrlGuard
from mediamill.inputs.references import check_literal, decoded, form_of, key_in
from mediamill.model import InputFile, JobError, Storage
from mediamill.storage import OnDisk

FETCHES_AT_ONCE = 8
_COULD_NOT_BE_HAD = (InputError, InvalidRequest, TooLarge, NotFound)
_SUFFIX = {
    "image/jpeg": ".jpg",
    "image/tiff": ".tif",
    "audio/mpeg": ".mp3",
    "audio/mp4": ".m4a",
    "audio/aiff": ".aif",
    "video/quicktime": ".mov",
    "video/x-matroska": ".mkv",
    "video/x-msvideo": ".avi",
    "video/mp2t": ".ts",
    "video/mpeg": ".mpg",
    "video/x-flv": ".flv",
    "application/x-subrip": ".srt",
    "text/x-ssa": ".ass",
}
"""Where it is not the subtype itself."""


@dataclass(frozen=True)
class _Got:
    size_bytes: int
    sha256: str


class Inputs:
    """Makes local files of references. One for a process; `close` it."""

    def __init__(
        self, *, cache_dir: Path, storage: Storage, guard: UrlGuard, cache_bytes: int, timeout_s: float
    ) -> None:
        """Make the cache folder.

        Args:
            cache_dir: Folder of the cache; other processes may share it.
            storage: Where `file:` references and its own URLs lead, and staged values go. The caller's to close.
            guard: Judges URLs. The caller's to close.
            cache_bytes: Input files kept for later jobs.
            timeout_s: Longest download of one file.
        """
        self._storage = storage
        self._guard = guard
        self._timeout_s = timeout_s
        with _mapped():
            self._cache = Cache(cache_dir, max_bytes=cache_bytes)
        self._slots = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def check(self, refs: Sequence[InputRef]) -> None:
        """Judge all references before anything is queued, without I/O.

        Raises: InvalidRequest with one detail for each bad field.
        """
        details: list[Detail] = []
        for ref in refs:
            try:
                check_literal(ref.value, ref.field, self._guard, storage=self._storage)
            except InvalidRequest as error:
                details.extend(error.details)
        if details:
            raise InvalidRequest.of(*details)

    async def stage(self, refs: Sequence[InputRef], job_id: str) -> dict[str, str]:
        """Put `data:` URIs and base64 into storage, so that no row holds them, and look stored files up.

        Returns: By field path, the `file:` reference that takes the value's place; also for URLs of our own objects,
            so that a row holds no signature and a worker need not know this service's address.
        Raises: InvalidRequest (no base64, no such file), TooLarge, UnsupportedMedia, each naming its field;
            StorageError. Nothing stays stored then.
        """
        staged: dict[str, str] = {}
        put: list[str] = []
        try:
            for ref in refs:
                if form_of(ref.value, ref.field) == "inline":
                    key = await self._stage(ref, job_id)
                    put.append(key)
                    staged[ref.field] = f"file:{key}"
                elif found := self._key_of(ref):
                    await self._look_up(found, ref)
                    if ref.value != f"file:{found}":
                        staged[ref.field] = f"file:{found}"
        except BaseException:
            for key in put:
                with contextlib.suppress(MediamillError):
                    await self._storage.delete(key)
            raise
        return staged

    async def resolve(
        self, refs: Sequence[InputRef], *, into: Path, partial: bool
    ) -> tuple[dict[str, InputFile], dict[str, JobError]]:
        """Local files for all references. The same reference is fetched once, however many fields hold it.

        Args:
            refs: Of one request.
            into: An existing folder; files get names of ours in it and must not be changed in place.
            partial: Return what could not be had instead of raising it.

        Returns: Files by field path, and with `partial` errors by field path.
        Raises: The first bad field's InputUnreachable, UnsupportedMedia, TooLarge, InvalidRequest or NotFound, naming
            it; with `partial` only StorageError.
        """
        holders: dict[str, list[tuple[int, InputRef]]] = {}
        for number, ref in enumerate(refs):
            holders.setdefault(ref.value, []).append((number, ref))
        files: dict[str, InputFile] = {}
        errors: dict[str, MediamillError] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for held in holders.values():
                    group.create_task(self._resolve(held, into, files, errors if partial else None))
        except BaseExceptionGroup as failed:
            raise _first(failed) from None
        finally:
            await asyncio.to_thread(self._cache.trim)
        fields = [ref.field for ref in refs]
        failed_fields = {f: JobError(errors[f].code, errors[f].message) for f in fields if f in errors}
        return {f: files[f] for f in fields if f in files}, failed_fields

    async def close(self) -> None:
        """Nothing is held open; the storage and the guard are the caller's."""

    async def _resolve(
        self,
        held: Sequence[tuple[int, InputRef]],
        into: Path,
        files: dict[str, InputFile],
        errors: dict[str, MediamillError] | None,
    ) -> None:
        """One reference for all the fields that hold it. Without `errors` the first one is raised."""
        number, first = max(held, key=lambda item: item[1].source.max_bytes)
        fetched = into / f"{number:03d}.fetched"
        try:
            with _mapped():
                got = await self._obtain(first, fetched)
        except _COULD_NOT_BE_HAD as error:
            if errors is None:
                raise
            errors.update((ref.field, _renamed(error, first.field, ref.field)) for _, ref in held)
            return
        for at, ref in held:
            try:
                with _mapped():
                    files[ref.field] = await asyncio.to_thread(_named, fetched, got, into, at, ref)
            except _COULD_NOT_BE_HAD as error:
                if errors is None:
                    raise
                errors[ref.field] = error
        fetched.unlink()

    async def _obtain(self, ref: InputRef, target: Path) -> _Got:
        async with self._slots:
            if form_of(ref.value, ref.field) == "inline":
                content = await asyncio.to_thread(decoded, ref.value, field=ref.field, max_bytes=ref.source.max_bytes)
                await asyncio.to_thread(target.write_bytes, content)
                return _Got(len(content), hashlib.sha256(content).hexdigest())
            if key := self._key_of(ref):
                return await self._from_storage(key, ref, target)
            lock = self._locks.setdefault(ref.value, asyncio.Lock())
            async with lock:
                return await self._from_url(ref, target)

    def _key_of(self, ref: InputRef) -> str | None:
        if form_of(ref.value, ref.field) == "stored":
            return key_in(ref.value, ref.field)
        return self._storage.key_of(ref.value)

    async def _from_url(self, ref: InputRef, target: Path) -> _Got:
        check_literal(ref.value, ref.field, self._guard)
        known = self._cache.recall(ref.value)
        if known is not None and not self._cache.take(known[0], target):
            known = None
        limits = Limits(ref.source.max_bytes, self._timeout_s)
        with self._cache.part() as (part, file):
            fetched = await fetch(
                self._guard, ref.value, file, name=ref.field, limits=limits, known=known[1] if known else None
            )
            if known and fetched.unchanged:
                return _Got(target.stat().st_size, known[0])
            await asyncio.to_thread(self._keep, part, fetched.sha256, target)
            if fetched.validators.etag or fetched.validators.last_modified:
                self._cache.remember(ref.value, fetched.sha256, fetched.validators)
        return _Got(fetched.size_bytes, fetched.sha256)

    async def _from_storage(self, key: str, ref: InputRef, target: Path) -> _Got:
        stored = await self._look_up(key, ref)
        if isinstance(self._storage, OnDisk):
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(link_or_copy, self._storage.path_of(key), target)
                return _Got(stored.size_bytes, stored.sha256)
            raise _not_there(key, ref)
        if stored.sha256 and self._cache.take(stored.sha256, target):
            return _Got(stored.size_bytes, stored.sha256)
        digest = hashlib.sha256()
        with self._cache.part() as (part, file):
            async for chunk in self._storage.open(key):
                digest.update(chunk)
                file.write(chunk)
            size_bytes = file.tell()
            file.flush()
            await asyncio.to_thread(self._keep, part, digest.hexdigest(), target)
        return _Got(size_bytes, digest.hexdigest())

    def _keep(self, part: Path, sha256: str, target: Path) -> None:
        """Link first: once in the cache, another process may trim it."""
        target.unlink(missing_ok=True)
        link_or_copy(part, target)
        self._cache.add(part, sha256)

    async def _look_up(self, key: str, ref: InputRef) -> _Got:
        try:
            stored = await self._storage.stat(key)
        except NotFound as error:
            raise _not_there(key, ref) from error
        _within(stored.size_bytes, ref)
        return _Got(stored.size_bytes, stored.sha256)

    async def _stage(self, ref: InputRef, job_id: str) -> str:
        content = await asyncio.to_thread(decoded, ref.value, field=ref.field, max_bytes=ref.source.max_bytes)
        with _mapped(), self._cache.part() as (part, file):
            file.write(content)
            file.flush()
            media_type = await asyncio.to_thread(accepted_type, part, kind=ref.source.kind, field=ref.field)
            sha256 = hashlib.sha256(content).hexdigest()
            key = f"{keys.upload_folder(job_id)}{sha256}{_suffix(media_type)}"
            await self._storage.put(key, part, media_type=media_type)
            if not isinstance(self._storage, OnDisk):
                await asyncio.to_thread(self._cache.add, part, sha256)
        return key


def _named(fetched: Path, got: _Got, into: Path, number: int, ref: InputRef) -> InputFile:
    """The file under its own name for one field, once it is known to be what the field takes."""
    _within(got.size_bytes, ref)
    media_type = accepted_type(fetched, kind=ref.source.kind, field=ref.field)
    field = re.sub(r"[^A-Za-z0-9_.-]", "_", ref.field)[:100]
    path = into / f"{number:03d}-{field}{_suffix(media_type)}"
    link_or_copy(fetched, path)
    return InputFile(ref.field, path, media_type, got.size_bytes, got.sha256)


def _suffix(media_type: str) -> str:
    return _SUFFIX.get(media_type) or f".{media_type.rpartition('/')[2].removeprefix('x-')}"


def _within(size_bytes: int, ref: InputRef) -> None:
    if size_bytes > ref.source.max_bytes:
        raise TooLarge(f"{ref.field}: has {size_bytes} bytes; at most {ref.source.max_bytes} are accepted.")


def _not_there(key: str, ref: InputRef) -> InvalidRequest:
    message = f"there is no stored file {key!r}; accepted: what POST /v1/files returned"
    return InvalidRequest(f"{ref.field}: {message}.", details=[Detail(ref.field, message)])


def _renamed(error: MediamillError, field: str, other: str) -> MediamillError:
    """The same error for another field that holds the same reference."""
    if field == other:
        return error
    return type(error)(error.message.replace(f"{field}:", f"{other}:", 1))


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to raise for a group: anything that is not about an input, else the first."""
    leaves = [leaf for leaf in failed.exceptions if not isinstance(leaf, _COULD_NOT_BE_HAD)]
    return (leaves or list(failed.exceptions))[0]


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    """The machine's own trouble with input files is not the caller's fault."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageRefused("The disk of the input files has no room left: free some space.") from error
        raise StorageUnavailable(f"An input file could not be written: {error.strerror}.") from error

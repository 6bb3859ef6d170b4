"""Multipart uploads, streamed to disk: nothing of the file is held in memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from uuid import UUID, uuid4

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mediamill import keys
from mediamill.api.auth import Caller
from mediamill.api.deps import Deps
from mediamill.api.errors import WrongContentType
from mediamill.errors import Conflict, Detail, InvalidRequest, TooLarge
from mediamill.inputs.accept import accepted_type
from mediamill.model import StoredObject

_FLUSH_BYTES = 1024**2
_FIELDS_BYTES = 256 * 1024
_MAX_FIELDS = 64
_HEADER_BYTES = 8 * 1024


@dataclass(frozen=True)
class Received:
    """A file that came in, in a folder of the caller of `receive`; whoever called deletes it."""

    name: str
    """Safe as one path component."""
    path: Path
    media_type: str
    """From its bytes, never from its name."""
    size_bytes: int


@dataclass
class _Form:
    """Where the parser's callbacks put things."""

    file_field: str
    folder: Path
    fields: dict[str, str] = field(default_factory=dict)
    file_name: str | None = None
    pending: bytearray = field(default_factory=bytearray)
    field_bytes: int = 0
    complete: bool = False
    """The closing boundary has come."""
    _header_name: bytes = b""
    _header_value: bytes = b""
    _headers: dict[str, bytes] = field(default_factory=dict)
    _name: str = ""
    _into_file: bool = False
    _value: bytearray = field(default_factory=bytearray)

    def part_begin(self) -> None:
        self._headers = {}
        self._value = bytearray()

    def header_field(self, chunk: bytes, start: int, end: int) -> None:
        self._header_name += chunk[start:end]
        self._bound_header()

    def header_value(self, chunk: bytes, start: int, end: int) -> None:
        self._header_value += chunk[start:end]
        self._bound_header()

    def _bound_header(self) -> None:
        if len(self._header_name) + len(self._header_value) > _HEADER_BYTES:
            raise InvalidRequest(f"A part's header is longer than {_HEADER_BYTES} bytes.")

    def header_end(self) -> None:
        self._headers[self._header_name.decode("latin-1").lower()] = self._header_value
        self._header_name = self._header_value = b""

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._into_file = b"filename" in options
        if not self._into_file:
            return
        if self._name != self.file_field or self.file_name is not None:
            message = f"send one file, in the field {self.file_field!r} (got one in {self._name!r})"
            raise InvalidRequest.of(Detail(self.file_field, message))
        self.file_name = safe_name(options[b"filename"].decode("utf-8", "replace"))

    def part_data(self, chunk: bytes, start: int, end: int) -> None:
        if self._into_file:
            self.pending += chunk[start:end]
            return
        self.field_bytes += end - start
        if self.field_bytes > _FIELDS_BYTES:
            raise TooLarge(f"The form's fields have more than {_FIELDS_BYTES} bytes.")
        self._value += chunk[start:end]

    def end(self) -> None:
        self.complete = True

    def part_end(self) -> None:
        if self._into_file:
            return
        if len(self.fields) >= _MAX_FIELDS:
            raise TooLarge(f"The form has more than {_MAX_FIELDS} fields.")
        self.fields[self._name] = self._value.decode("utf-8", "replace")


async def receive(
    request: Request, folder: Path, *, limit_bytes: int, file_field: str = "file"
) -> tuple[Received | None, dict[str, str]]:
    """Read a `multipart/form-data` body; the file goes to `folder`, which must exist.

    Returns: The file, or None when the form has none, and the other fields.
    Raises: WrongContentType, TooLarge, InvalidRequest (broken form, several files), UnsupportedMedia (not media).
    """
    media_type, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if media_type != b"multipart/form-data" or not boundary:
        raise WrongContentType("The body must be a form with a file: send Content-Type: multipart/form-data.")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit_bytes + _FIELDS_BYTES:
        raise TooLarge(f"The body has {announced} bytes; at most {limit_bytes} are accepted in a file.")
    form = _Form(file_field, folder)
    path = folder / uuid4().hex
    try:
        with path.open("wb") as out:
            size_bytes = await _stream(request, _parser(boundary, form), form, out, limit_bytes)
    except FormParserError as error:
        raise InvalidRequest(f"The form is broken: {error}.") from error
    if not form.complete:
        raise InvalidRequest("The form is broken: it ends before its closing boundary.")
    if form.file_name is None:
        path.unlink()
        return None, form.fields
    return Received(form.file_name, path, accepted_type(path, kind="any", field=file_field), size_bytes), form.fields


@contextlib.asynccontextmanager
async def received_form(request: Request, deps: Deps) -> AsyncIterator[tuple[Received | None, dict[str, str]]]:
    """What `receive` gives, in a scratch folder that goes with the block."""
    root = deps.settings.scratch_root
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="upload-", dir=root) as folder:
        yield await receive(request, Path(folder), limit_bytes=deps.settings.max_upload_bytes)


async def store_upload(deps: Deps, caller: Caller, received: Received, key: str | None) -> tuple[StoredObject, bool]:
    """Put it under a fresh id, or under the one this caller's idempotency key stands for.

    Returns: What is stored, and whether an earlier call with this key had put it there.
    Raises: Conflict: that was another file. StorageError.
    """
    if key is None:
        target = keys.upload_folder(str(uuid4())) + received.name
        return await deps.storage.put(target, received.path, media_type=received.media_type), False
    secret = await deps.store.secret("uploads")
    digest = hashlib.sha256(b"\n".join([secret, caller.id.encode(), key.encode()])).digest()
    folder = keys.upload_folder(str(UUID(bytes=digest[:16])))
    async for known, _ in deps.storage.list(folder):
        stored = await deps.storage.stat(known)
        if not await asyncio.to_thread(_same, received, stored):
            raise Conflict("This Idempotency-Key was used for another file.")
        return stored, True
    return await deps.storage.put(folder + received.name, received.path, media_type=received.media_type), False


def _same(received: Received, stored: StoredObject) -> bool:
    if stored.key.rpartition("/")[2] != received.name or stored.size_bytes != received.size_bytes:
        return False
    if not stored.sha256:
        return True
    with received.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == stored.sha256


def _parser(boundary: bytes, form: _Form) -> MultipartParser:
    return MultipartParser(
        boundary,
        {
            "on_part_begin": form.part_begin,
            "on_part_data": form.part_data,
            "on_part_end": form.part_end,
            "on_header_field": form.header_field,
            "on_header_value": form.header_value,
            "on_header_end": form.header_end,
            "on_headers_finished": form.headers_finished,
            "on_end": form.end,
        },
    )


async def _stream(request: Request, parser: MultipartParser, form: _Form, out: BinaryIO, limit_bytes: int) -> int:
    written = 0
    async for chunk in request.stream():
        parser.write(chunk)
        if written + len(form.pending) > limit_bytes:
            raise TooLarge(f"The file has more than {limit_bytes} bytes.")
        if len(form.pending) >= _FLUSH_BYTES:
            written += await asyncio.to_thread(out.write, form.pending)
            form.pending = bytearray()
    parser.finalize()
    return written + out.write(form.pending)


def safe_name(name: str) -> str:
    """The last component of a file name, of letters, digits, `.`, `-` and `_`; never empty or hidden."""
    last = re.split(r"[/\\]", name)[-1]
    cleaned = re.sub(r"[^\w.-]+", "_", last).strip("._")
    return cleaned[-80:].lstrip("._") or "file"

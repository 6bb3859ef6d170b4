"""`/v1/files` takes files in, `/files/...` gives stored ones out."""

from __future__ import annotations

import asyncio
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID, uuid4

from fastapi import Query, Request
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response, StreamingResponse

from mediamill.api import openapi
from mediamill.api.auth import ANONYMOUS, Caller
from mediamill.api.deps import CallerDep, Deps, DepsDep, IdempotencyKey
from mediamill.api.errors import ContractRouter
from mediamill.api.submit import check_room
from mediamill.api.uploads import Received, receive
from mediamill.contracts import native
from mediamill.errors import Conflict, Detail, InvalidRequest, NotFound, Unauthorized
from mediamill.model import Storage, StoredObject
from mediamill.storage import LocalUrls, checked_key

router = ContractRouter(
    error_reply=native.error_reply,
    covers=("/files/", "/v1/files"),
    error_media_type="application/problem+json",
    tags=["files"],
)

_HIDDEN = ("attempts/",)
"""Unfinished work: a worker may still be writing there, or have lost its lease."""
_INLINE = re.compile(r"(image/(?!svg)|video/|audio/|application/json$|text/plain$)")
_FORM: dict[str, Any] = {
    "parameters": [openapi.IDEMPOTENCY_KEY],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    },
}


@router.post(
    "/v1/files",
    status_code=201,
    summary="Upload a file",
    responses=openapi.errors(openapi.CREATING_ERRORS),
    openapi_extra=_FORM,
)
async def upload(request: Request, deps: DepsDep, caller: CallerDep, key: IdempotencyKey) -> Response:
    """Store one file, streamed. `file` in the reply is what request fields take in place of a URL."""
    await check_room(deps, jobs=0)
    root = deps.settings.scratch_root
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="upload-", dir=root) as folder:
        received, _ = await receive(request, Path(folder), limit_bytes=deps.settings.max_upload_bytes)
        if received is None:
            raise InvalidRequest("file: is required", details=[Detail("file", "is required")])
        stored, replayed = await _stored(deps, caller, received, key)
    headers = {"Idempotency-Replayed": "true"} if replayed else {}
    return JSONResponse(await _described(deps, stored), 201, headers=headers)


async def _stored(deps: Deps, caller: Caller, received: Received, key: str | None) -> tuple[StoredObject, bool]:
    """Put it under a fresh id, or under the one this caller's idempotency key stands for."""
    if key is None:
        target = f"uploads/{uuid4()}/{received.name}"
        return await deps.storage.put(target, received.path, media_type=received.media_type), False
    secret = await deps.store.secret("uploads")
    digest = hashlib.sha256(b"\n".join([secret, caller.id.encode(), key.encode()])).digest()
    folder = f"uploads/{UUID(bytes=digest[:16])}/"
    async for known, _ in deps.storage.list(folder):
        stored = await deps.storage.stat(known)
        if known != folder + received.name or stored.size_bytes != received.size_bytes or not _same(received, stored):
            raise Conflict("This Idempotency-Key was used for another file.")
        return stored, True
    return await deps.storage.put(folder + received.name, received.path, media_type=received.media_type), False


def _same(received: Received, stored: StoredObject) -> bool:
    if not stored.sha256:
        return True
    with received.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == stored.sha256


async def _described(deps: Deps, stored: StoredObject) -> dict[str, Any]:
    return {
        "file": f"file:{stored.key}",
        "name": stored.key.rpartition("/")[2],
        "url": await deps.storage.url(stored.key),
        "media_type": stored.media_type,
        "size_bytes": stored.size_bytes,
        "sha256": stored.sha256,
    }


@router.head("/files/{key:path}", summary="Facts of a stored file", responses=openapi.errors(openapi.COMMON_ERRORS))
@router.get(
    "/files/{key:path}",
    summary="A stored file",
    response_class=Response,
    responses={
        206: {"description": "The asked range"},
        416: {"description": "No such range"},
        **openapi.errors(openapi.COMMON_ERRORS),
    },
)
async def download(
    request: Request,
    deps: DepsDep,
    caller: CallerDep,
    key: str,
    e: Annotated[str | None, Query(pattern="^[0-9]{1,12}$", description="When the URL expires.")] = None,
    s: Annotated[str | None, Query(max_length=100, description="The URL's signature.")] = None,
) -> Response:
    """The bytes, whole or one `Range`. An unguessable key or a signed URL needs no API key."""
    checked_key(key)
    if key.startswith(_HIDDEN):
        raise NotFound(f"There is no file {key!r}.")
    urls = getattr(deps.storage, "urls", None)
    allowed = isinstance(urls, LocalUrls) and urls.allows(key, expires=e, signature=s)
    if not (allowed or caller.id != ANONYMOUS):
        raise Unauthorized("This file needs a valid signed URL or an API key.")
    return _served(request, deps.storage, await deps.storage.stat(key))


def _served(request: Request, storage: Storage, stored: StoredObject) -> Response:
    headers = _headers_of(stored)
    if _matches(request.headers.get("if-none-match"), headers.get("ETag")):
        return Response(status_code=304, headers=headers)
    wanted = _range(request.headers, stored, headers.get("ETag"))
    if wanted is None:
        headers["Content-Range"] = f"bytes */{stored.size_bytes}"
        return Response(status_code=416, headers={**headers, "Content-Length": "0"})
    start, end = wanted
    partial = (start, end) != (0, stored.size_bytes)
    if partial:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{stored.size_bytes}"
    headers["Content-Length"] = str(end - start)
    status = 206 if partial else 200
    if request.method == "HEAD" or end == start:
        return Response(status_code=status, headers=headers)
    return StreamingResponse(_exactly(storage, stored.key, start, end), status, headers=headers)


async def _exactly(storage: Storage, key: str, start: int, end: int) -> AsyncIterator[bytes]:
    async for chunk in storage.open(key, start=start, end=end):
        yield chunk
        await asyncio.sleep(0)


def _headers_of(stored: StoredObject) -> dict[str, str]:
    name = stored.key.rpartition("/")[2]
    how = "inline" if _INLINE.match(stored.media_type) else "attachment"
    headers = {
        "Content-Type": stored.media_type,
        "Content-Disposition": f"{how}; filename*=UTF-8''{quote(name)}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; media-src 'self'; img-src 'self'; sandbox",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
    }
    if stored.sha256:
        headers["ETag"] = f'"{stored.sha256}"'
    return headers


def _matches(header: str | None, etag: str | None) -> bool:
    if header is None or etag is None:
        return False
    return header.strip() == "*" or etag in {part.strip().removeprefix("W/") for part in header.split(",")}


def _range(headers: Headers, stored: StoredObject, etag: str | None) -> tuple[int, int] | None:
    """Start (inclusive) and end (exclusive) to send; the whole for no, several or unknown ranges; None for 416."""
    size = stored.size_bytes
    found = re.fullmatch(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", headers.get("range", ""))
    condition = headers.get("if-range")
    if found is None or found.group(0).strip() == "bytes=-" or (condition is not None and condition != etag):
        return 0, size
    first, last = found.groups()
    if not first:
        return (max(0, size - int(last)), size) if int(last) and size else None
    start = int(first)
    end = min(size, int(last) + 1) if last else size
    if last and int(last) < start:
        return 0, size
    return (start, end) if start < size else None

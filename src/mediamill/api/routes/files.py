"""`/v1/files` takes files in, `/files/...` gives stored ones out."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Query, Request
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response, StreamingResponse

from mediamill import keys
from mediamill.api import openapi
from mediamill.api.auth import ANONYMOUS
from mediamill.api.deps import CallerDep, Deps, DepsDep, IdempotencyKey
from mediamill.api.errors import ContractRouter
from mediamill.api.replies import replay_mark
from mediamill.api.submit import check_room
from mediamill.api.uploads import received_form, store_upload
from mediamill.contracts import native
from mediamill.errors import Detail, InvalidRequest, NotFound, Unauthorized
from mediamill.model import Storage, StoredObject
from mediamill.storage import LocalUrls, checked_key

router = ContractRouter(
    error_reply=native.error_reply,
    covers=("/files/", "/v1/files"),
    error_media_type="application/problem+json",
    tags=["files"],
)

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
    async with received_form(request, deps) as (received, _):
        if received is None:
            raise InvalidRequest.of(Detail("file", "is required"))
        stored, replayed = await store_upload(deps, caller, received, key)
    return JSONResponse(await _described(deps, stored), 201, headers=replay_mark(replayed))


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
    if key.startswith(f"{keys.ATTEMPTS}/"):  # a worker may still be writing there, or have lost its lease
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
    start, end, partial = wanted
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


def _range(headers: Headers, stored: StoredObject, etag: str | None) -> tuple[int, int, bool] | None:
    """Start (inclusive) and end (exclusive) to send, and whether that is a range that was asked for.

    The whole for no, several or unknown ranges; None for 416.
    """
    size = stored.size_bytes
    whole = 0, size, False
    found = re.fullmatch(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", headers.get("range", ""))
    condition = headers.get("if-range")
    if found is None or found.group(0).strip() == "bytes=-" or (condition is not None and condition != etag):
        return whole
    first, last = found.groups()
    if not first:
        return (max(0, size - int(last)), size, True) if int(last) and size else None
    start = int(first)
    end = min(size, int(last) + 1) if last else size
    if last and int(last) < start:
        return whole
    return (start, end, True) if start < size else None

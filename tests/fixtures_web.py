"""A small HTTP server on loopback that serves bytes well or badly, as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from multidict import CIMultiDictProxy


@dataclass
class Page:
    """What one path answers."""

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    etag: str | None = None
    """Sent, and honoured in If-None-Match and If-Range."""
    fail_first: int = 0
    """Answers 503 that many times first."""
    drop_after_bytes: int | None = None
    """The first answers break off after so many bytes; the number of such answers is `drops`."""
    drops: int = 1
    range_shift: int = 0
    """Answers to ranges begin so many bytes too late."""
    chunked: bool = False
    drip_s: float = 0.0
    """Pause between single bytes."""
    requests: list[CIMultiDictProxy[str]] = field(default_factory=list)
    """Headers of every request so far."""
    asked: asyncio.Event = field(default_factory=asyncio.Event)


class WebServer:
    """Pages by path. `url(path)` adds and addresses one."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.port = 0

    def url(self, path: str, page: Page, *, host: str = "127.0.0.1") -> str:
        self.pages[path] = page
        return f"http://{host}:{self.port}{path}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        page = self.pages.get(request.path)
        if page is None:
            return web.Response(status=404)
        page.requests.append(request.headers)
        page.asked.set()
        if len(page.requests) <= page.fail_first:
            return web.Response(status=503)
        if page.status != 200:
            return web.Response(status=page.status, headers=page.headers)
        if page.etag and request.headers.get("If-None-Match") == page.etag:
            return web.Response(status=304)
        return await self._send(request, page)

    async def _send(self, request: web.Request, page: Page) -> web.StreamResponse:
        start = 0
        asked = request.headers.get("Range", "")
        if asked and request.headers.get("If-Range") == page.etag:
            start = int(asked.removeprefix("bytes=").rstrip("-")) + page.range_shift
        response = web.StreamResponse(status=206 if start else 200, headers=page.headers)
        if page.etag:
            response.headers["ETag"] = page.etag
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(page.content) - 1}/{len(page.content)}"
        if page.chunked:
            response.enable_chunked_encoding()
        else:
            response.content_length = len(page.content) - start
        await response.prepare(request)
        if page.drop_after_bytes is not None and len(page.requests) <= page.drops + page.fail_first:
            await response.write(page.content[start : start + page.drop_after_bytes])
            await asyncio.sleep(0.05)
            assert request.transport is not None
            request.transport.abort()
        elif page.drip_s:
            for at in range(start, len(page.content)):
                await response.write(page.content[at : at + 1])
                await asyncio.sleep(page.drip_s)
        else:
            await response.write(page.content[start:])
        return response


@pytest.fixture
async def web_server() -> AsyncIterator[WebServer]:
    server = WebServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()

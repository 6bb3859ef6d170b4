"""A mediamill service over HTTP, as the commands use it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from mediamill.config import Settings
from mediamill.errors import Detail, MediamillError, ProviderError, every_class
from mediamill.model import Json

_AGAIN_S = 0.5
_LINE_BYTES = 16 * 1024**2
"""Longest envelope; a job of many stills has a long one."""
_ENDED = ("succeeded", "failed", "cancelled")
_CHUNK_BYTES = 1024**2


class Service:
    """One service; close it by leaving `connect`."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        """`url`: base of the service; the session carries the key."""
        self._session = session
        self._url = url.rstrip("/")

    async def upload(self, path: Path) -> str:
        """Send a file; returns what a request field takes in its place."""
        with path.open("rb") as file:
            form = aiohttp.FormData()
            form.add_field("file", file, filename=path.name)
            stored = await self.ask("POST", "/v1/files", data=form)
        return str(stored["file"])

    async def submit(self, model: str, values: Mapping[str, Json]) -> dict[str, Any]:
        """Queue a job; returns its envelope."""
        return await self.ask("POST", "/v1/jobs", json={"model": model, "input": dict(values)})

    async def follow(
        self, job_id: str, on_change: Callable[[Mapping[str, Any]], Awaitable[None]], *, owner: bool = True
    ) -> dict[str, Any]:
        """Wait for the job's end, telling each state on the way; cancelling an `owner` cancels the job."""
        try:
            while True:
                async for job in self._states(job_id):
                    await on_change(job)
                    if job["status"] in _ENDED:
                        return job
                await asyncio.sleep(_AGAIN_S)  # the service restarts
        except asyncio.CancelledError:
            if owner:
                with contextlib.suppress(MediamillError):
                    await self.cancel(job_id)
            raise

    async def _states(self, job_id: str) -> AsyncIterator[dict[str, Any]]:
        """The envelope now and after each change, until the stream ends."""
        try:
            async with self._session.get(f"{self._url}/v1/jobs/{job_id}/events", read_bufsize=_LINE_BYTES) as reply:
                await _refuse(reply)
                async for line in reply.content:
                    if line.startswith(b"data:"):
                        yield json.loads(line.removeprefix(b"data:"))
        except aiohttp.ClientPayloadError:
            return
        except aiohttp.ClientConnectionError as error:
            raise self._silent() from error

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Ask for its end; returns the envelope."""
        return await self.ask("POST", f"/v1/jobs/{job_id}/cancel")

    async def download(self, url: str, path: Path) -> None:
        """Write a result's bytes to a file. Only the service itself gets our key."""
        ours = urlsplit(url).netloc == urlsplit(self._url).netloc
        headers = {} if ours else dict.fromkeys(("Authorization",), "")
        async with self._session.get(url, headers=headers) as reply:
            await _refuse(reply)
            with path.open("wb") as file:
                async for chunk in reply.content.iter_chunked(_CHUNK_BYTES):
                    file.write(chunk)

    async def ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """One request. Raises the service's own error, by its code; ProviderError when it cannot be reached."""
        try:
            async with self._session.request(method, f"{self._url}{path}", **body) as reply:
                await _refuse(reply)
                answer: dict[str, Any] = await reply.json()
                return answer
        except aiohttp.ClientConnectionError as error:
            raise self._silent() from error
        except (aiohttp.ClientError, ValueError) as error:
            raise ProviderError(f"{self._url} does not answer like mediamill: {error}.") from error

    def _silent(self) -> ProviderError:
        return ProviderError(f"{self._url} does not answer; is `mediamill serve` running there?")


@contextlib.asynccontextmanager
async def connect(settings: Settings, url: str) -> AsyncIterator[Service]:
    """A service under this URL, with the first API key of the settings."""
    key = next(iter(sorted(settings.keys)), None)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=None, connect=10, sock_read=120)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        yield Service(session, url)


async def _refuse(reply: aiohttp.ClientResponse) -> None:
    """Raise what an error reply says."""
    if reply.status < 400:  # noqa: PLR2004 - HTTP
        return
    try:
        body = await reply.json(content_type=None)
        code, message = str(body["code"]), str(body.get("detail") or body.get("message") or body["code"])
        details = [Detail(str(e.get("pointer") or e.get("path", "")), str(e["detail"])) for e in body.get("errors", [])]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ProviderError(f"{reply.url} answered {reply.status}.") from None
    kind = next((cls for cls in every_class() if cls.code == code), MediamillError)
    error = kind(message)
    error.details = tuple(details)
    raise error

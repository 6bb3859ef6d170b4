"""RunPod's client side on loopback: run, status, cancel, health, and a place for files; scripted by each test.

It runs in a thread of its own, so that asynchronous tests and tests of whole processes can use it alike.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = "rpa_swordfish"
State = Mapping[str, Any]
IN_QUEUE: State = {"status": "IN_QUEUE"}
IN_PROGRESS: State = {"status": "IN_PROGRESS"}


def completed(*artifacts: Mapping[str, Any], **rest: Any) -> State:
    return {"status": "COMPLETED", "delayTime": 1200, "executionTime": 3400, "output": {"artifacts": artifacts, **rest}}


def inline(name: str, content: bytes, media_type: str | None = None, **rest: Any) -> dict[str, Any]:
    """An artifact as base64, with everything that can be said about it."""
    sha256 = hashlib.sha256(content).hexdigest()
    told = {"name": name, "size_bytes": len(content), "sha256": sha256, "base64": base64.b64encode(content).decode()}
    return {**told, **({"media_type": media_type} if media_type else {}), **rest}


@dataclass
class RemoteJob:
    id: str
    endpoint: str
    body: dict[str, Any]
    states: Sequence[State]
    """Told in turn; the last one from then on."""
    looks: int = 0
    cancelled: bool = False

    @property
    def input(self) -> dict[str, Any]:
        return dict(self.body["input"])

    def state(self) -> dict[str, Any]:
        if self.cancelled:
            return {"id": self.id, "status": "CANCELLED"}
        told = self.states[min(self.looks, len(self.states) - 1)]
        self.looks += 1
        return {"id": self.id, **told}


@dataclass
class RunPodHost:
    """`script(body)` gives the states of a new job. `trouble[what]` are answers that come first: a status, "drop", "hang"."""

    script: Callable[[dict[str, Any]], Sequence[State]] = lambda _body: [IN_PROGRESS]
    endpoints: set[str] = field(default_factory=lambda: {"ep-zimage"})
    jobs: dict[str, RemoteJob] = field(default_factory=dict)
    cancels: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    asked_files: list[str] = field(default_factory=list)
    trouble: dict[str, deque[int | str]] = field(default_factory=dict)
    authorizations: set[str | None] = field(default_factory=set)
    port: int = 0
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v2"

    def file(self, name: str, content: bytes) -> str:
        """The URL of a file that it serves from now on."""
        self.files[name] = content
        return f"http://127.0.0.1:{self.port}/files/{name}"

    def environment(self, **endpoints: str) -> dict[str, str]:
        """The variables that send jobs here, by model: `environment(ZIMAGE="ep-zimage")`."""
        ids = {f"RUNPOD_{name}_ENDPOINT_ID": endpoint for name, endpoint in endpoints.items()}
        return {"RUNPOD_API_KEY": KEY, "RUNPOD_ENDPOINT_BASE_URL": self.base_url, **ids}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/files/"):
            self.asked_files.append(request.path)
            content = self.files.get(request.path.removeprefix("/files/"))
            return web.Response(status=404) if content is None else web.Response(body=content)
        _, _, endpoint, what, *rest = request.path.split("/")
        self.authorizations.add(request.headers.get("Authorization"))
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": f"bad key {request.headers.get('Authorization')}"}, status=401)
        if endpoint not in self.endpoints:
            return web.json_response({"error": "endpoint not found"}, status=404)
        if self.trouble.get(what):
            trouble = self.trouble[what].popleft()
            if isinstance(trouble, int):
                return web.json_response({"error": "trouble"}, status=trouble)
            if trouble == "hang":
                await asyncio.sleep(600)
            if trouble == "take and drop":
                await self.run(request, endpoint)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if what == "run":
            return await self.run(request, endpoint)
        if what == "health":
            return web.json_response({"jobs": {"inQueue": 2, "completed": 7}, "workers": {"idle": 1, "running": 0}})
        return self.about(what, self.jobs.get(rest[0]))

    async def run(self, request: web.Request, endpoint: str) -> web.Response:
        body = await request.json()
        job = RemoteJob(f"job-{next(self._numbers)}-u1", endpoint, body, self.script(body))
        self.jobs[job.id] = job
        return web.json_response({"id": job.id, "status": "IN_QUEUE"})

    def about(self, what: str, job: RemoteJob | None) -> web.Response:
        if job is None:
            return web.json_response({"error": "job not found"}, status=404)
        if what == "cancel":
            self.cancels.append(job.id)
            job.cancelled = True
        return web.json_response(job.state())


@contextmanager
def hosting(**values: Any) -> Iterator[RunPodHost]:
    """A running host."""
    host = RunPodHost(**values)
    started, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=32 * 1024**2)
        app.router.add_route("*", "/{path:.*}", host.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host.port = runner.addresses[0][1]
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield host
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()

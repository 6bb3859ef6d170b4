"""RunPod as its worker sees it, on loopback: jobs are taken by long poll, progress and results posted, jobs stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

ENDPOINT = "ep1"
WORKER = "worker1"
TOKEN = "worker-token"
HOLD_S = 0.3
"""How long a poll is held open."""
PATIENCE_S = 90.0


@dataclass
class WorkerHost:
    """One endpoint with one worker."""

    base: str = ""
    waiting: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    to_stop: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    progress: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    results: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    pings: list[str | None] = field(default_factory=list)
    refused: int = 0
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _jobs: int = 0

    def environment(self) -> dict[str, str]:
        """What RunPod puts into a worker's environment."""
        at = f"{self.base}/v2/{ENDPOINT}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{at}/job-take/$ID?gpu=X",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{at}/job-done/$RUNPOD_POD_ID/$ID?gpu=X",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{at}/job-stream/$RUNPOD_POD_ID/$ID?gpu=X",
            "RUNPOD_WEBHOOK_PING": f"{at}/ping/$RUNPOD_POD_ID?gpu=X",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_POD_ID": WORKER,
            "RUNPOD_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_AI_API_KEY": TOKEN,
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def put(self, fields: Any) -> str:
        """Queue a job with this `input`; returns its id."""
        self._jobs += 1
        job = {"id": f"job-{self._jobs}-u1", "input": fields}
        self.waiting.put_nowait(job)
        return str(job["id"])

    async def ended(self, job_id: str) -> dict[str, Any]:
        """What was posted as the job's end."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: job_id in self.results)
        return self.results[job_id][-1]

    async def done(self, fields: Any) -> dict[str, Any]:
        """The end of a new job."""
        return await self.ended(self.put(fields))

    async def working(self, job_id: str) -> None:
        """Until the job says that it generates."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: any(p.get("phase") == "generating" for p in self.progress[job_id]))

    async def _take(self, request: web.Request) -> web.Response:
        self._check(request)
        try:
            async with asyncio.timeout(HOLD_S):
                return web.json_response(await self.waiting.get())
        except TimeoutError:
            return web.Response(status=204)

    async def _stops(self, request: web.Request) -> web.Response:
        self._check(request)
        try:
            async with asyncio.timeout(HOLD_S):
                return web.json_response({"jobsToStop": [await self.to_stop.get()]})
        except TimeoutError:
            return web.Response(status=204)

    async def _done(self, request: web.Request) -> web.Response:
        self._check(request)
        job_id = request.match_info["job"]
        body = json.loads(await request.read())
        async with self._changed:
            if body.get("status") == "IN_PROGRESS":
                self.progress[job_id].append(body["output"])
            else:
                self.results[job_id].append(body)
            self._changed.notify_all()
        return web.Response()

    async def _ping(self, request: web.Request) -> web.Response:
        self.pings.append(request.query.get("job_id"))
        return web.Response()

    def _check(self, request: web.Request) -> None:
        if request.match_info["worker"] != WORKER or request.headers.get("Authorization") != TOKEN:
            self.refused += 1
            raise web.HTTPTooManyRequests  # anything else is asked again at once, without end


@contextlib.asynccontextmanager
async def worker_host() -> AsyncIterator[WorkerHost]:
    """A running host, ended after the block."""
    host = WorkerHost()
    app = web.Application(client_max_size=64 * 1024**2)
    at = f"/v2/{ENDPOINT}"
    app.add_routes(
        [
            web.get(at + "/job-take/{worker}", host._take),
            web.get(at + "/job-stop/{worker}", host._stops),
            web.post(at + "/job-done/{worker}/{job}", host._done),
            web.get(at + "/ping/{worker}", host._ping),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield host
    finally:
        await runner.cleanup()

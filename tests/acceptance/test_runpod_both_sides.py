"""`mediamill serve` on one side, the worker image's process on the other, RunPod's two faces on loopback between them."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mediamill.media.probe import probe
from tests.runpod_worker_host import ENDPOINT, WorkerHost, worker_host
from tests.serverless.conftest import RUNPOD, clean_environment, started
from tests.service import PATIENCE_S, a_folder, serving


class Face:
    """What RunPod shows to those who send jobs, over what it shows to the worker."""

    def __init__(self, host: WorkerHost) -> None:
        self.host = host
        self.runs = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        *_, last = request.path.rstrip("/").split("/")
        if last == "run":
            self.runs += 1
            last = self.host.put((await request.json())["input"])
        return web.json_response({"id": last, **self.state(last)})

    def state(self, job_id: str) -> dict[str, Any]:
        ended, told = self.host.results.get(job_id), self.host.progress.get(job_id)
        if ended:
            return {"status": "FAILED" if "error" in ended[-1] else "COMPLETED", **ended[-1]}
        return {"status": "IN_PROGRESS", "output": told[-1]} if told else {"status": "IN_QUEUE"}


@contextlib.asynccontextmanager
async def runpod(folder: Path, **settings: str) -> AsyncIterator[Face]:
    async with worker_host() as host:
        face = Face(host)
        app = web.Application(client_max_size=64 * 1024**2)
        app.router.add_route("*", "/{path:.*}", face.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            face.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v2"
            env = {**clean_environment(folder, **settings), **host.environment()}
            async with started("-u", "rp_handler.py", cwd=RUNPOD, log=folder / "worker.log", environment=env):
                yield face
        finally:
            await runner.cleanup()


def generate(url: str, picture: Path) -> list[dict[str, Any]]:
    """Two pictures and a request that fails there, each asked of a service whose zimage runs at `url`."""
    extra = {"RUNPOD_API_KEY": "k", "RUNPOD_ENDPOINT_BASE_URL": url, "RUNPOD_ZIMAGE_ENDPOINT_ID": ENDPOINT}
    asked = {"model": "zimage", "prompt": "a red fox", "width": 512, "height": 512, "seed": 1}
    allowed = {"MEDIAMILL_FETCH_ALLOW": "127.0.0.1"}
    ended = []
    with a_folder() as folder, serving(folder, "--pools", "cpu,remote", extra={**extra, **allowed}) as service:
        for values in ({}, {"seed": 2}, {"imageUrl": "http://127.0.0.1:1/x.png"}):
            status, body = service.ask("POST", "/api/v1/generate", {**asked, **values})
            assert (status, "Job queued on RunPod." in body["message"]) == (202, True), body
            ended.append(service.ended(body["jobId"]))
        with urllib.request.urlopen(ended[0]["artifacts"][0]["url"], timeout=PATIENCE_S) as reply:
            picture.write_bytes(reply.read())
    return ended


@pytest.mark.timeout(300)
async def test_a_service_and_a_worker_image_understand_each_other(tmp_path: Path, tiny_zimage: Path) -> None:
    async with runpod(tmp_path, MEDIAMILL_MODEL_ZIMAGE=str(tiny_zimage)) as face:
        first, second, third = await asyncio.to_thread(generate, face.url, tmp_path / "x.png")
    log = (tmp_path / "worker.log").read_text()[-3000:]
    assert [job["status"] for job in (first, second, third)] == ["succeeded", "succeeded", "failed"], log
    assert (probe(tmp_path / "x.png").width_px, probe(tmp_path / "x.png").height_px) == (512, 512)
    assert [job["output"]["seed"] for job in (first, second)] == [1, 2]
    assert second["output"]["seconds"]["load_s"] < first["output"]["seconds"]["load_s"]  # the weights stayed loaded
    assert third["error"]["code"] == "invalid_request", third["error"]
    assert "image_url" in third["error"]["message"]
    assert face.runs == len((first, second, third))

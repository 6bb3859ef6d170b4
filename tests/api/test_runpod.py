"""What callers hear of RunPod: where a job is queued, how the endpoints are, what is in force; never the key."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from tests.runpod_host import KEY, RunPodHost, hosting

HERE = "Job queued. Poll GET /api/v1/generate/{jobId} for status."
THERE = "Job queued on RunPod. Poll GET /api/v1/generate/{jobId} for status."
ZIMAGE = {"model": "zimage", "prompt": "a red fox"}
LONGCAT = {"model": "longcat", "audioUrl": "https://example.com/a.wav", "imageUrl": "https://example.com/a.png"}
WAV2LIP = {"model": "wav2lip", "videoUrl": "https://example.com/a.mp4", "audioUrl": "https://example.com/a.wav"}


@pytest.fixture
def host() -> Iterator[RunPodHost]:
    with hosting(endpoints={"ep-zimage", "ep-shared"}) as started:
        yield started


def configured(host: RunPodHost, **values: Any) -> dict[str, Any]:
    endpoints = {"ZIMAGE": "ep-zimage", "LTX2": "ep-gone"}
    return {"runpod_api_key": KEY, "runpod_base_url": host.base_url, "runpod_endpoints": endpoints, **values}


@pytest.mark.parametrize(
    ("values", "message", "pool"),
    [
        ({}, THERE, "remote"),
        ({"routes": {"zimage": "local"}}, HERE, "gpu"),
        ({"runpod_api_key": None}, HERE, "gpu"),
        ({"fake_engines": "all"}, HERE, "cpu"),
        ({"runpod_endpoints": {}}, HERE, "gpu"),
        ({"runpod_endpoints": {}, "runpod_endpoint_id": "ep-shared"}, HERE, "gpu"),
        ({"runpod_endpoints": {}, "runpod_endpoint_id": "ep-shared", "routes": {"zimage": "runpod"}}, THERE, "remote"),
    ],
)
async def test_the_202_names_the_place(start, host: RunPodHost, values: dict[str, Any], message: str, pool: str):
    async with start(**configured(host, **values)) as service:
        created = await service.post("/api/v1/generate", ZIMAGE)
        model = (await service.get("/v1/models/zimage")).body
    assert (created.status, created.body["message"]) == (202, message)
    assert (model["pool"], model["place"]) == (pool, "runpod" if pool == "remote" else "local")


@pytest.mark.parametrize("asked", [LONGCAT, WAV2LIP])
async def test_what_does_not_exist_here_goes_where_it_does(start, host: RunPodHost, asked: dict[str, Any]):
    async with start() as service:
        refused = await service.post("/api/v1/generate", asked)
    assert refused.status == 501
    assert f"RUNPOD_{asked['model'].upper()}_ENDPOINT_ID" in refused.body["error"]
    async with start(**configured(host, runpod_endpoints={asked["model"].upper(): "ep-1"})) as service:
        created = await service.post("/api/v1/generate", asked)
    assert (created.status, created.body["message"]) == (202, THERE)


async def test_health_is_what_each_endpoint_says_or_why_it_does_not(start, host: RunPodHost):
    async with start(**configured(host, runpod_endpoint_id="ep-shared", routes={"ltx2": "local"})) as service:
        body = (await service.get("/runpod/health")).body
        host.trouble["health"] = deque([503, 429, 500])
        troubled = (await service.get("/runpod/health")).body
    assert body["configured"] is True
    jobs, workers = {"inQueue": 2, "completed": 7}, {"idle": 1, "running": 0}
    assert body["endpoints"]["zimage"] == {
        "endpointId": "ep-zimage",
        "routed": True,
        "status": "ok",
        "jobs": jobs,
        "workers": workers,
    }
    assert body["endpoints"]["ltx2"] == {
        "endpointId": "ep-gone",
        "routed": False,
        "status": "unavailable",
        "error": "RunPod knows no endpoint 'ep-gone'.",
    }
    assert (body["endpoints"]["shared"]["status"], body["endpoints"]["shared"]["routed"]) == ("ok", False)
    assert {e["status"] for e in troubled["endpoints"].values()} == {"unavailable"}
    assert KEY not in json.dumps([body, troubled])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"runpod_api_key": None}, "RUNPOD_API_KEY is not set"),
        ({"runpod_endpoints": {}}, "no endpoint is set"),
        ({"runpod_api_key": None, "runpod_endpoints": {}}, "RUNPOD_API_KEY is not set"),
    ],
)
async def test_what_is_not_configured_is_said_plainly(start, host: RunPodHost, values: dict[str, Any], words: str):
    async with start(**configured(host, **values)) as service:
        health = (await service.get("/runpod/health")).body
        config = (await service.get("/runpod/config")).body
    message = f"RunPod is not configured ({words}): all jobs run on local workers."
    assert health == {"configured": False, "message": message, "endpoints": {}}
    assert config["configured"] is False
    assert not host.authorizations


async def test_a_wrong_key_is_said_without_the_key(start, host: RunPodHost):
    async with start(**configured(host, runpod_api_key="rpa_wrong")) as service:
        body = (await service.get("/runpod/health")).body
    assert body["endpoints"]["zimage"]["error"] == "RunPod refused RUNPOD_API_KEY (HTTP 401)."
    assert "rpa_" not in json.dumps(body)


async def test_config_shows_what_is_in_force(start, host: RunPodHost):
    async with start(**configured(host)) as service:
        body = (await service.get("/runpod/config")).body
        engine = (await service.get("/api/v1/text-to-video/health")).body["engine"]
    assert body["configured"] is True
    assert body["endpoints"] == {"ltx2": "ep-gone", "zimage": "ep-zimage"}
    assert (body["routes"]["zimage"], body["routes"]["caption"]) == ("runpod", "local")
    assert (body["maxTimeout"], body["idleTimeout"]) == (480, 300)
    assert KEY not in json.dumps(body)
    assert engine == "diffusers"

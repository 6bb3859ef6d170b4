"""`/runpod/*`: which endpoints are configured and how they are, and the limits in force. No secrets."""

from __future__ import annotations

import asyncio
from typing import Any

from mediamill import catalog
from mediamill.api import openapi
from mediamill.api.deps import DepsDep
from mediamill.api.errors import ContractRouter
from mediamill.config import Settings
from mediamill.contracts import video_processing as video
from mediamill.errors import ProviderError
from mediamill.providers import runpod

_PATIENCE_S = 3.0

router = ContractRouter(error_reply=video.error_reply, covers=("/runpod/",), tags=["video processing"])


@router.get("/runpod/health", summary="RunPod endpoints", responses=openapi.errors(openapi.COMMON_ERRORS))
async def health(deps: DepsDep) -> dict[str, Any]:
    """Jobs and workers of each configured endpoint, as RunPod says within 3 s; `error` where it does not."""
    settings = deps.settings
    endpoints = catalog.endpoints(settings)
    key = settings.runpod_api_key is not None
    if not (key and endpoints):
        lacking = "no endpoint is set" if key else "RUNPOD_API_KEY is not set"
        message = f"RunPod is not configured ({lacking}): all jobs run on local workers."
        return {"configured": False, "message": message, "endpoints": {}}
    client = runpod.Client(settings)
    try:
        told = await asyncio.gather(*(_told(client, endpoint) for endpoint in endpoints.values()))
    finally:
        await client.close()
    return {
        "configured": True,
        "endpoints": {
            name: {"endpointId": endpoint, "routed": _is_routed(name, settings), **one}
            for (name, endpoint), one in zip(endpoints.items(), told, strict=True)
        },
    }


async def _told(client: runpod.Client, endpoint: str) -> dict[str, Any]:
    try:
        return {"status": "ok", **await client.health(endpoint, timeout_s=_PATIENCE_S)}
    except ProviderError as error:
        return {"status": "unavailable", "error": error.message}


def _is_routed(name: str, settings: Settings) -> bool:
    """Whether jobs go to the endpoint that is shown under this name."""
    routed = {entry.name: catalog.endpoint_of(entry, settings) for entry in catalog.routed(settings)}
    return name in routed or (name == catalog.SHARED and settings.runpod_endpoint_id in routed.values())


@router.get("/runpod/config", summary="Limits in force", responses=openapi.errors(openapi.COMMON_ERRORS))
async def config(deps: DepsDep) -> dict[str, Any]:
    """What runs on RunPod, and the effective limits; no secrets."""
    settings = deps.settings
    endpoints = catalog.endpoints(settings)
    return {
        "configured": settings.runpod_api_key is not None and bool(endpoints),
        "baseUrl": settings.runpod_base_url,
        "endpoints": endpoints,
        "routes": {entry.name: catalog.place_of(entry, settings) for entry in catalog.load().values()},
        "idleTimeout": settings.runpod_idle_timeout_s,
        "maxTimeout": settings.blocking_limit_s,
        "batchSize": settings.batch_size,
        "splitAbove": settings.split_above,
        "maxWorkers": settings.split_parts,
        "maxClipSeconds": settings.max_clip_s,
    }

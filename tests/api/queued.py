"""Wait for a job to be there, from the outside."""

from __future__ import annotations

import asyncio
from typing import Any


async def queued(service: Any, **headers: str) -> str:
    """The id of the first job that waits, once there is one."""
    for _ in range(2000):
        if jobs := (await service.get("/v1/jobs?status=queued", **headers)).body["data"]:
            return str(jobs[0]["id"])
        await asyncio.sleep(0.01)
    raise AssertionError("no job was queued")

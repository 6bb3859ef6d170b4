"""`/health`, `/ready`, `/docs`: for probes and people; none needs a key."""

from __future__ import annotations

import time
from typing import Any

from fastapi import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from mediamill import __version__, catalog
from mediamill.api import openapi
from mediamill.api.deps import DepsDep
from mediamill.api.docs_page import page
from mediamill.api.errors import ContractRouter
from mediamill.contracts import native

_HEARD_WITHIN_S = 15.0
"""A worker that was silent for longer is not counted."""

router = ContractRouter(
    error_reply=native.error_reply,
    covers=("/health", "/ready", "/docs"),
    error_media_type="application/problem+json",
    tags=["health"],
)


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Alive")
async def health(deps: DepsDep) -> dict[str, Any]:
    """This process answers. Asks nothing of the database or the storage."""
    uptime_s = round(time.monotonic() - deps.started_s, 3)
    return {"status": "ok", "version": __version__, "uptimeSeconds": uptime_s}


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="Can take work", responses=openapi.errors((503,)))
async def ready(deps: DepsDep) -> Response:
    """200 once the database answers and a worker can take work; `pools` says how many slots each has.

    `missing`: pools without a worker although models run there; their jobs stay queued until one is up.
    """
    workers = [w for w in await deps.store.workers(within_s=_HEARD_WITHIN_S) if w.slots]  # an API has none
    up = bool(workers) and not deps.stopping.is_set()
    pools = {pool: sum(w.slots for w in workers if w.pool == pool) for pool in sorted({w.pool for w in workers})}
    missing = sorted({catalog.pool_of(e, deps.settings) for e in catalog.load().values()} - pools.keys())
    body = {"status": "ready" if up else "no worker is up", "pools": pools, "missing": missing}
    return JSONResponse(body, 200 if up else 503, headers={} if up else {"Retry-After": "1"})


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Every route with its schema and examples, made here: no script, nothing from elsewhere."""
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return HTMLResponse(page(request.app.openapi()), headers=headers)

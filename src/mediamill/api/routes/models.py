"""`/v1/models`: what can be asked for."""

from __future__ import annotations

from typing import Any

from mediamill import catalog
from mediamill.api import openapi
from mediamill.api.deps import DepsDep
from mediamill.api.errors import ContractRouter
from mediamill.catalog import Entry
from mediamill.config import Settings
from mediamill.contracts import native

router = ContractRouter(
    error_reply=native.error_reply,
    covers=("/v1/models",),
    error_media_type="application/problem+json",
    tags=["models"],
)


@router.get("/v1/models", summary="Every model and operation", responses=openapi.errors(openapi.COMMON_ERRORS))
async def listing(deps: DepsDep) -> dict[str, Any]:
    """Name, summary, JSON schema of the input, examples, kind of output, and where the jobs of each run."""
    return {"data": [_described(entry, deps.settings) for entry in catalog.load().values()]}


@router.get("/v1/models/{name}", summary="One model", responses=openapi.errors(openapi.COMMON_ERRORS))
async def one(deps: DepsDep, name: str) -> dict[str, Any]:
    """The same, of one."""
    return _described(catalog.get(name), deps.settings)


def _described(entry: Entry, settings: Settings) -> dict[str, Any]:
    return {
        "name": entry.name,
        "summary": entry.summary,
        "output_kind": entry.output_kind,
        "pool": catalog.pool_of(entry, settings),
        "place": catalog.place_of(entry, settings),
        "fake": catalog.engine_of(entry, settings.fake_engines) == "fake",
        "licence": entry.licence,
        "input_schema": openapi.schema_of(entry.request),
        "examples": [dict(example) for example in entry.examples],
    }

"""`POST /transcribe` and `GET /transcribe/health`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.responses import Response

from mediamill import __version__, catalog
from mediamill.api import openapi
from mediamill.api.auth import Caller
from mediamill.api.deps import CallerDep, Deps, DepsDep, IdempotencyKey, RespondAsync, json_object
from mediamill.api.errors import ContractRouter
from mediamill.api.replies import blocking
from mediamill.api.submit import Wish, check_room, objections, submit, with_more, wrong_inputs
from mediamill.api.uploads import received_form, store_upload
from mediamill.catalog import Entry
from mediamill.catalog.transcribe import REPOS, TranscribeRequest
from mediamill.config import Settings
from mediamill.contracts import transcription
from mediamill.errors import InvalidRequest, ModelUnavailable
from mediamill.model import Json

router = ContractRouter(error_reply=transcription.error_reply, covers=("/transcribe",), tags=["transcription"])


def _described() -> dict[str, Any]:
    schema = openapi.entry_schema("transcribe")
    examples = {"by URL": {"url_audio": "https://example.com/talk.mp3", "path": "Project/Video/captions/"}}
    extra = openapi.body(schema, examples)
    fields: dict[str, Any] = {k: v for k, v in schema["properties"].items() if k != "url_audio"}
    form = {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}, **fields}}
    extra["requestBody"]["content"]["multipart/form-data"] = {"schema": {**form, "required": ["file"]}}
    return extra


@router.post(
    "/transcribe",
    summary="Speech to subtitles, karaoke and a word list",
    responses={
        202: {"description": "Queued, with `Prefer: respond-async`"},
        **openapi.errors(openapi.BLOCKING_ERRORS),
    },
    openapi_extra=_described(),
)
async def transcribe(
    request: Request, deps: DepsDep, caller: CallerDep, key: IdempotencyKey, respond_async: RespondAsync
) -> Response:
    """Answers when the job has ended, at most after the blocking limit; 202 with `Prefer: respond-async`."""
    added: str | None = None
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raw, added = await _from_form(request, deps, caller, key)
    else:
        raw = await json_object(request)
    entry = catalog.get("transcribe")
    try:
        inner, webhook_url = _taken_apart(deps, entry, raw)
        submitted = await submit(
            deps,
            caller,
            entry=entry,
            raw=inner,
            contract="transcription",
            wish=Wish(webhook_url=webhook_url, idempotency_key=key),
        )
    except BaseException:
        if added is not None:
            await deps.storage.delete(added)
        raise
    limit_s = deps.settings.blocking_limit_s
    return await blocking(
        request, deps, submitted, reply=transcription.reply, limit_s=limit_s, respond_async=respond_async
    )


def _taken_apart(deps: Deps, entry: Entry, raw: Mapping[str, Json]) -> tuple[dict[str, Json], str | None]:
    try:
        return transcription.request(raw)
    except InvalidRequest as error:
        around = objections(raw.get("webhook_url"), "webhook_url", deps.guard)
        raise with_more(error, [*around, *wrong_inputs(deps, entry, raw, besides=error)]) from error


async def _from_form(
    request: Request, deps: Deps, caller: Caller, key: str | None
) -> tuple[dict[str, Json], str | None]:
    """The body a form stands for, and the storage key of its file unless an earlier call had sent it already."""
    await check_room(deps, jobs=0)
    async with received_form(request, deps) as (received, fields):
        if received is None:
            return transcription.from_form(fields, file=None), None
        transcription.from_form(fields, file="file:")  # nothing is stored for a form that is wrong
        stored, replayed = await store_upload(deps, caller, received, key)
    return transcription.from_form(fields, file=f"file:{stored.key}"), None if replayed else stored.key


@router.get("/transcribe/health", summary="Alive, with the models at hand")
async def health(deps: DepsDep) -> dict[str, Any]:
    """`models` are those whose weights are on this machine; another one is fetched by the first job that asks."""
    at_hand = await asyncio.to_thread(models_at_hand, deps.settings)
    return {
        "status": "ok",
        "version": __version__,
        "uptimeSeconds": round(time.monotonic() - deps.started_s, 3),
        "models": at_hand,
        "defaultModel": TranscribeRequest.model_fields["model"].default,
    }


def models_at_hand(settings: Settings) -> list[str]:
    """Names of the models that need no download, as this machine's settings place them."""
    from mediamill.engines.whisper import weights  # noqa: PLC0415 - brings 30 MB of numpy and PyAV: not for every API

    placed = {f"MEDIAMILL_MODEL_{name}": where for name, where in settings.model_locations.items()}
    home = settings.hf_home or Path("~/.cache/huggingface").expanduser()
    hub_cache = settings.hf_hub_cache or home / "hub"

    def at_hand(name: str) -> bool:
        try:
            return weights.at_hand(weights.locate(name, placed), hub_cache) is not None
        except ModelUnavailable:
            return False

    return [name for name in REPOS if at_hand(name)]

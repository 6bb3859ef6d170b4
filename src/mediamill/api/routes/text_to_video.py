"""`POST /api/v1/text-to-video`: blocking, the clip as base64."""

from __future__ import annotations

import base64
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from mediamill import catalog
from mediamill.api import openapi, samples
from mediamill.api.deps import CallerDep, Deps, DepsDep, IdempotencyKey, JsonBody, RespondAsync
from mediamill.api.errors import ContractRouter
from mediamill.api.replies import accepted, replay_mark, urls_of
from mediamill.api.submit import Wish, objections, several, submit, wrong_inputs
from mediamill.api.waiting import error_of, wait_or_timeout
from mediamill.contracts import text_to_video as contract
from mediamill.errors import InvalidRequest
from mediamill.model import Job, Status

MODEL = "ltx-video"

router = ContractRouter(
    error_reply=contract.error_reply,
    covers=("/api/v1/text-to-video",),
    statuses={"invalid_request": 422, "provider_error": 500, "storage_unavailable": 500},
    tags=["text to video"],
)

_EXAMPLE = {"prompt": "A cat playing piano in a cozy room, cinematic lighting", "num_frames": 24, "fps": 8, "seed": 42}


@router.post(
    "/api/v1/text-to-video",
    summary="Text to video",
    responses={
        200: openapi.answer("The clip", {"a clip": contract.body(samples.DONE, "AAAAIGZ0eXBpc29t...")}),
        202: openapi.answer(
            "Queued, with `Prefer: respond-async`", {"queued": {"jobId": samples.QUEUED.id, "status": "queued"}}
        ),
        **openapi.errors(openapi.BLOCKING_ERRORS),
    },
    openapi_extra=openapi.body(openapi.schema_of(contract.TextToVideoRequest), {"a cat": _EXAMPLE}),
)
async def generate(
    request: Request, deps: DepsDep, caller: CallerDep, raw: JsonBody, key: IdempotencyKey, respond_async: RespondAsync
) -> Response:
    """Answers when the clip is there, at most after 20 minutes; 202 with `Prefer: respond-async`."""
    try:
        asked = contract.request(raw)
    except InvalidRequest as error:
        around = objections(raw.get("webhook_url"), "webhook_url", deps.guard)
        raise several([error, *around, *wrong_inputs(deps, catalog.get(MODEL), raw, besides=error)]) from error
    job, replayed = await submit(
        deps,
        caller,
        entry=catalog.get(asked.model),
        raw=asked.input,
        contract="text_to_video",
        wish=Wish(webhook_url=asked.webhook_url, idempotency_key=key, warnings=asked.warnings),
    )
    if respond_async:
        return accepted(job, {"jobId": job.id, "status": "queued"}, replayed=replayed)
    ended = await wait_or_timeout(deps, job, contract.LIMIT_S, request=request)
    if ended.status is not Status.SUCCEEDED:
        raise error_of(ended)
    video = await _video(deps, ended, response_format=asked.response_format)
    return JSONResponse(contract.body(ended, video), headers=replay_mark(replayed))


async def _video(deps: Deps, job: Job, *, response_format: str) -> str:
    clip = contract.clip(job)
    if response_format == "url":
        return (await urls_of(deps, job))[clip.name]
    whole = b"".join([part async for part in deps.storage.open(clip.key)])
    return base64.b64encode(whole).decode()


@router.get("/api/v1/text-to-video/health", summary="Whether clips can be made")
async def health(deps: DepsDep) -> dict[str, Any]:
    """The model and what runs it: `diffusers`, `fake`, or `runpod`."""
    entry, settings = catalog.get(MODEL), deps.settings
    place = catalog.place_of(entry, settings)
    engine = catalog.engine_of(entry, settings.fake_engines) if place == "local" else place
    return {"status": "ok", "model": MODEL, "engine": engine}

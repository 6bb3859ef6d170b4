"""`/api/v1/generate`: the generation contract."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from mediamill import catalog
from mediamill.api import edge, openapi, samples
from mediamill.api.auth import Caller
from mediamill.api.deps import CallerDep, Deps, DepsDep, IdempotencyKey, JsonBody, WaitSeconds
from mediamill.api.errors import ContractRouter
from mediamill.api.replies import accepted, replay_mark, urls_of
from mediamill.api.submit import (
    Asked,
    Wish,
    check,
    check_quota,
    objections,
    prepare,
    several,
    submit,
    unstage,
    wrong_inputs,
)
from mediamill.api.waiting import MAX_WAIT_S, cancel_and_wait, wait_for, wait_for_id
from mediamill.contracts import generation
from mediamill.errors import InputError, InvalidRequest, MediamillError, NotImplementedYet, TooLarge
from mediamill.jobs.store import Idempotency, Submission
from mediamill.model import Job, Json

router = ContractRouter(error_reply=generation.error_reply, covers=("/api/v1/generate",), tags=["generation"])

_ONE_OF: dict[str, Json] = {
    "oneOf": [openapi.schema_of(wire) for wire in generation.every_wire()],
    "discriminator": {"propertyName": "model"},
}
_BULK: dict[str, Json] = {
    "type": "object",
    "required": ["jobs"],
    "properties": {
        "jobs": {"type": "array", "minItems": 1, "maxItems": generation.MAX_BULK, "items": _ONE_OF},
        "webhookUrl": {"type": "string", "description": "Told once, when the last job has ended"},
    },
}
_OF_ONE_JOB = (InputError, NotImplementedYet, TooLarge)
"""What is wrong with one job of a bulk, besides its request; all else concerns the whole bulk."""
_EXAMPLES: Mapping[str, Json] = {
    "zimage": {"model": "zimage", "prompt": "A photorealistic portrait of a businesswoman", "seed": 42},
    "ltx2": {
        "model": "ltx2",
        "imageUrl": "https://example.com/image.jpg",
        "prompt": "A cinematic video of the scene",
        "duration": 5,
    },
}
_STATES: Mapping[str, Json] = {
    str(body["status"]): body
    for body in (
        generation.reply(job, samples.URLS) for job in (samples.QUEUED, samples.RUNNING, samples.DONE, samples.FAILED)
    )
}
_BATCH = (samples.DONE, samples.FAILED)
_BULK_STATE = generation.bulk_reply("01a218e0-0157-70d9-83e5-8cdac40ec54d", _BATCH, [samples.URLS] * len(_BATCH))


@router.post(
    "/api/v1/generate",
    status_code=202,
    summary="Generate an image or a video",
    responses={
        202: openapi.answer("Queued", {"queued": generation.accepted(samples.QUEUED)}),
        **openapi.errors((*openapi.CREATING_ERRORS, 501)),
    },
    openapi_extra=openapi.body(_ONE_OF, _EXAMPLES),
)
async def create(
    request: Request, deps: DepsDep, caller: CallerDep, raw: JsonBody, key: IdempotencyKey, wait: WaitSeconds = 0
) -> Response:
    """Queue a job. `?wait=` answers with its last state, as polling would, when it has ended by then."""
    asked = _asked(deps, raw)
    wish = Wish(webhook_url=asked.webhook_url, idempotency_key=key, warnings=asked.warnings)
    try:
        job, replayed = await submit(
            deps, caller, entry=catalog.get(asked.model), raw=asked.input, contract="generation", wish=wish
        )
    except MediamillError as error:
        raise generation.wire_error(error, asked.model) from error
    if wait:
        latest = await wait_for(deps, job, min(wait, MAX_WAIT_S), request=request)
        if latest.status.ended:
            body = generation.reply(latest, await urls_of(deps, latest)) | generation.told_warnings(latest)
            return accepted(latest, body, replayed=replayed, status=200)
    on_runpod = catalog.place_of(catalog.get(job.model), deps.settings) == "runpod"
    return accepted(job, generation.accepted(job, on_runpod=on_runpod), replayed=replayed)


@router.post(
    "/api/v1/generate/bulk",
    status_code=202,
    summary="Generate up to 50 at once",
    responses={
        202: openapi.answer(
            "All are queued", {"queued": generation.bulk_accepted(str(_BULK_STATE["batchId"]), [samples.QUEUED])}
        ),
        **openapi.errors((*openapi.CREATING_ERRORS, 501)),
    },
    openapi_extra=openapi.body(_BULK, {"two": {"jobs": [_EXAMPLES["zimage"], _EXAMPLES["ltx2"]]}}),
)
async def create_bulk(deps: DepsDep, caller: CallerDep, raw: JsonBody, key: IdempotencyKey) -> Response:
    """Queue all of them, or none when one is wrong. One webhook tells the end of the last."""
    checked, url, warnings = await _checked_bulk(deps, raw)
    idempotency = _idempotency(caller, key, raw)
    before = None if idempotency is None else await deps.store.batch_made_by(idempotency)
    if before is not None:
        return _bulk_accepted(before.id, before.jobs, warnings, replayed=True)
    await check_quota(deps, caller, jobs=len(checked))
    ready = await _prepared(deps, caller, checked)
    try:
        batch_id, jobs = await deps.store.submit_batch(ready, webhook_url=url, idempotency=idempotency)
    except BaseException:
        await _unstage(deps, ready)
        raise
    made = {job.id for job in jobs}
    others = [s for s in ready if s.job_id not in made]  # a replay at the same moment: these became no jobs
    await _unstage(deps, others)
    return _bulk_accepted(batch_id, jobs, warnings, replayed=bool(others))


def _bulk_accepted(batch_id: str, jobs: Sequence[Job], warnings: Sequence[str], *, replayed: bool) -> JSONResponse:
    headers = {"Location": f"/api/v1/generate/bulk/{batch_id}"} | replay_mark(replayed)
    return JSONResponse(generation.bulk_accepted(batch_id, jobs, warnings=warnings), 202, headers=headers)


def _asked(deps: Deps, raw: Mapping[str, Json]) -> generation.Asked:
    """A request taken apart. Raises InvalidRequest, which names wrong addresses beside what the contract refuses."""
    try:
        return generation.request(raw)
    except InvalidRequest as error:
        wrong = [error, *objections(generation.webhook_in(raw), "webhookUrl", deps.guard)]
        entry = catalog.load().get(str(raw.get("model")))
        if entry is not None:
            found = wrong_inputs(deps, entry, generation.in_catalog_words(raw), besides=error)
            wrong += [generation.wire_error(one, entry.name) for one in found]
        raise several(wrong) from error


async def _checked_bulk(deps: Deps, raw: Mapping[str, Json]) -> tuple[list[Asked], str | None, Sequence[str]]:
    """Each request, the bulk's webhook URL and the warnings. Raises InvalidRequest, naming all that is wrong."""
    wrong = objections(generation.webhook_in(raw), "webhookUrl", deps.guard)
    url: str | None = None
    try:
        url = generation.webhook_url(raw)
    except InvalidRequest as error:
        wrong.append(error)
    try:
        asked = generation.bulk(raw)
    except InvalidRequest as error:
        raise several([*wrong, error]) from error
    checked: list[Asked] = []
    for index, one in enumerate(asked.jobs):
        try:
            checked.append(await _checked(deps, one))
        except InvalidRequest as error:
            wrong.append(generation.below(error, index))
        except _OF_ONE_JOB as error:
            raise generation.below(error, index) from error
    if wrong:
        raise several(wrong)
    return checked, url, asked.warnings


async def _checked(deps: Deps, raw: Mapping[str, Json]) -> Asked:
    asked = _asked(deps, raw)
    wish = Wish(webhook_url=asked.webhook_url, warnings=asked.warnings)
    entry = catalog.get(asked.model)
    try:
        return await check(deps, entry=entry, raw=asked.input, contract="generation", wish=wish)
    except MediamillError as error:
        raise generation.wire_error(error, asked.model) from error


async def _prepared(deps: Deps, caller: Caller, checked: Sequence[Asked]) -> list[Submission]:
    """Every submission; nothing stays staged when one of them is refused."""
    ready: list[Submission] = []
    wrong: list[InvalidRequest] = []
    try:
        for index, one in enumerate(checked):
            try:
                ready.append(await prepare(deps, caller, one))
            except InvalidRequest as error:
                wrong.append(generation.below(generation.wire_error(error, one.entry.name), index))
            except _OF_ONE_JOB as error:
                raise generation.below(generation.wire_error(error, one.entry.name), index) from error
    except BaseException:
        await _unstage(deps, ready)
        raise
    if wrong:
        await _unstage(deps, ready)
        raise several(wrong)
    return ready


async def _unstage(deps: Deps, submissions: Sequence[Submission]) -> None:
    for submission in submissions:
        await unstage(deps, submission)


def _idempotency(caller: Caller, key: str | None, raw: Mapping[str, Json]) -> Idempotency | None:
    if key is None:
        return None
    canonical = json.dumps(["generation bulk", raw], sort_keys=True, separators=(",", ":")).encode()
    return Idempotency(caller=caller.id, key=key, fingerprint=hashlib.sha256(canonical).hexdigest())


@router.get(
    "/api/v1/generate/bulk/{batch_id}",
    summary="State of a bulk",
    responses={
        200: openapi.answer("Its state", {str(_BULK_STATE["status"]): _BULK_STATE}),
        **openapi.errors(openapi.COMMON_ERRORS),
    },
)
async def bulk_state(deps: DepsDep, batch_id: str) -> dict[str, Any]:
    """pending, processing, completed, partial_failure or failed, and each job as it would be polled."""
    batch = await deps.store.batch(batch_id)
    urls = [await urls_of(deps, job) for job in batch.jobs]
    return generation.bulk_reply(batch.id, batch.jobs, urls)


@router.get(
    "/api/v1/generate/{job_id}",
    summary="State of a job",
    responses={200: openapi.answer("Its state", _STATES), **openapi.errors(openapi.COMMON_ERRORS)},
)
async def state(request: Request, deps: DepsDep, job_id: str, wait: WaitSeconds = 0) -> dict[str, Any]:
    """Queued, processing, completed or failed."""
    edge.note(job_id=job_id)
    if wait:
        job = await wait_for_id(deps, job_id, min(wait, MAX_WAIT_S), request=request)
    else:
        job = await deps.store.get(job_id, position=True)
    return generation.reply(job, await urls_of(deps, job))


@router.delete(
    "/api/v1/generate/{job_id}",
    summary="Cancel a job",
    responses={
        200: openapi.answer("Its state", {"failed": generation.cancelled(samples.CANCELLED, samples.URLS)}),
        **openapi.errors(openapi.COMMON_ERRORS),
    },
)
async def cancel(deps: DepsDep, job_id: str) -> dict[str, Any]:
    """Ask for its end and answer with its state; a job that has ended is unchanged."""
    job = await cancel_and_wait(deps, job_id)
    return generation.cancelled(job, await urls_of(deps, job))

"""`/v1/jobs`: the native API."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic_core import from_json
from starlette.responses import JSONResponse, Response

from mediamill import catalog
from mediamill.api import edge, openapi
from mediamill.api.deps import CallerDep, Deps, DepsDep, IdempotencyKey, JsonBody, WaitSeconds
from mediamill.api.errors import ContractRouter
from mediamill.api.replies import accepted, as_created, urls_of
from mediamill.api.submit import Wish, check, objections, several, submit
from mediamill.api.waiting import MAX_WAIT_S, wait_for, wait_for_id
from mediamill.catalog import Entry
from mediamill.contracts import native
from mediamill.errors import Detail, InvalidRequest, NotFound, NotImplementedYet
from mediamill.model import Job, Json, Status

_ASK_AGAIN_S = 1
_EVENT_WAIT_S = 1.0
"""Starts and ends are notified at once; progress is looked at this often."""

router = ContractRouter(
    error_reply=native.error_reply, covers=("",), error_media_type="application/problem+json", tags=["jobs"]
)

_EXAMPLES: Mapping[str, Json] = {
    "fake": {"model": "fake", "input": {"kind": "video", "width": 320, "height": 180, "duration_s": 1}},
    "with everything": {
        "model": "fake",
        "input": {"kind": "image", "seed": 7},
        "webhook_url": "https://example.com/hook",
        "priority": 10,
        "metadata": {"order": "A-17"},
    },
}


@router.post(
    "/v1/jobs",
    status_code=202,
    summary="Queue a job",
    responses=openapi.errors(openapi.CREATING_ERRORS),
    openapi_extra=openapi.body(openapi.schema_of(native.JobRequest), _EXAMPLES),
)
async def create(
    request: Request, deps: DepsDep, caller: CallerDep, raw: JsonBody, key: IdempotencyKey, wait: WaitSeconds = 0
) -> Response:
    """Check the request, queue the job and answer 202 with its envelope; `Location` is where to ask for it."""
    try:
        parsed, unknown = native.request(raw)
    except InvalidRequest as error:
        raise several([error, *await _wrong_inside(deps, raw)]) from error
    wish = Wish(
        webhook_url=parsed.webhook_url,
        idempotency_key=key,
        priority=parsed.priority,
        metadata=parsed.metadata,
        warnings=unknown,
    )
    try:
        entry = _entry(parsed.model)
        job, replayed = await submit(deps, caller, entry=entry, raw=parsed.input, contract="native", wish=wish)
    except InvalidRequest as error:
        raise native.under_input(error) from error
    if wait:
        job = await wait_for(deps, job, min(wait, MAX_WAIT_S), request=request)
        if job.status.ended:
            return accepted(job, native.reply(job, await urls_of(deps, job)), replayed=replayed, status=200)
    return accepted(job, native.reply(as_created(job), {}), replayed=replayed)


async def _wrong_inside(deps: Deps, raw: Mapping[str, Json]) -> list[InvalidRequest]:
    """What is wrong with input and webhook of a request that is wrong around them."""
    entry, inner, url = catalog.load().get(str(raw.get("model"))), raw.get("input"), raw.get("webhook_url")
    if entry is None or not isinstance(inner, Mapping):
        return objections(url, "webhook_url", deps.guard)
    try:
        wish = Wish(webhook_url=url if isinstance(url, str) else None)
        await check(deps, entry=entry, raw=inner, contract="native", wish=wish)
    except InvalidRequest as error:
        return [native.under_input(error)]
    except NotImplementedYet:
        pass
    return []


def _entry(model: str) -> Entry:
    try:
        return catalog.get(model)
    except NotFound as error:
        raise InvalidRequest.of(Detail("model", error.message)) from error


@router.get("/v1/jobs", summary="List jobs", responses=openapi.errors(openapi.COMMON_ERRORS))
async def listing(
    request: Request,
    deps: DepsDep,
    status: Annotated[Status | None, Query(description="Only jobs in this state.")] = None,
    model: Annotated[str | None, Query(max_length=100, description="Only jobs of this model.")] = None,
    after: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Jobs on a page.")] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By creation.")] = "desc",
    created_after: Annotated[datetime | None, Query(description="ISO 8601; without a zone it is UTC.")] = None,
    created_before: Annotated[datetime | None, Query(description="ISO 8601; without a zone it is UTC.")] = None,
) -> dict[str, Any]:
    """One page of jobs.

    `metadata.NAME=VALUE` keeps those whose metadata has that value: JSON (`3`, `true`, `"3"`), or else a string.
    """
    page = await deps.store.list(
        status=status,
        model=_text("model", model),
        after=_text("after", after),
        limit=limit,
        order=order,
        created_after=_utc("created_after", created_after),
        created_before=_utc("created_before", created_before),
        metadata=_metadata_filter(request),
    )
    return {
        "data": [native.reply(job, await urls_of(deps, job)) for job in page.jobs],
        "has_more": page.next_cursor is not None,
        "next_cursor": page.next_cursor,
        "first_id": page.jobs[0].id if page.jobs else None,
        "last_id": page.jobs[-1].id if page.jobs else None,
    }


def _text(name: str, value: str | None) -> str | None:
    if value is not None and "\0" in value:
        raise InvalidRequest.of(Detail(name, "must not hold NUL characters"))
    return value


def _utc(name: str, moment: datetime | None) -> datetime | None:
    """In UTC, which is also meant where no zone is given. The first and last hours of time are in no other zone."""
    if moment is None or moment.tzinfo is None:
        return moment and moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        message = f"must be a time between the years 1 and 9999 in UTC (got {moment.isoformat()!r})"
        raise InvalidRequest.of(Detail(name, message)) from error


def _metadata_filter(request: Request) -> dict[str, Json] | None:
    wanted = {
        name.removeprefix("metadata."): _json_or_text(name, value)
        for name, value in request.query_params.items()
        if name.startswith("metadata.")
    }
    return wanted or None


def _json_or_text(name: str, value: str) -> Json:
    """`3`, `true` and `"3"` as JSON says; what is no JSON is a string."""
    _text(name, value)
    try:
        return from_json(value, allow_inf_nan=False)
    except ValueError:
        return value


@router.get("/v1/jobs/{job_id}", summary="One job", responses=openapi.errors((*openapi.COMMON_ERRORS,)))
async def one(request: Request, deps: DepsDep, job_id: str, wait: WaitSeconds = 0) -> Response:
    """The envelope. While it has not ended: `Retry-After`. `If-None-Match` with the `ETag` saves the body."""
    edge.note(job_id=job_id)
    if wait:
        job = await wait_for_id(deps, job_id, min(wait, MAX_WAIT_S), request=request)
    else:
        job = await deps.store.get(job_id, position=True)
    return _envelope(request, job, await urls_of(deps, job))


async def _get(deps: Deps, job_id: str) -> Job:
    edge.note(job_id=job_id)
    return await deps.store.get(job_id)


def _envelope(request: Request, job: Job, urls: Mapping[str, str]) -> Response:
    body = native.reply(job, urls)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]
    headers = {"ETag": f'"{digest}"', "Cache-Control": "no-cache"}
    if not job.status.ended:
        headers["Retry-After"] = str(_ASK_AGAIN_S)
    known = request.headers.get("if-none-match", "")
    if digest in known:
        return Response(status_code=304, headers=headers)
    return JSONResponse(body, headers=headers)


@router.post("/v1/jobs/{job_id}/cancel", summary="Cancel a job", responses=openapi.errors(openapi.COMMON_ERRORS))
async def cancel(deps: DepsDep, job_id: str) -> dict[str, Any]:
    """Ask for its end. A queued job is cancelled at once, a running one within seconds, an ended one unchanged."""
    edge.note(job_id=job_id)
    job = await deps.store.cancel(job_id)
    return native.reply(job, await urls_of(deps, job))


async def _job(deps: DepsDep, job_id: str) -> Job:
    """Before the stream starts, so that an unknown id is a 404."""
    return await _get(deps, job_id)


@router.get(
    "/v1/jobs/{job_id}/events",
    summary="Follow a job (server-sent events)",
    response_class=EventSourceResponse,
    responses=openapi.errors(openapi.COMMON_ERRORS),
)
async def events(deps: DepsDep, job_id: str, found: Annotated[Job, Depends(_job)]) -> AsyncIterator[ServerSentEvent]:
    """The envelope as event `job` at once and after each change; the last one has ended."""
    job = found
    async with deps.store.events.job(job_id) as changed:
        shown = None
        while not deps.stopping.is_set():
            body = native.reply(job, await urls_of(deps, job))
            if body != shown:
                yield ServerSentEvent(data=body, event="job", id=f"{job.attempt}-{body['progress']}-{job.status}")
                shown = body
            if job.status.ended:
                return
            await changed.wait(_EVENT_WAIT_S)
            job = await deps.store.get(job_id)

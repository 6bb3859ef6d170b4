"""What a route gets: the parts, the caller, and the request's JSON object and headers."""

from __future__ import annotations

import asyncio
import math
import re
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from pydantic_core import from_json

from mediamill.api.auth import Caller
from mediamill.api.errors import WrongContentType
from mediamill.catalog import MAX_DETAILS
from mediamill.config import Settings
from mediamill.errors import Detail, InvalidRequest, TooLarge
from mediamill.inputs.guard import UrlGuard
from mediamill.inputs.resolver import Inputs
from mediamill.jobs.store import JobStore
from mediamill.model import Json, Storage

MAX_JSON_VALUES = 100_000
"""Values in one body at most: base64 is one value however long, so only padding reaches this."""
_OFF_LOOP_BYTES = 256 * 1024
_COUNT_EVERY_S = 1.0
_COUNT_MARGIN = 1000


class QueueGauge:
    """How many jobs wait, counted once a second, and each time when it is nearly full."""

    def __init__(self) -> None:
        """Nothing was counted yet."""
        self._waiting = 0
        self._counted_at = -math.inf

    async def has_room(self, store: JobStore, jobs: int, most: int) -> bool:
        """Whether that many more may wait where at most `most` may."""
        self._waiting += jobs
        stale = time.monotonic() - self._counted_at > _COUNT_EVERY_S
        if stale or self._waiting > most - _COUNT_MARGIN:
            self._counted_at = time.monotonic()
            self._waiting = jobs + await store.queue_depth(cap=most)
        return self._waiting <= most


@dataclass(frozen=True)
class Deps:
    """The open parts every route works on. Whoever made them closes them."""

    settings: Settings
    store: JobStore
    storage: Storage
    inputs: Inputs
    guard: UrlGuard
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at shutdown: waiting calls end at once."""
    started_s: float = field(default_factory=time.monotonic)
    gauge: QueueGauge = field(default_factory=QueueGauge)


async def _deps(request: Request) -> Deps:  # async: FastAPI sends plain functions through its thread pool
    deps: Deps = request.app.state.deps
    return deps


async def _caller(request: Request) -> Caller:
    caller: Caller = request.scope["mediamill.caller"]
    return caller


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body. Raises TooLarge as soon as more than `limit_bytes` are announced or have come."""
    announced = request.headers.get("content-length", "")
    body = bytearray()
    if announced.isdigit() and int(announced) > limit_bytes:
        raise TooLarge(f"The body has {announced} bytes; at most {limit_bytes} are accepted.")
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise TooLarge(f"The body has more than {limit_bytes} bytes.")
    return bytes(body)


async def json_object(request: Request) -> dict[str, Json]:
    """The body as a JSON object; a large one is parsed off the event loop.

    Raises: WrongContentType, TooLarge, InvalidRequest.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (media_type == "application/json" or re.fullmatch(r"application/[\w.+-]+\+json", media_type)):
        raise WrongContentType(f"The body must be JSON: send Content-Type: application/json (got {media_type!r}).")
    deps = await _deps(request)
    body = await read_body(request, deps.settings.max_body_bytes)
    return parse_object(body) if len(body) < _OFF_LOOP_BYTES else await asyncio.to_thread(parse_object, body)


def parse_object(body: bytes) -> dict[str, Json]:
    """A JSON object from bytes, bounded in the number of its values and in its depth.

    Raises: InvalidRequest saying where it is not JSON; TooLarge for a body that is mostly structure.
    """
    body = body.removeprefix(b"\xef\xbb\xbf")
    values = body.count(b",") + body.count(b"[") + body.count(b"{")
    if values > MAX_JSON_VALUES:
        raise TooLarge(f"The body holds more than {MAX_JSON_VALUES} values.")
    try:
        parsed = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        unfinite = _unfinite(body)
        raise (
            InvalidRequest.of(*unfinite) if unfinite else InvalidRequest(f"The body is not valid JSON: {error}.")
        ) from error
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"The body must be a JSON object (got {type(parsed).__name__}).")
    return parsed


def _unfinite(body: bytes) -> tuple[Detail, ...]:
    """The fields that hold NaN or Infinity, when those are all that keeps the body from being JSON."""
    try:
        parsed = from_json(body)
    except ValueError:
        return ()
    found: list[Detail] = []
    waiting: list[tuple[str, Json]] = [("", parsed)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            found.append(Detail(path, f"must be a finite number (got {value})"))
        elif isinstance(value, dict | list):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += reversed([(f"{path}.{name}" if path else str(name), item) for name, item in inner])
    return tuple(found[:MAX_DETAILS])


async def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        message = f"must be 1 to 255 printable ASCII characters (got {key[:80]!r})"
        raise InvalidRequest(f"Idempotency-Key {message}.", details=[Detail("Idempotency-Key", message)])
    return key


async def _respond_async(request: Request) -> bool:
    preferences = ",".join(request.headers.getlist("prefer")).lower()
    return "respond-async" in re.split(r"[\s,;]+", preferences)


DepsDep = Annotated[Deps, Depends(_deps)]
CallerDep = Annotated[Caller, Depends(_caller)]
JsonBody = Annotated[dict[str, Any], Depends(json_object)]
IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]
RespondAsync = Annotated[bool, Depends(_respond_async)]

WaitSeconds = Annotated[
    float,
    Query(ge=0, allow_inf_nan=False, description="Answer once the job has ended, or after this many seconds."),
]
"""`wait: WaitSeconds = 0`: the route bounds it."""

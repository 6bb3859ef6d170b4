"""From the error tree to HTTP: one table of statuses, and the body each contract wants."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from mediamill.durable import FULL
from mediamill.errors import (
    Busy,
    Detail,
    InvalidRequest,
    MediamillError,
    NotFound,
    Refused,
    RetryLater,
    for_callers,
)
from mediamill.model import Json

log = logging.getLogger("mediamill.api")


class NotAllowed(InvalidRequest):
    """This path does not have that method."""

    code = "method_not_allowed"


class WrongContentType(InvalidRequest):
    """The body must be JSON: send Content-Type: application/json."""

    code = "unsupported_content_type"


class Forbidden(Refused):
    """This request comes from where it may not come from."""

    code = "forbidden"


STATUS: Mapping[str, int] = {
    "internal": 500,
    "invalid_request": 400,
    "not_found": 404,
    "method_not_allowed": 405,
    "unsupported_content_type": 415,
    "conflict": 409,
    "unauthorized": 401,
    "forbidden": 403,
    "refused": 422,
    "too_large": 413,
    "busy": 503,
    "too_many": 429,
    "input_error": 422,
    "input_unreachable": 422,
    "unsupported_media": 422,
    "engine_error": 500,
    "out_of_memory": 500,
    "engine_failed": 500,
    "model_unavailable": 500,
    "crashed": 500,
    "misconfigured": 500,
    "store_error": 500,
    "store_unavailable": 503,
    "schema_mismatch": 500,
    "not_implemented": 501,
    "provider_error": 503,
    "storage_error": 500,
    "storage_unavailable": 503,
    "storage_refused": 500,
    "deadline_exceeded": 504,
    "cancelled": 409,
    "retry_later": 503,
    "lease_lost": 500,
}
"""HTTP status by error code, where a contract does not say otherwise."""

RETRY_AFTER_S = 5
"""What 429 and 503 say when the error itself does not know when room will be."""

ErrorReply = Callable[[MediamillError, int], Mapping[str, Json]]
"""`error_reply(error, status)`: the body in a contract's own envelope."""


class ContractRouter(APIRouter):
    """The routes of one public contract, and the shape of the errors under its paths.

    Args:
        error_reply: Makes the body of every error under `covers`, also of those raised before a handler runs
            (401, 404, 405, 413, 415, 503). `error.job_id` is the job's id where one exists.
        covers: Path prefixes, e.g. ("/video/", "/job/"). The longest match over all routers wins.
        statuses: HTTP statuses by error code where this contract differs from `STATUS`.
        error_media_type: Content type of the error bodies.
        rest: What APIRouter takes.
    """

    def __init__(
        self,
        *,
        error_reply: ErrorReply,
        covers: Sequence[str],
        statuses: Mapping[str, int] | None = None,
        error_media_type: str = "application/json",
        **rest: Any,
    ) -> None:
        """See the class."""
        super().__init__(**rest)
        self.error_reply = error_reply
        self.covers = tuple(covers)
        self.statuses = {**STATUS, **(statuses or {})}
        self.error_media_type = error_media_type


class ErrorShapes:
    """Finds the contract a path belongs to and answers errors in its shape."""

    def __init__(self, routers: Sequence[ContractRouter]) -> None:
        """`routers`: one of them covers "" and is the default."""
        self._routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
        pairs = [(prefix, router) for router in routers for prefix in router.covers]
        self._by_prefix = sorted(pairs, key=lambda pair: len(pair[0]), reverse=True)

    def router(self, path: str) -> ContractRouter:
        """The router whose shape errors under `path` have."""
        return next(router for prefix, router in self._by_prefix if path.startswith(prefix))

    def methods(self, path: str) -> list[str]:
        """What may be done with a path, sorted; the framework itself names those of the first route only."""
        return sorted({m for route in self._routes if route.path_regex.match(path) for m in route.methods or ()})

    def response(self, path: str, exc: Exception, *, request_id: str) -> Response:
        """The HTTP answer to an exception. Nothing of an unknown exception is shown."""
        if isinstance(exc, HTTPException) and exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = ", ".join(self.methods(path))
            exc = HTTPException(exc.status_code, headers={"Allow": allowed} if allowed else exc.headers)
        router = self.router(path)
        error = _shown(as_error(exc))
        status = router.statuses.get(error.code, 500)
        body = dict(router.error_reply(error, status))
        if router.error_media_type == "application/problem+json":
            body["request_id"] = request_id
        return JSONResponse(body, status, headers=_headers(exc, error, status), media_type=router.error_media_type)


def _shown(error: MediamillError) -> MediamillError:
    """As callers may see it; a job's error is so already."""
    shown = error if error.job_id is not None else for_callers(error)
    if shown is not error:
        log.error("%s: %s", error.code, error.message)
    return shown


def _headers(exc: Exception, error: MediamillError, status: int) -> dict[str, str]:
    headers = {k: v for k, v in (getattr(exc, "headers", None) or {}).items() if k.lower() == "allow"}
    if status in {429, 503}:
        headers["Retry-After"] = str(retry_after_s(error))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def retry_after_s(error: MediamillError) -> int:
    """Whole seconds until a retry makes sense, at least 1."""
    delay_s = error.delay_s if isinstance(error, Busy | RetryLater) else RETRY_AFTER_S
    return max(1, math.ceil(delay_s))


def as_error(exc: Exception) -> MediamillError:
    """The error of our tree that an exception at the request edge stands for."""
    if isinstance(exc, MediamillError):
        return exc
    if isinstance(exc, RequestValidationError):
        details = [Detail(".".join(map(str, e["loc"][1:])) or "request", _complaint(e)) for e in exc.errors()]
        return InvalidRequest.of(*details)
    if isinstance(exc, HTTPException):
        return _of_status(exc)
    if isinstance(exc, OSError) and exc.errno in FULL:
        return Busy("There is no room left on this service's disk; try again when some was made.", delay_s=60)
    if isinstance(exc, ConnectionError | TimeoutError | asyncio.TimeoutError):
        return Busy("A part this request needs does not answer now; try again.", delay_s=RETRY_AFTER_S)
    return MediamillError("Something went wrong here; the log has the details under this request id.")


def _complaint(e: Mapping[str, Any]) -> str:
    shown = repr(e.get("input"))
    return f"{e['msg']} (got {shown[:77] + '...' if len(shown) > 80 else shown})"  # noqa: PLR2004 - one short line


def _of_status(exc: HTTPException) -> MediamillError:
    if exc.status_code == HTTPStatus.NOT_FOUND:
        return NotFound("There is no such path.")
    if exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (exc.headers or {}).get("Allow") or (exc.headers or {}).get("allow")
        return NotAllowed(f"This path does not have that method; it has: {allowed}." if allowed else None)
    if exc.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return InvalidRequest(str(exc.detail))
    return MediamillError()

"""The request edge, as plain ASGI: request id, gate, one access line, and the last catch."""

from __future__ import annotations

import logging
import re
import secrets
import time
from contextvars import ContextVar
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mediamill.api.auth import Gate
from mediamill.api.errors import ErrorShapes
from mediamill.api.lingering import Lingering
from mediamill.errors import MediamillError

log = logging.getLogger("mediamill.api")
_LEFT = 499
"""Logged for a caller that closed the connection while it still sent; nobody gets it."""
_SHOWN_CHARS = 200
_noted: ContextVar[dict[str, Any] | None] = ContextVar("mediamill_noted", default=None)


def note(**facts: Any) -> None:
    """Add facts (job_id) to this request's access line. They may be whatever a caller sent."""
    noted = _noted.get()
    if noted is not None:
        noted.update({name: _plain(str(value)) for name, value in facts.items()})


class RequestEdge:
    """Wraps the whole application; the only place of the API that catches everything."""

    def __init__(self, app: ASGIApp, *, gate: Gate, shapes: ErrorShapes) -> None:
        """`app`: what is inside."""
        self._app = app
        self._gate = gate
        self._shapes = shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope["mediamill.request_id"] = request_id
        noted: dict[str, Any] = {}
        token = _noted.set(noted)
        started_s = time.monotonic()
        answer = {"status": 0}
        lingering = Lingering(scope, receive, send)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer["status"] = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers.setdefault("X-Content-Type-Options", "nosniff")
            await lingering.send(message)

        try:
            scope["mediamill.caller"] = self._gate.admit(scope)
            await self._app(scope, lingering.receive, send_marked)
        except ClientDisconnect:
            answer["status"] = _LEFT
        except Exception as exc:  # the request edge
            if not isinstance(exc, MediamillError):
                log.exception("request failed", extra={"request_id": request_id})
            if answer["status"]:
                raise  # half an answer is out: only closing the connection tells the caller
            await self._shapes.response(scope["path"], exc, request_id=request_id)(
                scope, lingering.receive, send_marked
            )
        finally:
            _noted.reset(token)
            _log_line(scope, answer["status"], started_s, {"request_id": request_id, **noted})


def _request_id(scope: Scope) -> str:
    """The caller's own id when it is a plain one, else a fresh one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else secrets.token_hex(8)


def _plain(text: str) -> str:
    """On one line of the log, whatever it holds, and no longer than fits there."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:_SHOWN_CHARS])
    return shown if len(text) <= _SHOWN_CHARS else f"{shown}..."


def _log_line(scope: Scope, status: int, started_s: float, facts: dict[str, Any]) -> None:
    """Path without its query, which may hold a signature."""
    elapsed_ms = round((time.monotonic() - started_s) * 1000, 1)
    line = " ".join(f"{k}={v}" for k, v in facts.items())
    log.info("%s '%s' %d %.1fms %s", scope["method"], _plain(scope["path"]), status, elapsed_ms, line, extra=facts)

"""An answer to a caller that still sends: it is told at once, and the rest of its body is read and thrown away.

Closing a connection with unread bytes resets it, and many clients read nothing before they have sent everything: they
would see a broken connection in place of the answer.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

MAX_DISCARDED_BYTES = 256 * 1024**2
"""Of one body. Who sends more sees the connection break."""
_LONGEST_S = 30.0
_QUIET_S = 5.0
_KEPT_OPEN_BYTES = 64 * 1024
"""After an answer that left more than this unread the connection is closed, not used again."""


class Lingering:
    """One request's `receive` and `send`, through which an application may answer before it has read the body."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, quiet_s: float = _QUIET_S) -> None:
        """`quiet_s`: how long a caller may be silent while the rest of its body is awaited."""
        self._receive = receive
        self._send = send
        self._quiet_s = quiet_s
        headers = Headers(scope=scope)
        announced = headers.get("content-length")
        self._large = announced is None or int(announced) > _KEPT_OPEN_BYTES
        self._coming = announced not in {None, "0"} or "transfer-encoding" in headers
        self._held_back = headers.get("expect", "").lower() == "100-continue"

    async def receive(self) -> Message:
        """As in ASGI."""
        self._held_back = False  # the server has told the caller to go on
        message = await self._receive()
        self._coming = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """As in ASGI; returns from the answer's end when the rest of the body has come, or enough of it."""
        if not self._coming:
            await self._send(message)
        elif message["type"] == "http.response.start":
            if self._large or self._held_back:
                MutableHeaders(scope=message)["Connection"] = "close"
            await self._send(message)
        elif message.get("more_body", False) or self._held_back:
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            await self._discard()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard(self) -> None:
        discarded = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_S):
                while self._coming and discarded < MAX_DISCARDED_BYTES:
                    async with asyncio.timeout(self._quiet_s):
                        discarded += len((await self.receive()).get("body", b""))

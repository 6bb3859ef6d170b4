"""RunPod's endpoints over HTTP: run, status, cancel, health. Says whether another try may help, and never sends twice."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

import aiohttp

from mediamill.config import Settings
from mediamill.errors import Misconfigured, ProviderError
from mediamill.model import Json

SHORT_S = 10.0
"""Longest wait for an answer where nothing large comes."""
RUN_S = 30.0
"""The same for a new job, whose inputs may have 10 MB."""
STATUS_S = 60.0
"""The same for a status, which may hold a result of 20 MB."""
_LARGEST_REPLY_BYTES = 64 * 1024**2
_PARSED_OFF_LOOP_BYTES = 256 * 1024
_CONNECT_S = 10.0
_NOBODY_KNOWS = (
    "RunPod gave no proper answer, so nobody knows whether it took the job; it is not sent again, lest it be done and "
    "paid for twice."
)
_SHOWN_CHARS = 200
_LONGEST_ASKED_PAUSE_S = 60.0
_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}"
_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_NOT_TAKEN = frozenset({429, 500, 503})
"""Answers that say that a job was not accepted; a gateway's 502 or 504 says nothing about it."""


class Away(Exception):
    """RunPod does not answer, or asks to come again; nothing happened. `pause_s`: what it asked for."""

    def __init__(self, message: str, *, pause_s: float = 0.0) -> None:
        """`message`: what it did, for a sentence that goes on."""
        super().__init__(message)
        self.pause_s = pause_s


class UnknownJob(Exception):
    """RunPod does not know this job."""


class _NoReply(Exception):
    """The request may or may not have arrived."""


@dataclass(frozen=True)
class RemoteJob:
    """A job of one endpoint; as text it is the handle that a job's row keeps."""

    endpoint: str
    id: str

    def __str__(self) -> str:
        return f"runpod:{self.endpoint}/{self.id}"

    @classmethod
    def parse(cls, handle: str) -> Self:
        """The job of a handle. Raises ProviderError."""
        found = re.fullmatch(rf"runpod:({_PART})/({_PART})", handle)
        if found is None:
            raise ProviderError(f"{handle[:80]!r} is no job of RunPod.")
        return cls(found[1], found[2])


@dataclass(frozen=True)
class _Reply:
    status: int
    body: Json
    pause_s: float = 0.0
    """What the server asked for before the next try."""


class Client:
    """One for a process; `close` it. The key goes to the base URL alone, and into no message."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is opened yet. Raises Misconfigured without a key."""
        if settings.runpod_api_key is None:
            raise Misconfigured("Jobs run on RunPod only with RUNPOD_API_KEY.")
        self._base = settings.runpod_base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {settings.runpod_api_key.get_secret_value()}"}
        self._session: aiohttp.ClientSession | None = None

    async def run(self, endpoint: str, body: Mapping[str, Json], *, setting: str) -> RemoteJob:
        """Queue a job there, once. `setting`: the variable that names the endpoint, for messages.

        On a connection of its own: the client library must not be tempted to send it again on a fresh one.

        Raises:
            Away: it was surely not accepted, and another try may help. ProviderError: it was refused, or nobody can
            know whether it was accepted.
        """
        async with self._new_session() as session:
            try:
                reply = await self._ask(session, "POST", f"{endpoint}/run", json=body, timeout_s=RUN_S)
            except _NoReply as error:
                raise ProviderError(_NOBODY_KNOWS) from error
        if reply.status in _NOT_TAKEN:
            raise Away(f"RunPod answered HTTP {reply.status}", pause_s=reply.pause_s)
        if reply.status == HTTPStatus.NOT_FOUND:
            raise ProviderError(f"RunPod knows no endpoint {endpoint!r}; correct {setting}.")
        _check(reply)
        job_id = reply.body.get("id") if isinstance(reply.body, Mapping) else None
        if not isinstance(job_id, str) or not re.fullmatch(_PART, job_id):
            raise ProviderError(_NOBODY_KNOWS)
        return RemoteJob(endpoint, job_id)

    async def status(self, job: RemoteJob) -> Mapping[str, Any]:
        """What RunPod says about the job. Raises Away; UnknownJob; ProviderError."""
        reply = await self._asked("GET", f"{job.endpoint}/status/{job.id}", timeout_s=STATUS_S)
        if reply.status == HTTPStatus.NOT_FOUND:
            raise UnknownJob
        _check(reply)
        if not isinstance(reply.body, Mapping) or not isinstance(reply.body.get("status"), str):
            raise Away("RunPod's answer says no status")
        return reply.body

    async def cancel(self, job: RemoteJob) -> None:
        """End the job there; one that has ended or is not known is no error. Raises Away; ProviderError."""
        reply = await self._asked("POST", f"{job.endpoint}/cancel/{job.id}", timeout_s=SHORT_S)
        if reply.status in _REFUSED:
            _check(reply)

    async def health(self, endpoint: str, *, timeout_s: float) -> Mapping[str, Any]:
        """Counts of jobs and workers. Raises ProviderError, soon."""
        try:
            reply = await self._asked("GET", f"{endpoint}/health", timeout_s=timeout_s)
        except Away as away:
            raise ProviderError(f"{away}.") from away
        if reply.status == HTTPStatus.NOT_FOUND:
            raise ProviderError(f"RunPod knows no endpoint {endpoint!r}.")
        _check(reply)
        if not isinstance(reply.body, Mapping):
            raise ProviderError("RunPod's answer says nothing about the endpoint.")
        return {part: reply.body[part] for part in ("jobs", "workers") if part in reply.body}

    async def close(self) -> None:
        """Give back connections. Safe to repeat."""
        if self._session is not None:
            await self._session.close()

    def _new_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0)
        return aiohttp.ClientSession(
            connector=connector, headers=self._headers, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def _asked(self, method: str, path: str, *, timeout_s: float) -> _Reply:
        """An answer that says something. Raises Away."""
        if self._session is None or self._session.closed:
            self._session = self._new_session()
        try:
            reply = await self._ask(self._session, method, path, timeout_s=timeout_s)
        except _NoReply as error:
            raise Away("RunPod does not answer") from error
        if reply.status in _AGAIN:
            raise Away(f"RunPod answered HTTP {reply.status}", pause_s=reply.pause_s)
        return reply

    async def _ask(
        self, session: aiohttp.ClientSession, method: str, path: str, *, timeout_s: float, json: Json = None
    ) -> _Reply:
        """One request. Raises Away: it was not sent. _NoReply: it may have been."""
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S)
        try:
            async with session.request(
                method, f"{self._base}/{path}", json=json, timeout=timeout, allow_redirects=False
            ) as response:
                return await _read(response)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Away("RunPod cannot be connected to") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _NoReply from error


async def _read(response: aiohttp.ClientResponse) -> _Reply:
    """Status and JSON; None for what is no JSON. Bounded in size."""
    asked = response.headers.get("Retry-After", "")
    pause_s = min(float(asked), _LONGEST_ASKED_PAUSE_S) if re.fullmatch(r"\d{1,6}", asked) else 0.0
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > _LARGEST_REPLY_BYTES:
            raise ProviderError(f"RunPod's answer has more than {_LARGEST_REPLY_BYTES} bytes.")
    large = len(content) > _PARSED_OFF_LOOP_BYTES
    body = await asyncio.to_thread(_parsed, content) if large else _parsed(content)
    return _Reply(response.status, body, pause_s)


def _parsed(content: bytearray) -> Json:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _check(reply: _Reply) -> None:
    """Raises ProviderError for an answer that refuses."""
    if reply.status in _REFUSED:
        raise ProviderError(f"RunPod refused RUNPOD_API_KEY (HTTP {reply.status}).")
    if reply.status >= HTTPStatus.MULTIPLE_CHOICES:
        said = reply.body.get("error") if isinstance(reply.body, Mapping) else None
        why = f": {' '.join(said.split())[:_SHOWN_CHARS]}" if isinstance(said, str) and said.strip() else ""
        raise ProviderError(f"RunPod answered HTTP {reply.status}{why}.")

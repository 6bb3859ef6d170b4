"""Webhooks: rows that were written with the end of a job, delivered by any worker process until they arrive.

Headers are those of Standard Webhooks; the id is the row's and stays the same over all retries. A receiver that is
dead or slow holds up a few connections of its own and nobody else's.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from types import ModuleType
from typing import Any, NewType
from uuid import UUID

import aiohttp
from standardwebhooks import Webhook as Signer

from mediamill import plugins
from mediamill.config import Settings
from mediamill.errors import MediamillError, Misconfigured, NotFound, StoreUnavailable
from mediamill.inputs import UrlGuard
from mediamill.jobs.database import Database, load_queries
from mediamill.jobs.events import Wake
from mediamill.jobs.rows import parse_id
from mediamill.jobs.store import JobStore
from mediamill.model import Job, Storage

_log = logging.getLogger(__name__)
_SQL = load_queries("webhooks.sql")

RETRIES_S = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 21600, 28800)
"""Pauses before the second and each further try: a day in all, then it is given up."""
JITTER = 0.2
LONGEST_PAUSE_S = 86_400.0
"""The most that a receiver's Retry-After is obeyed."""
AT_ONCE = 32
AT_ONCE_PER_HOST = 4
LEASE_MARGIN_S = 15.0
_LOOK_S = 15.0
_AWAY_S = 2.0
_SECRET_PREFIX = "whsec_"  # noqa: S105 - how every such secret begins


_Payload = NewType("_Payload", Mapping[str, Any])


@dataclass(frozen=True)
class Try:
    """One delivery. `status` is that of the HTTP reply; None: there was none, and `error` says why."""

    at: datetime
    status: int | None
    error: str | None
    duration_ms: float


@dataclass(frozen=True)
class Delivery:
    """Where a webhook stands. `next_at` matters until it is delivered or given up."""

    id: str
    url: str
    attempts: int
    next_at: datetime
    delivered_at: datetime | None
    gave_up_at: datetime | None
    tries: tuple[Try, ...]


class Deliveries:
    """The delivery log of a job or a batch, and the call that starts it over."""

    def __init__(self, database: Database) -> None:
        """`database`: the store's (`store.database`)."""
        self._database = database

    async def log(self, owner_id: str) -> list[Delivery]:
        """What was tried for this job or batch; empty when nobody is to be told, or it has not ended."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_SQL["of_owner"], parse_id(owner_id))
            tries = await connection.fetch(_SQL["tries"], [row["id"] for row in rows])
        found = [(t["webhook_id"], Try(t["at"], t["status"], t["error"], t["duration_ms"])) for t in tries]
        return [
            Delivery(
                id=message_id(row["id"]),
                url=row["url"],
                attempts=row["attempts"],
                next_at=row["next_at"],
                delivered_at=row["delivered_at"],
                gave_up_at=row["gave_up_at"],
                tries=tuple(one for owner, one in found if owner == row["id"]),
            )
            for row in rows
        ]

    async def replay(self, owner_id: str) -> int:
        """Deliver again, at once and with new retries, under the same id and with the same body; returns how many."""
        async with self._database.connection() as connection:
            return len(await connection.fetch(_SQL["replay"], parse_id(owner_id)))


def message_id(row_id: UUID) -> str:
    """The `webhook-id` header of a row."""
    return f"msg_{row_id.hex}"


def configured_secrets(settings: Settings) -> list[str]:
    """The secrets in the settings: two while one is replaced by another, none when the store's own signs.

    Raises: Misconfigured for a secret that is not `whsec_` and base64 of at least 24 bytes.
    """
    given = settings.webhook_secret.get_secret_value().replace(",", " ").split() if settings.webhook_secret else []
    for secret in given:
        try:
            key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
        except binascii.Error:
            key = b""
        if len(key) < 24:  # noqa: PLR2004 - Standard Webhooks asks for 24 to 64 bytes
            raise Misconfigured("MEDIAMILL_WEBHOOK_SECRET must be whsec_ and base64 of 24 to 64 random bytes.")
    return given


async def made_secret(store: JobStore) -> str:
    """The secret that signs where none is configured, kept in the database."""
    return _SECRET_PREFIX + base64.b64encode(await store.secret("webhook")).decode()


async def signers(settings: Settings, store: JobStore) -> tuple[Signer, ...]:
    """Who signs. Raises Misconfigured as `configured_secrets`."""
    secrets = configured_secrets(settings) or [await made_secret(store)]
    return tuple(Signer(secret) for secret in secrets)


@dataclass(frozen=True)
class _Claimed:
    """A row that is ours to deliver until its lease runs out."""

    id: UUID
    owner: tuple[str, str]
    """("job" or "batch", id)."""
    url: str
    body: bytes | None
    attempts: int

    @property
    def host(self) -> str:
        """As the claim's SQL cuts it out of the URL."""
        return self.url.split("/", 3)[2] if self.url.count("/") >= 2 else ""  # noqa: PLR2004 - scheme://host

    @property
    def facts(self) -> dict[str, object]:
        """For the log: never the URL, which may hold a token."""
        return {"webhook": message_id(self.id), f"{self.owner[0]}_id": self.owner[1], "attempt": self.attempts + 1}


@dataclass(frozen=True)
class _Answer:
    """How a try went. `retry_s`: what the receiver asked for."""

    status: int | None = None
    error: str | None = None
    retry_s: float | None = None

    @property
    def accepted(self) -> bool:
        return self.status is not None and HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES


class Webhooks:
    """Delivers what is due, wherever the job ran. Made by `open`."""

    def __init__(
        self,
        store: JobStore,
        *,
        storage: Storage,
        guard: UrlGuard,
        signers: Sequence[Signer],
        timeout_s: float = 15.0,
        retries_s: Sequence[float] = RETRIES_S,
    ) -> None:
        """`guard` should be nobody else's: its connections are what slow receivers hold."""
        self._store = store
        self._storage = storage
        self._guard = guard
        self._signers = signers
        self._timeout_s = timeout_s
        self._retries_s = retries_s
        self._hosts: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set and what is under way has ended."""
        try:
            async with self._store.events.webhooks() as wake:
                stopping = asyncio.create_task(_wake_at(stop, wake))
                try:
                    while not stop.is_set():
                        await self._start_all(wake, stop)
                        await wake.wait(await self._sleep_s())
                finally:
                    stopping.cancel()
            await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start_all(self, wake: Wake, stop: asyncio.Event) -> None:
        """Claim and start everything that is due and has room."""
        with contextlib.suppress(StoreUnavailable):
            while len(self._tasks) < AT_ONCE and not stop.is_set():
                claimed = await self._claim()
                if claimed is None:
                    return
                self._hosts[claimed.host] += 1
                task = asyncio.create_task(self._deliver(claimed))
                self._tasks.add(task)
                task.add_done_callback(partial(self._ended, claimed.host, wake))

    def _ended(self, host: str, wake: Wake, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._hosts[host] -= 1
        self._hosts += Counter()  # drops the zeros
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("webhook delivery failed unexpectedly", exc_info=error)
        wake.set()

    def _busy(self) -> list[str]:
        return [host for host, count in self._hosts.items() if count >= AT_ONCE_PER_HOST]

    async def _claim(self) -> _Claimed | None:
        async with self._store.database.connection() as connection:
            row = await connection.fetchrow(_SQL["claim"], self._timeout_s + LEASE_MARGIN_S, self._busy())
        if row is None:
            return None
        owner = ("job", str(row["job_id"])) if row["job_id"] else ("batch", str(row["batch_id"]))
        return _Claimed(row["id"], owner, row["url"], row["body"], row["attempts"])

    async def _sleep_s(self) -> float:
        if len(self._tasks) >= AT_ONCE:
            return _LOOK_S
        try:
            async with self._store.database.connection() as connection:
                next_s = await connection.fetchval(_SQL["next_s"], self._busy())
        except StoreUnavailable:
            return _AWAY_S
        return _LOOK_S if next_s is None else min(_LOOK_S, max(0.05, next_s))

    async def _deliver(self, claimed: _Claimed) -> None:
        """One try, and what follows from it. While the database is away the row's lease brings it back later."""
        started_s = time.monotonic()
        try:
            body = claimed.body if claimed.body is not None else await self._make_body(claimed)
            answer = await self._post(claimed, body)
        except StoreUnavailable:
            return
        except MediamillError as error:
            answer = _Answer(error=f"its body could not be made: {error.message}")
        except Exception as error:  # noqa: BLE001 - an edge: a contract's fault is one failed try of one webhook
            _log.exception("webhook body failed", extra=claimed.facts)
            answer = _Answer(error=f"its body could not be made ({type(error).__name__})")
        await self._record(claimed, answer, (time.monotonic() - started_s) * 1000)

    async def _make_body(self, claimed: _Claimed) -> bytes:
        """The body by the job's contract, kept with the row so that every try sends the same bytes."""
        payload = await self._payload(claimed)
        body = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
        async with self._store.database.connection() as connection:
            kept = await connection.fetchval(_SQL["keep_body"], claimed.id, body)
        if kept is None:
            raise NotFound("The webhook's row is gone.")
        return bytes(kept)

    async def _payload(self, claimed: _Claimed) -> _Payload:
        kind, owner_id = claimed.owner
        if kind == "job":
            job = await self._store.get(owner_id)
            return _Payload(_contract(job.contract).webhook(job, await self._urls(job)))
        batch = await self._store.batch(owner_id)
        contract = _contract(batch.contract)
        urls = [await self._urls(job) for job in batch.jobs]
        if hasattr(contract, "bulk_reply"):
            return _Payload(contract.bulk_reply(batch.id, batch.jobs, urls))
        jobs = [contract.webhook(job, own) for job, own in zip(batch.jobs, urls, strict=True)]
        return _Payload({"batch_id": batch.id, "jobs": jobs})

    async def _urls(self, job: Job) -> dict[str, str]:
        return {artifact.name: await self._storage.url(artifact.key) for artifact in job.artifacts}

    async def _post(self, claimed: _Claimed, body: bytes) -> _Answer:
        now = datetime.now(UTC)
        text = body.decode()
        name = message_id(claimed.id)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"mediamill/{version('mediamill')}",
            "webhook-id": name,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signer.sign(name, now, text) for signer in self._signers),
        }
        session = await self._guard.session()
        limit = aiohttp.ClientTimeout(total=self._timeout_s)
        try:
            async with session.post(
                claimed.url, data=body, headers=headers, allow_redirects=False, timeout=limit
            ) as response:
                return _Answer(response.status, retry_s=_retry_after_s(response.headers.get("Retry-After")))
        except TimeoutError:
            return _Answer(error=f"no answer within {self._timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _Answer(error=_reason(error))

    async def _record(self, claimed: _Claimed, answer: _Answer, duration_ms: float) -> None:
        pause_s = self._pause_s(claimed, answer)
        with contextlib.suppress(StoreUnavailable):
            async with self._store.database.transaction() as connection:
                await connection.execute(_SQL["log_try"], claimed.id, answer.status, answer.error, duration_ms)
                if answer.accepted:
                    await connection.execute(_SQL["delivered"], claimed.id)
                elif pause_s is None:
                    await connection.execute(_SQL["gave_up"], claimed.id)
                else:
                    await connection.execute(_SQL["later"], claimed.id, pause_s)
        outcome = "delivered" if answer.accepted else "gave up" if pause_s is None else "put off"
        level = logging.INFO if answer.accepted else logging.WARNING
        facts = {**claimed.facts, "status": answer.status, "error": answer.error, "pause_s": pause_s}
        _log.log(level, "webhook %s", outcome, extra=facts)

    def _pause_s(self, claimed: _Claimed, answer: _Answer) -> float | None:
        """Seconds until the next try; None: there is none."""
        if answer.status == HTTPStatus.GONE or claimed.attempts >= len(self._retries_s):
            return None
        own_s = self._retries_s[claimed.attempts] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
        return max(own_s, answer.retry_s or 0.0)


async def _wake_at(stop: asyncio.Event, wake: Wake) -> None:
    await stop.wait()
    wake.set()


def _contract(name: str) -> ModuleType:
    return plugins.load("contracts", name)


def _retry_after_s(header: str | None) -> float | None:
    """Seconds of a Retry-After header, whichever of its two forms; None when there is none that makes sense."""
    if not header:
        return None
    try:
        pause_s = float(header)
    except ValueError:
        try:
            pause_s = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(0.0, pause_s), LONGEST_PAUSE_S) if pause_s == pause_s else None  # noqa: PLR0124 - not a number


def _reason(error: Exception) -> str:
    """What went wrong in words without the URL, which may hold a token."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and not isinstance(cause, aiohttp.ClientError):
            return f"could not connect: {cause.strerror or cause}"[:200]
        cause = cause.__cause__ or getattr(cause, "os_error", None)
    return type(error).__name__


__all__ = [
    "Deliveries",
    "Delivery",
    "Try",
    "Webhooks",
    "configured_secrets",
    "made_secret",
    "message_id",
    "signers",
]

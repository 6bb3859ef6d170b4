"""Notifications: one LISTEN connection a process, shared by everybody who waits for something.

A notification may be lost (an outage, a reconnect): it only ends a sleep early. So everybody is woken after each
connect, and everybody who waits looks again from time to time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager

import asyncpg

from mediamill.errors import StoreError
from mediamill.jobs.database import Connection, Database

_log = logging.getLogger(__name__)

_WORK, _JOB, _WEBHOOK = "mediamill_work", "mediamill_job", "mediamill_webhook"
_HEARTBEAT_S = 5.0
_RECONNECT_S = (0.1, 0.5, 1.0, 2.0)
"""Pauses between tries to connect; the last one repeats."""


class Wake:
    """Something to wait for: set by a notification, used up by a wait."""

    def __init__(self) -> None:
        """Asleep."""
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """Sleep until woken, at most `timeout_s` seconds; returns whether woken. A wake-up before the call counts."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True

    def set(self) -> None:
        """End the sleep."""
        self._event.set()


class Events:
    """The process's ear. Its connection is opened by the first who waits; whoever made it closes it."""

    def __init__(self, database: Database) -> None:
        """Listens on `database`, on a connection outside its pool."""
        self._database = database
        self._wakes: dict[tuple[str, str], set[Wake]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether notifications come in now."""
        return self._connected.is_set()

    @asynccontextmanager
    async def job(self, job_id: str) -> AsyncIterator[Wake]:
        """Woken when the job starts, is asked to stop, is handed back, or ends; not by its progress."""
        with self._subscribed([(_JOB, job_id)]) as wake:
            yield wake

    @asynccontextmanager
    async def work(self, pools: Iterable[str]) -> AsyncIterator[Wake]:
        """Woken when a job of these pools may be there to take."""
        with self._subscribed([(_WORK, pool) for pool in pools]) as wake:
            yield wake

    @asynccontextmanager
    async def webhooks(self) -> AsyncIterator[Wake]:
        """Woken when there is a webhook to deliver."""
        with self._subscribed([(_WEBHOOK, "")]) as wake:
            yield wake

    async def close(self) -> None:
        """Stop listening."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @contextlib.contextmanager
    def _subscribed(self, topics: list[tuple[str, str]]) -> Iterator[Wake]:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._listen(), name="mediamill-events")
        wake = Wake()
        for topic in topics:
            self._wakes[topic].add(wake)
        try:
            yield wake
        finally:
            for topic in topics:
                self._wakes[topic].discard(wake)
                if not self._wakes[topic]:
                    del self._wakes[topic]

    async def _listen(self) -> None:
        failures = 0
        while True:
            try:
                await self._listen_once()
            except StoreError as error:
                if failures == 0:
                    _log.warning("not listening to the database: %s", error)
            if self._connected.is_set():
                failures = 0
                self._connected.clear()
            await asyncio.sleep(_RECONNECT_S[min(failures, len(_RECONNECT_S) - 1)])
            failures += 1

    async def _listen_once(self) -> None:
        """Connect, wake everybody, then stay until the connection is lost."""
        connection = await self._database.connect()
        self._lost.clear()
        try:
            with self._database.translated():
                connection.add_termination_listener(self._on_lost)
                for channel in (_WORK, _JOB, _WEBHOOK):
                    await connection.add_listener(channel, self._on_notification)
                self._connected.set()
                for wakes in self._wakes.values():
                    _wake_all(wakes)
                await self._beat(connection)
        finally:
            connection.terminate()

    async def _beat(self, connection: Connection) -> None:
        """A dead network says nothing by itself: ask."""
        while True:
            try:
                async with asyncio.timeout(_HEARTBEAT_S):
                    await self._lost.wait()
            except TimeoutError:
                await connection.fetchval("SELECT 1", timeout=_HEARTBEAT_S)
            else:
                raise asyncpg.ConnectionDoesNotExistError("the listening connection was closed")

    def _on_lost(self, _connection: Connection) -> None:
        self._lost.set()

    def _on_notification(self, _connection: Connection, _pid: int, channel: str, payload: str) -> None:
        _wake_all(self._wakes.get((channel, payload), ()))


def _wake_all(wakes: Iterable[Wake]) -> None:
    for wake in tuple(wakes):
        wake.set()

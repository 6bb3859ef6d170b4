"""`mediamill serve`: the database, the API and the workers as one service that starts, survives and ends together."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from mediamill.api.auth import check_exposure
from mediamill.config import Settings
from mediamill.serve import address, pools
from mediamill.serve.database import database
from mediamill.serve.folder import owned
from mediamill.serve.kept import Kept, Output

log = logging.getLogger("mediamill.serve")

API_GRACE_S = 10.0
"""How long the API may finish requests at the end."""
AT_ONCE_S = 3.0
"""How long anything has after a second signal."""
_LOOK_S = 0.1
_PROBE_TIMEOUT_S = 5.0


async def serve(settings: Settings, *, pool_names: Sequence[str] = (), announce: Callable[[str], None] = print) -> None:
    """Run the service until SIGTERM or SIGINT, then drain it; a second signal ends it at once.

    Args:
        settings: As read; host, port and data folder are those of the service.
        pool_names: Workers to start; empty: what this machine can serve.
        announce: Gets the one line with the address, once the service can take work.

    Raises: InvalidRequest, Misconfigured: what is wrong with the settings, before anything is started.
    """
    check_exposure(settings)
    wanted = pools.chosen(settings, pool_names)
    with owned(settings.data_dir), address.listen(settings.host, settings.port) as sock:
        stop, at_once = asyncio.Event(), asyncio.Event()
        with _signals(stop, at_once):
            async with database(settings) as database_url:
                environment = child_environment(settings, sock, database_url)
                service = Service(settings, sock, environment, wanted)
                await service.run(announce, stop=stop, at_once=at_once)


class Service:
    """The processes of one service."""

    def __init__(
        self, settings: Settings, sock: socket.socket, environment: dict[str, str], wanted: Sequence[pools.Pool]
    ) -> None:
        """Starts nothing yet."""
        self._sock = sock
        me = ["--supervisor", str(os.getpid())]
        self._environment = environment
        self._logs = settings.logs_root
        self._api = self._kept("api", ["api", "--fd", str(sock.fileno()), *me], (sock.fileno(),))
        self._workers = [
            self._kept(f"worker-{p.name}", ["worker", "--pool", p.name, "--slots", str(p.slots), *me]) for p in wanted
        ]

    def _kept(self, name: str, arguments: Sequence[str], pass_fds: Sequence[int] = ()) -> Kept:
        output = Output(self._logs / f"{name.replace(':', '-')}.log")
        command = [sys.executable, "-m", "mediamill", *arguments]
        return Kept(name, command, self._environment, output, pass_fds)

    async def run(self, announce: Callable[[str], None], *, stop: asyncio.Event, at_once: asyncio.Event) -> None:
        """Start, announce, wait for the end, drain.

        Raises: Misconfigured when a process cannot start.
        """
        api = asyncio.create_task(self._api.run())
        workers = [asyncio.create_task(kept.run()) for kept in self._workers]
        tasks = [api, *workers]
        helper = asyncio.create_task(self._announce(announce))
        stopped = asyncio.create_task(_set(stop))
        try:
            await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                log.info("draining: running jobs are finished or handed back; a second signal ends them at once")
        finally:
            for task in (helper, stopped):
                task.cancel()
            await self._end(self._workers, workers, at_once, grace_s=None if stop.is_set() else AT_ONCE_S)
            await self._end([self._api], [api], at_once, grace_s=API_GRACE_S)
            for kept in (self._api, *self._workers):
                kept.output.close()
        for task in tasks:
            task.result()

    async def _announce(self, announce: Callable[[str], None]) -> None:
        url = address.base_url(self._sock)
        while not await asyncio.to_thread(is_ready, url):  # noqa: ASYNC110 - another process gets ready
            await asyncio.sleep(_LOOK_S)
        for kept in (self._api, *self._workers):
            kept.ready = True
        announce(f"mediamill is ready at {url}")

    @staticmethod
    async def _end(
        kept: Sequence[Kept], tasks: Sequence[asyncio.Task[None]], at_once: asyncio.Event, *, grace_s: float | None
    ) -> None:
        """Ask, wait for `grace_s` (None: as long as it takes) or the second signal, ask again, kill."""
        hurry = asyncio.create_task(_set(at_once))
        for each in kept:
            each.terminate()
        ended: asyncio.Future[Any] = asyncio.gather(*tasks, return_exceptions=True)
        awaited: list[asyncio.Future[Any]] = [ended, hurry]
        await asyncio.wait(awaited, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            for each in kept:
                each.terminate()
            await asyncio.wait([ended], timeout=AT_ONCE_S)
        for each in kept:
            each.kill()
        await ended
        hurry.cancel()


async def _set(event: asyncio.Event) -> None:
    await event.wait()


def child_environment(settings: Settings, sock: socket.socket, database_url: str) -> dict[str, str]:
    """Our environment with what was decided here, so that every process of the service sees the same settings."""
    decided = {
        "DATABASE_URL": database_url,
        "MEDIAMILL_DATA_DIR": str(settings.data_dir.resolve()),
        "MEDIAMILL_HOST": settings.host,
        "PORT": str(sock.getsockname()[1]),
        "MEDIAMILL_PUBLIC_URL": settings.public_url or address.base_url_for_callers(sock),
    }
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL_FILE"}
    return {**inherited, **settings.for_libraries, **decided}


def is_ready(url: str) -> bool:
    """Whether `GET /ready` answers 200: the service can take work. Blocks for at most 5 s."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def _signals(stop: asyncio.Event, at_once: asyncio.Event) -> Iterator[None]:
    """The first SIGTERM, SIGINT or SIGHUP sets `stop`, each further one `at_once`."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def signalled() -> None:
        (at_once if stop.is_set() else stop).set()

    for number in numbers:
        loop.add_signal_handler(number, signalled)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)

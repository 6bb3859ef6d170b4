"""The processes beside the supervisor: an API, a worker. Each ends by SIGTERM, at once by a second one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from mediamill import catalog
from mediamill.api.app import serve_api
from mediamill.config import Settings
from mediamill.jobs.worker import run_worker
from mediamill.serve import pools


def api(settings: Settings, *, fd: int | None = None) -> None:
    """Serve the API until told to stop. `fd`: a listening socket to use in place of host and port."""
    sock = None if fd is None else socket.socket(fileno=fd)
    _run(settings, lambda stop: serve_api(settings, stop, sock=sock))


def worker(settings: Settings, *, pool: str, slots: int | None = None) -> None:
    """Do jobs of one pool until told to stop; `slots` at once, by default as many as the pool gets here.

    Raises: Misconfigured for an unknown pool.
    """
    count = pools.slots(settings, pool) if slots is None else slots
    _run(settings, lambda stop: run_worker(settings, pool=pool, slots=count, stop=stop))


def _run(settings: Settings, work: Callable[[asyncio.Event], Coroutine[Any, Any, Any]]) -> None:
    """Run until SIGTERM or SIGINT has been obeyed; a second one cancels the work, a third ends the process."""

    async def main() -> None:
        catalog.check_fakes(settings.fake_engines)
        catalog.check_routes(settings)
        stop = asyncio.Event()
        task = asyncio.ensure_future(work(stop))

        def signalled() -> None:
            if task.cancelling():
                os._exit(1)
            elif stop.is_set():
                task.cancel()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, signalled)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())

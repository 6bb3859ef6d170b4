"""A worker process that kills or freezes itself at a named point of the walk when a file asks for it.

The worker is the product's own; only its storage and its provider are wrapped. `bombs/POINT.kill` or `bombs/POINT.stop`
is taken by the first process that comes to POINT; it renames the file to `POINT.DEED.PID.gone` just before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mediamill.config import Settings
from mediamill.jobs.worker import Worker, opened
from mediamill.model import Event, OutputData, Progress, StoredObject, Work
from mediamill.providers import local


class Bombs:
    """The files of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def at(self, point: str, *, child: int | None = None) -> None:
        """This process is at `point` now; `child`: whom a `kill-child` is for."""
        for deed in ("kill", "stop", "kill-child"):
            bomb = self._folder / f"{point}.{deed}"
            try:
                bomb.rename(self._folder / f"{point}.{deed}.{os.getpid()}.gone")
            except FileNotFoundError:
                continue
            if deed == "kill-child":
                if child is not None:
                    os.kill(child, signal.SIGKILL)
            else:
                os.kill(os.getpid(), signal.SIGKILL if deed == "kill" else signal.SIGSTOP)


class BombedStorage:
    """A storage with points before, within and after its writes."""

    def __init__(self, inner: Any, bombs: Bombs) -> None:
        self._inner = inner
        self._bombs = bombs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def put(self, key: str, source: Path, *, media_type: str) -> StoredObject:
        putting = asyncio.create_task(self._inner.put(key, source, media_type=media_type))
        await asyncio.sleep(0)
        self._bombs.at("put")
        stored = await putting
        self._bombs.at("stored")
        return stored

    async def copy(self, source_key: str, key: str) -> None:
        self._bombs.at("publishing")
        await self._inner.copy(source_key, key)
        self._bombs.at("published")

    async def delete(self, key: str) -> None:
        if key.startswith("attempts/"):
            self._bombs.at("cleaning")
        await self._inner.delete(key)


class BombedProvider:
    """A provider with points before and during the run. It notes the attempt that made a result in the result."""

    def __init__(self, inner: local.LocalProvider, bombs: Bombs) -> None:
        self._inner = inner
        self._bombs = bombs

    def held(self) -> tuple[str, ...]:
        return self._inner.held()

    async def prepare(self) -> None:
        await self._inner.prepare()

    async def close(self) -> None:
        await self._inner.close()

    async def run(self, work: Work, *, scratch: Path, deadline_s: float) -> AsyncIterator[Event]:
        self._bombs.at("claimed")
        async with contextlib.aclosing(self._inner.run(work, scratch=scratch, deadline_s=deadline_s)) as events:
            async for event in events:
                if isinstance(event, Progress) and event.fraction > 0:
                    self._bombs.at("running", child=self._inner.child_pid)
                yield event
        yield OutputData({"made_by_attempt": work.attempt})


def tell_where() -> None:
    """Write where every task is, for the log of a siege that failed."""
    for task in asyncio.all_tasks():
        task.print_stack(limit=6)
    sys.stderr.flush()


async def main(bombs_folder: Path, slots: int) -> None:
    """Work until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, tell_where)
    bombs = Bombs(bombs_folder)
    settings = Settings()
    async with opened(settings, pool="cpu", stop=stop) as deps:
        if deps is None:
            return
        bombed = replace(
            deps,
            storage=BombedStorage(deps.storage, bombs),
            provider=lambda: BombedProvider(local.create(settings, pool="cpu"), bombs),
        )
        await Worker(bombed, pool="cpu", slots=slots).run(stop)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))

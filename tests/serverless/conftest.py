"""Processes as somebody's cloud starts them, and what they may leave behind: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.service import _SETTINGS, alive

ROOT = Path(__file__).parents[2]
RUNPOD = ROOT / "deploy" / "runpod"


def clean_environment(data_dir: Path, **settings: str) -> dict[str, str]:
    """Ours without settings and secrets, then the given ones."""
    kept = {k: v for k, v in os.environ.items() if k not in _SETTINGS and not k.startswith(("MEDIAMILL_", "RUNPOD_"))}
    home = {"HOME": str(data_dir), "MEDIAMILL_DATA_DIR": str(data_dir), "DEVICE": "cpu", "HF_HUB_OFFLINE": "1"}
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # others may need the cores too
    return {**kept, **home, **one_thread, "PYTHONPATH": str(ROOT), **settings}


@dataclass
class Started:
    """A process of ours, and what it wrote."""

    process: asyncio.subprocess.Process
    log: Path
    seen: set[psutil.Process] = field(default_factory=set)

    def family(self) -> list[psutil.Process]:
        """Its living descendants; those seen once are remembered."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        self.seen.update(found)
        return found

    def child(self) -> psutil.Process:
        """The process that holds the models."""
        (child,) = [p for p in self.family() if "mediamill.providers.child" in p.cmdline() and "-IS" not in p.cmdline()]
        return child

    async def end(self) -> int:
        """SIGTERM, then wait."""
        if self.process.returncode is None:
            self.family()
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            return await self.process.wait()

    async def left(self) -> list[psutil.Process]:
        """Descendants that still live a moment later; whoever adopted them may be slow to bury them."""
        for _ in range(200):
            if not alive(list(self.seen)):
                break
            await asyncio.sleep(0.05)
        return alive(list(self.seen))


@contextlib.asynccontextmanager
async def started(*command: str, cwd: Path, log: Path, environment: Mapping[str, str]) -> AsyncIterator[Started]:
    """A Python process in a session of its own, ended after the block with all that it started."""
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            cwd=cwd,
            env=dict(environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    running = Started(process, log)
    try:
        yield running
    finally:
        if process.returncode is None:
            running.family()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        for left in await running.left():
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()

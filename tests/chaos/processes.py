"""The processes of a service under attack: a database, an API, and workers on two hosts that share a bucket folder."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import psutil

from mediamill.serve.postgres import EmbeddedPostgres

LEASE_S = 3.0
SLOTS = 2
_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE_S = 60.0


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def reaping() -> Iterator[set[int]]:
    """Orphans of what is started inside come to this process; yields the ids of those it had before."""
    libc = ctypes.CDLL(None)
    before = {p.pid for p in psutil.Process().children()}
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield before
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def orphans(before: set[int], *, patience_s: float = 10.0) -> list[str]:
    """Command lines of descendants that still run after `patience_s` though they should not."""
    until = time.monotonic() + patience_s
    while True:
        alive = []
        for process in psutil.Process().children():
            if process.pid in before:
                continue
            with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
                if process.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(process.pid, os.WNOHANG)
                else:
                    alive.append(" ".join(process.cmdline()))
        if not alive or time.monotonic() > until:
            return alive
        time.sleep(0.1)


class Service:
    """Everything runs as processes of its own, so that anything can be killed at any moment."""

    def __init__(self, folder: Path, *, source: Path, workers: int = 3) -> None:
        """`folder`: a new one that every user may enter; `source`: where the package is imported from."""
        self.folder = folder
        self.bombs = folder / "bombs"
        self.outputs = folder / "bucket"
        self.bombs.mkdir()
        self.database = EmbeddedPostgres(folder / "postgres", settings={"fsync": "off", "full_page_writes": "off"})
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.source = source
        self.logs = (folder / "service.log").open("ab")
        self.api: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self.wanted = workers

    def environment(self, host: int) -> dict[str, str]:
        """Of a process on one of the hosts; a host has its own data folder."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHONPATH": os.pathsep.join((str(self.source), str(Path(__file__).parents[2]))),
            "DATABASE_URL": self.database.dsn,
            "MEDIAMILL_DATA_DIR": str(self.folder / f"host{host}"),
            "OUTPUT_DIR": str(self.outputs),
            "MEDIAMILL_STORAGE_SHARED": "1",
            "MEDIAMILL_LEASE_SECONDS": str(LEASE_S),
            "MEDIAMILL_FAKE_ENGINES": "all",
            "MEDIAMILL_FETCH_ALLOW": "127.0.0.0/8",
            "MEDIAMILL_SPLIT_ABOVE": "2",
            "MEDIAMILL_DISK_RESERVE_BYTES": "0",
            "PORT": str(self.port),
        }

    def start_api(self) -> None:
        """Start the API on host 0."""
        self.api = self._start(0, [sys.executable, "-m", "mediamill", "api"])

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start one more worker, on the hosts in turn."""
        script = str(Path(__file__).with_name("worker.py"))
        command = [sys.executable, script, str(self.bombs), str(SLOTS)]
        worker = self._start(len(self.workers) % 2, command)
        self.workers.append(worker)
        return worker

    def _start(self, host: int, command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            env=self.environment(host),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=self.logs,
            stderr=self.logs,
            start_new_session=True,
        )

    def refill(self) -> None:
        """Bury dead workers and start as many new ones."""
        self.workers = [w for w in self.workers if w.poll() is None]
        while len(self.workers) < self.wanted:
            self.start_worker()

    async def kill_api(self) -> None:
        """SIGKILL, and start it again."""
        assert self.api is not None
        self.api.kill()
        await asyncio.to_thread(self.api.wait)
        self.start_api()

    async def kill_database(self, *, away_s: float) -> None:
        """SIGKILL the server, leave it away for a while, start it again."""
        assert self.database.pid is not None
        os.kill(self.database.pid, signal.SIGKILL)
        await asyncio.sleep(away_s)
        await self.database.stop()
        await self.database.start()

    async def ready(self) -> None:
        """Wait until the API says that a worker can take work."""
        until = time.monotonic() + _PATIENCE_S
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < until:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{self.url}/ready") as reply:
                        if reply.status == 200:
                            return
                await asyncio.sleep(0.1)
        raise AssertionError(f"the service did not get ready:\n{self.log_tail()}")

    def log_tail(self, size_bytes: int = 40_000) -> str:
        """The last of what all processes said, and where every worker is."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGUSR2)
        time.sleep(1.0)
        return (self.folder / "service.log").read_bytes()[-size_bytes:].decode(errors="replace")

    async def drain(self) -> list[int]:
        """SIGTERM to every worker and the API; their exit statuses."""
        ending = [*self.workers, *([self.api] if self.api else [])]
        for process in ending:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        return [await asyncio.to_thread(process.wait, _PATIENCE_S) for process in ending]

    async def stop(self) -> None:
        """End everything, however it is."""
        for process in (*self.workers, *([self.api] if self.api else [])):
            if process.poll() is None:
                process.kill()
                process.wait()
        await self.database.stop()
        self.logs.close()


@contextlib.asynccontextmanager
async def service(folder: Path, *, source: Path, workers: int = 3) -> AsyncIterator[Service]:
    """A running service, ended with everything it started."""
    running = Service(folder, source=source, workers=workers)
    try:
        await running.database.start()
        running.start_api()
        running.refill()
        await running.ready()
        yield running
    finally:
        await running.stop()

"""The parent's half: one child process for each slot, kept between jobs so that its models stay loaded.

The parent never decodes anything. It starts the child under a guard (`_guard.py`), relays its events, asks it to stop
and kills it with all its descendants when it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from mediamill import catalog
from mediamill.config import Settings
from mediamill.errors import Crashed, DeadlineExceeded, MediamillError, RetryLater
from mediamill.model import Event, Work
from mediamill.providers import _wire as wire
from mediamill.providers._environment import child_environment, engine_settings

_log = logging.getLogger(__name__)

START_LIMIT_S = 120.0
PREPARE_LIMIT_S = 20.0
RESTART_LIMIT_S = 30.0
KILL_LIMIT_S = 2.0
RECYCLE_BYTES = 2 * 1024**3
_GUARD = Path(__file__).with_name("_guard.py")


def create(
    settings: Settings, *, pool: str = "cpu", engine: str | None = None, recycle_bytes: int = RECYCLE_BYTES
) -> LocalProvider:
    """A provider for one slot of `pool` ("cpu", "gpu", "gpu:1"); its child starts with the first job.

    `engine`: what runs all work there, in place of the engine of its catalog entry.
    """
    return LocalProvider(settings, pool=pool, engine=engine, recycle_bytes=recycle_bytes)


class LocalProvider:
    """Runs one piece of work at a time in its child."""

    def __init__(
        self, settings: Settings, *, pool: str = "cpu", engine: str | None = None, recycle_bytes: int = RECYCLE_BYTES
    ) -> None:
        """See `create`. `recycle_bytes`: a child that has grown by this much with the same models held is replaced."""
        self._settings = settings
        self._pool = pool
        self._engine = engine
        self._grace_s = settings.cancel_grace_s
        self._recycle_bytes = recycle_bytes
        self._child: _Child | None = None
        self._ending: asyncio.Task[None] | None = None
        self._number = 0
        self._failed_starts = 0
        self._held: tuple[str, ...] = ()
        self._first_bytes: dict[tuple[str, ...], int] = {}

    def held(self) -> tuple[str, ...]:
        """Catalog names whose models the child holds now."""
        return self._held

    @property
    def child_pid(self) -> int | None:
        """Process id of the engine's process while there is one."""
        return self._child.pid if self._child and self._child.alive else None

    async def run(self, work: Work, *, scratch: Path, deadline_s: float) -> AsyncIterator[Event]:
        """Run the work and relay its events; closing the iterator cancels the work.

        A cancelled child has `cancel_grace_s` to stop; then it is killed with all it started.

        Raises:
            What the engine raised; Crashed: the child died; DeadlineExceeded; RetryLater: no child could be started.
        """
        until_s = time.monotonic() + deadline_s
        child, run = await self._start(work, scratch)
        self._ending = None
        ended = False
        try:
            while not ended:
                message = await self._next(child, run, until_s)
                if message["say"] == "ended":
                    ended = True
                    await self._note_end(child, message)
                elif (event := wire.event_from(message)) is not None:
                    yield event
        finally:
            if not ended:
                self._ending = asyncio.create_task(self._stop(child, run))
                await asyncio.shield(self._ending)
        if message["error"] is not None:
            raise wire.error_from(message["error"])

    async def prepare(self) -> None:
        """Let a child import the libraries of this pool's models before the first job, where their weights are at hand.

        Not while a job runs. Where none are at hand no process stays; a child that cannot start is left to the first job.
        """
        kind = self._pool.partition(":")[0]
        entries = [e for e in catalog.load().values() if e.weights is not None and e.pool == kind]
        engines = {catalog.engine_of(entry, self._settings.fake_engines) for entry in entries} - {"fake"}
        if not engines:
            return
        worth = False
        try:
            child = await self._ready()
            self._number += 1
            child.send({"say": "prepare", "run": self._number, "engines": sorted(engines)})
            worth = bool((await self._next(child, self._number, time.monotonic() + PREPARE_LIMIT_S))["worth"])
        except MediamillError as error:
            _log.info("nothing is imported before the first job: %s", error.message)
        finally:
            if not worth:
                await self.close()

    async def close(self) -> None:
        """End the child and all it started. Safe to repeat."""
        if self._ending is not None and not self._ending.done():
            self._ending.cancel()
        child, self._child = self._child, None
        self._held = ()
        self._first_bytes.clear()
        if child is not None:
            await child.kill()

    async def _start(self, work: Work, scratch: Path) -> tuple[_Child, int]:
        """Hand the work to a living child: a new one if there is none, or if the old one died while idle."""
        if self._ending is not None:
            await asyncio.shield(self._ending)
        self._number += 1
        engine = self._engine or catalog.engine_of(catalog.get(work.model), self._settings.fake_engines)
        command = {"say": "run", "run": self._number, "engine": engine, "scratch": str(scratch.resolve())}
        for _ in range(2):
            child = await self._ready()
            try:
                child.send({**command, "work": wire.work_to(work)})
                await self._next(child, self._number, time.monotonic() + START_LIMIT_S)
            except Crashed:
                continue
            except DeadlineExceeded:
                await self.close()
                continue
            except asyncio.CancelledError:
                await self.close()
                raise
            return child, self._number
        raise self._cannot_start()

    async def _ready(self) -> _Child:
        if self._child is not None and self._child.alive:
            return self._child
        await self.close()
        child = _Child()
        try:
            await child.start(child_environment(self._settings, self._pool), engine_settings(self._settings))
        except (OSError, Crashed) as error:
            await child.kill()
            raise self._cannot_start() from error
        except asyncio.CancelledError:
            await child.kill()
            raise
        self._failed_starts = 0
        self._child = child
        return child

    def _cannot_start(self) -> RetryLater:
        self._failed_starts += 1
        delay_s = min(RESTART_LIMIT_S, 0.5 * 2**self._failed_starts)
        return RetryLater("The process for the work could not be started.", delay_s=delay_s)

    async def _next(self, child: _Child, run: int, until_s: float) -> Mapping[str, Any]:
        """The next message of this run. Raises Crashed, and DeadlineExceeded at `until_s`."""
        while True:
            try:
                async with asyncio.timeout(max(0.0, until_s - time.monotonic())):
                    message = await child.read()
            except TimeoutError as error:
                raise DeadlineExceeded from error
            if message is None:
                raise await self._crashed(child)
            if message.get("run") == run:
                return message

    async def _crashed(self, child: _Child) -> MediamillError:
        await child.ended()
        await self.close_child(child)
        cause = _cause(child.exit_code)
        _log.warning("child died: %s\n%s", cause, child.log_tail(), extra={"event": "child_died", "cause": cause})
        return Crashed(f"The process that did the work died ({cause}).")

    async def _stop(self, child: _Child, run: int) -> None:
        """Ask, wait for the grace time, kill."""
        if not child.alive:
            return
        child.send({"say": "cancel", "run": run})
        until_s = time.monotonic() + self._grace_s
        try:
            while (message := await self._next(child, run, until_s))["say"] != "ended":
                pass
            await self._note_end(child, message)
        except DeadlineExceeded:
            _log.warning(
                "child did not stop within %.1f s and is killed", self._grace_s, extra={"event": "child_killed"}
            )
            await self.close_child(child)
        except Crashed:
            pass

    async def close_child(self, child: _Child) -> None:
        """End this child; the next run starts another."""
        if self._child is child:
            self._child, self._held = None, ()
            self._first_bytes.clear()
        await child.kill()

    async def _note_end(self, child: _Child, message: Mapping[str, Any]) -> None:
        """Keep what is held; replace a child that leaks."""
        self._held = tuple(message["held"])
        resident_bytes = int(message["resident_bytes"])
        grown_bytes = resident_bytes - self._first_bytes.setdefault(self._held, resident_bytes)
        if grown_bytes > self._recycle_bytes:
            _log.warning("child grew by %d bytes and is replaced", grown_bytes, extra={"event": "child_recycled"})
            await self.close_child(child)


class _Child:
    """One process under its guard, and the two ends of its pipes."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._tail: deque[str] = deque(maxlen=wire.LOG_LINES)
        self._listening: asyncio.Task[None] | None = None

    async def start(self, environment: Mapping[str, str], settings: Mapping[str, str]) -> None:
        """Start it and wait until it can take work. Raises OSError, Crashed."""
        command = (sys.executable, "-P", "-m", "mediamill.providers.child")
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-IS",
            str(_GUARD),
            str(os.getpid()),
            *command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
            env=dict(environment),
            limit=wire.LINE_LIMIT_BYTES,
        )
        self._listening = asyncio.create_task(self._listen())
        self.send({"settings": dict(settings)})
        try:
            async with asyncio.timeout(START_LIMIT_S):
                message = await self.read()
        except TimeoutError:
            message = None
        if message is None:
            _log.error("child did not start\n%s", self.log_tail(), extra={"event": "child_start_failed"})
            raise Crashed
        self.pid = message["pid"]

    @property
    def alive(self) -> bool:
        """Whether it can take or still does work."""
        return self._process is not None and self._process.returncode is None and not self._reader.at_eof()

    @property
    def exit_code(self) -> int | None:
        """As `Popen.returncode`; negative for a signal."""
        code = self._process.returncode if self._process else None
        return 128 - code if code is not None and code > 128 else code  # noqa: PLR2004 - what a shell says of signals

    @property
    def _reader(self) -> asyncio.StreamReader:
        assert self._process is not None and self._process.stdout is not None  # noqa: S101, PT018 - started with pipes
        return self._process.stdout

    def log_tail(self) -> str:
        """The last lines it wrote to standard error."""
        return "\n".join(self._tail)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one line; a dead child is noticed at the next read."""
        assert self._process is not None and self._process.stdin is not None  # noqa: S101, PT018 - started with pipes
        self._process.stdin.write(wire.encode(message))

    async def read(self) -> Mapping[str, Any] | None:
        """The next message; None when the child is gone or talks nonsense."""
        try:
            line = await self._reader.readline()
            message = json.loads(line) if line else None
        except (ValueError, ConnectionError):
            return None
        return message if isinstance(message, dict) else None

    async def ended(self) -> None:
        """Wait a moment for it to end by itself."""
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_LIMIT_S):
                    await self._process.wait()

    async def kill(self) -> None:
        """End it and every descendant: through its guard, and by its process group in case the guard cannot."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await self.ended()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await self.ended()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        transport = getattr(process, "_transport", None)
        if transport is not None:
            transport.close()

    async def _listen(self) -> None:
        """Keep the last lines of standard error, whatever is in them."""
        assert self._process is not None and self._process.stderr is not None  # noqa: S101, PT018 - started with pipes
        rest = ""
        while chunk := await self._process.stderr.read(65536):
            *lines, rest = (rest + chunk.decode(errors="replace")).replace("\r", "\n").split("\n")
            for line in filter(None, lines):
                self._tail.append(line[:2000])
                _log.debug("child %s: %s", self.pid, line[:2000])
            rest = rest[-2000:]


def _cause(code: int | None) -> str:
    if code is None:
        return "cause unknown"
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name}, most likely for lack of memory" if -code == signal.SIGKILL else name

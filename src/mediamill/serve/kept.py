"""A child process that is kept alive: started again when it dies, its output relayed and kept in a file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path

from mediamill.errors import Misconfigured

log = logging.getLogger("mediamill.serve")

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0
STEADY_S = 10.0
"""A process that lived this long has started well: the next restart is at once again."""
EARLY_DEATHS = 5
"""A process that never got ready and died this often will not: the service ends."""
MISCONFIGURED = 2
"""Exit status of a command whose settings are wrong; starting it again cannot help."""
LOG_BYTES = 10 * 1024**2
LOG_FILES = 3
_CHUNK_BYTES = 64 * 1024


class Output:
    """Lines of one process: to our standard error as they come, and to a rotating file."""

    def __init__(self, path: Path) -> None:
        """`path`: the log file; its folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
        self.tail: deque[str] = deque(maxlen=5)

    def line(self, text: str) -> None:
        """One finished line."""
        self.tail.append(text)
        with contextlib.suppress(OSError):  # whoever read our standard error may be gone; the file has it
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
        self._file.emit(logging.makeLogRecord({"msg": text.replace("%", "%%"), "args": ()}))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    async def relay(self, stream: asyncio.StreamReader) -> None:
        """Take lines from a stream until its end; an endless line is cut into pieces."""
        rest = b""
        while chunk := await stream.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _CHUNK_BYTES:
                lines.append(rest)
                rest = b""
            for line in lines:
                self.line(line.decode(errors="replace"))
        if rest:
            self.line(rest.decode(errors="replace"))


@dataclass
class Kept:
    """One child process in its own session, so that a Ctrl-C in the terminal reaches the supervisor alone."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    output: Output
    pass_fds: Sequence[int] = ()
    ready: bool = False
    """Set by the supervisor once the service was ready: from then on the process is always started again."""
    _process: asyncio.subprocess.Process | None = field(default=None, repr=False)
    _ending: bool = False

    async def run(self) -> None:
        """Keep it running until `terminate` or `kill`.

        Raises: Misconfigured when it says so itself, or never manages to start.
        """
        deaths = 0
        delay_s = FIRST_DELAY_S
        while not self._ending:
            started_s = time.monotonic()
            status = await self._once()
            if self._ending:
                return
            if status == MISCONFIGURED and not self.ready:
                raise Misconfigured(self._last_words())
            if time.monotonic() - started_s >= STEADY_S:
                deaths, delay_s = 0, FIRST_DELAY_S
            deaths += 1
            if deaths >= EARLY_DEATHS and not self.ready:
                raise Misconfigured(f"{self.name} does not start (exit {status}): {self._last_words()}")
            log.warning("%s ended (exit %s); starting it again in %.1f s", self.name, status, delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)

    def terminate(self) -> None:
        """Ask it to finish (SIGTERM); a second time means at once. It is not started again."""
        self._ending = True
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it now."""
        self._ending = True
        self._send(signal.SIGKILL)

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def _once(self) -> int:
        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(self.environment),
            pass_fds=tuple(self.pass_fds),
            start_new_session=True,
        )
        if self._ending:  # terminate() came while it was being started
            self._send(signal.SIGTERM)
        log.info("%s started", self.name, extra={"pid": self._process.pid})
        stream = self._process.stdout
        if stream is not None:
            relay = asyncio.create_task(self.output.relay(stream))
            status = await self._process.wait()
            await asyncio.wait([relay], timeout=1.0)  # a grandchild may still hold the pipe
            relay.cancel()
            return status
        return await self._process.wait()

    def _send(self, number: int) -> None:
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _last_words(self) -> str:
        lines = [line.removeprefix("error: ") for line in self.output.tail if line.strip()]
        return lines[-1] if lines else "it said nothing"

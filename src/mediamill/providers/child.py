"""The child's half: a process that holds engines and runs one piece of work after another.

`python -m mediamill.providers.child`, started by `providers/local.py`. Standard input carries commands and a copy of
standard output carries events; what libraries print goes to standard error. A cancel is read by a thread, so it is not
heard while a C call holds the interpreter lock: then the parent kills.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import queue
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from mediamill import plugins
from mediamill.durable import FULL
from mediamill.errors import Cancelled, Crashed, EngineFailed, MediamillError, OutOfMemory, UnsupportedMedia
from mediamill.media import probe
from mediamill.model import Engine, EngineContext, Event, MediaFacts, OutputData, OutputFile, Progress, SlowToImport
from mediamill.providers import _wire as wire

OUTPUT_LIMIT_BYTES = 256 * 1024
PROGRESS_EVERY_S = 0.05
_PROBED = ("image/", "video/", "audio/")


@dataclass
class Run:
    """One piece of work under way; `number` tells its messages from those of the run before."""

    number: int
    cancelled: threading.Event = field(default_factory=threading.Event)
    sent_bytes: int = 0
    told_s: float = -1.0
    told: Progress | None = None


@dataclass
class Child:
    """The engine loop and what it talks through."""

    out: BinaryIO
    settings: Mapping[str, str]
    engines: dict[str, Engine] = field(default_factory=dict)

    def say(self, **message: Any) -> None:
        """Send one line to the parent."""
        self.out.write(wire.encode(message))
        self.out.flush()

    def carry(self, run: Run, command: Mapping[str, Any]) -> None:
        """Run one piece of work and say how it ended."""
        self.say(run=run.number, say="started")
        try:
            self._run(run, command)
            self._end(run, error=None)
        except MediamillError as error:
            self._end(run, error=error)
        except MemoryError:
            message = "There was not enough memory for this request: lower its size, length or number of pictures."
            self._end(run, error=OutOfMemory(message))
        except OSError as error:
            if error.errno in FULL:  # charged like a crash: work that fills the disk must not do so for ever
                self._end(run, error=Crashed("There was no room left on the disk for the files of this work."))
            else:
                self._end_unexpectedly(run, command, error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the edge of a job: an engine may raise anything
            self._end_unexpectedly(run, command, error)

    def _run(self, run: Run, command: Mapping[str, Any]) -> None:
        work = wire.work_from(command["work"])
        scratch = Path(command["scratch"])
        context = EngineContext(scratch=scratch, cancelled=run.cancelled, settings=self.settings)
        events = self._engine(command["engine"]).run(work, context)
        try:
            for event in _checked(events, run, scratch):
                self.say(run=run.number, **wire.event_to(event))
        finally:
            close = getattr(events, "close", None)  # an engine's generator tidies up before the next job
            if close is not None:
                close()
        if run.cancelled.is_set():
            raise Cancelled

    def prepare(self, run: Run, command: Mapping[str, Any]) -> None:
        """Let engines import what their first job would wait for; say whether that is worth keeping this process for."""
        engines = [self._engine(name) for name in command["engines"]]
        begun = [engine.begin_imports() for engine in engines if isinstance(engine, SlowToImport)]
        self.say(run=run.number, say="prepared", worth=any(begun))

    def _engine(self, name: str) -> Engine:
        if name not in self.engines:
            engine: Engine = plugins.load("engines", name).create(self.settings)
            self.engines[name] = engine
        return self.engines[name]

    def _end_unexpectedly(self, run: Run, command: Mapping[str, Any], error: BaseException) -> None:
        sentence = f"The {command['engine']} engine failed unexpectedly ({type(error).__name__})."
        tail = "".join(traceback.format_exception(error)).splitlines()[-wire.LOG_LINES :]
        self._end(run, error=EngineFailed(sentence, log_tail="\n".join(tail)))

    def _end(self, run: Run, *, error: MediamillError | None) -> None:
        held = sorted({name for engine in self.engines.values() for name in engine.held()})
        resident_bytes = psutil.Process().memory_info().rss
        told = None if error is None else wire.error_to(error)
        self.say(run=run.number, say="ended", error=told, held=held, resident_bytes=resident_bytes)


def _checked(events: Iterator[Event], run: Run, scratch: Path) -> Iterator[Event]:
    """The engine's events as they may leave: files probed, data bounded, progress at most every 50 ms."""
    for event in events:
        match event:
            case Progress():
                if _worth_telling(event, run):
                    yield event
            case OutputFile():
                yield _probed(event, scratch)
            case OutputData():
                run.sent_bytes += len(wire.encode(event.values))
                if run.sent_bytes > OUTPUT_LIMIT_BYTES:
                    raise EngineFailed(f"The result is larger than {OUTPUT_LIMIT_BYTES} bytes of JSON.")
                yield event


def _worth_telling(progress: Progress, run: Run) -> bool:
    now_s = time.monotonic()
    new_phase = run.told is None or progress.phase not in {None, run.told.phase}
    if not new_phase and progress.fraction < 1 and now_s - run.told_s < PROGRESS_EVERY_S:
        return False
    run.told_s = now_s
    run.told = progress if progress.phase or run.told is None else replace(progress, phase=run.told.phase)
    return True


def _probed(file: OutputFile, scratch: Path) -> OutputFile:
    """The file with the facts that a probe found. Raises EngineFailed for one that is not what it says."""
    if not file.path.resolve().is_relative_to(scratch.resolve()) or not file.path.is_file():
        raise EngineFailed(f"The engine did not leave the file {file.name!r} in its scratch folder.")
    if file.preview or not file.media_type.startswith(_PROBED):
        return file
    try:
        found: MediaFacts = probe.probe(file.path, media_type=file.media_type)
    except UnsupportedMedia as error:
        raise EngineFailed(f"The engine made a damaged file {file.name!r}: {error.message}") from error
    return replace(file, facts=found)


def _read_commands(source: BinaryIO, runs: queue.SimpleQueue[tuple[Run, Mapping[str, Any]]]) -> None:
    """Queue each run; set the cancel of the one that a cancel names. The end of input means that the parent is gone."""
    current: Run | None = None
    for line in source:
        command = json.loads(line)
        if command["say"] in {"run", "prepare"}:
            current = Run(command["run"])
            runs.put((current, command))
        elif command["say"] == "cancel" and current is not None and current.number == command["run"]:
            current.cancelled.set()
    # On Linux the guard then ends the descendants, whatever group they are in; it must not die first.
    os.killpg(0, signal.SIGKILL) if sys.platform != "linux" else os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Serve the parent until it goes away."""
    commands, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not break a line
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # what it starts must not eat commands
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    runs: queue.SimpleQueue[tuple[Run, Mapping[str, Any]]] = queue.SimpleQueue()
    hello = json.loads(commands.readline() or b"{}")
    child = Child(out, hello.get("settings", {}))
    child.say(say="ready", pid=os.getpid())
    threading.Thread(target=_read_commands, args=(commands, runs), daemon=True).start()
    while True:
        run, command = runs.get()
        if command["say"] == "prepare":
            child.prepare(run, command)
        else:
            child.carry(run, command)


if __name__ == "__main__":
    main()

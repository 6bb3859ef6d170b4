"""`mediamill serve` as a real process, for tests that need all of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from mediamill.config import Settings, names

T = TypeVar("T")
PATIENCE_S = 60.0
_SETTINGS = frozenset(name for field in Settings.model_fields for name in names(field))


def eventually(look: Callable[[], T], *, patience_s: float = PATIENCE_S) -> T:
    """The first true value of `look`; fails when there is none for a long time."""
    end = time.monotonic() + patience_s
    while not (found := look()):
        assert time.monotonic() < end, f"not within {patience_s} s: {look}"
        time.sleep(0.05)
    return found


@dataclass
class Serving:
    """One running service."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON body of one request, whatever the status."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=data, method=method)
        request.add_header("Content-Type", "application/json")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def submit(self, **values: Any) -> str:
        """Queue a fake job; returns its id."""
        asked = {"kind": "image", "width": 64, "height": 64, "seed": 1, **values}
        status, job = self.ask("POST", "/v1/jobs", {"model": "fake", "input": asked})
        assert status == 202, job
        return str(job["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        status, job = self.ask("GET", f"/v1/jobs/{job_id}")
        assert status == 200, job
        return dict(job)

    def ended(self, job_id: str) -> dict[str, Any]:
        """The job after its end, patiently."""
        return eventually(lambda: (job := self.job(job_id))["finished_at"] and job)

    def running(self, job_id: str) -> dict[str, Any]:
        """The job once it runs."""
        return eventually(lambda: (job := self.job(job_id))["status"] == "running" and job)

    def family(self) -> list[psutil.Process]:
        """Every process of the service but the supervisor."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def member(self, *words: str) -> psutil.Process:
        """The one direct child whose command line has all these words."""
        children = psutil.Process(self.process.pid).children()
        (found,) = [child for child in children if set(words) <= set(_command(child))]
        return found

    def stop(self, *, signals: Sequence[int] = (signal.SIGTERM,)) -> int:
        """Send signals and wait for the end; returns the exit status."""
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; a zombie has."""
    return [p for p in processes if p.is_running() and _status(p) != psutil.STATUS_ZOMBIE]


def _status(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return str(psutil.STATUS_ZOMBIE)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This machine's environment without any setting of mediamill but those given."""
    kept = {k: v for k, v in os.environ.items() if k not in _SETTINGS and not k.startswith("MEDIAMILL_")}
    return {**kept, **(extra or {})}


@contextlib.contextmanager
def a_folder() -> Iterator[Path]:
    """A folder for a service. Not below pytest's own, which each pytest session closes to the database's user."""
    path = Path(tempfile.mkdtemp(prefix="mediamill-test-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def mediamill(*arguments: str, cwd: Path, extra: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "mediamill", *arguments],
        cwd=cwd,
        env={"COLUMNS": "200", **environment(extra)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def start(
    folder: Path, *arguments: str, extra: Mapping[str, str] | None = None, python: str = sys.executable
) -> Serving:
    """Start it on a free port with its data in `folder/data` and wait until it is ready."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "serve.log"
    command = [python, "-m", "mediamill", "serve", "--port", "0", "--data-dir", str(folder / "data")]
    with log.open("ab") as log_file:
        process = subprocess.Popen(
            [*command, "--pools", "cpu", *arguments],
            cwd=folder,
            env=environment(extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    process.stdout.close()
    if not line.startswith("mediamill is ready at http://"):
        process.kill()
        process.wait()
        raise AssertionError(f"no service: {line!r}\n{log.read_text()}")
    return Serving(process, line.split()[-1], log)


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, **options: Any) -> Iterator[Serving]:
    """The same for the length of a block; whatever is left of it then is killed, by id."""
    service = start(folder, *arguments, **options)
    family: list[psutil.Process] = []
    try:
        yield service
    finally:
        with contextlib.suppress(psutil.Error):
            family = service.family()
        if service.process.poll() is None:
            service.process.terminate()
            try:
                service.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                service.process.kill()
                service.process.wait()
        for process in alive(family):
            with contextlib.suppress(psutil.Error):
                process.kill()

"""Two hosts: each has a data folder of its own; they share one database and, where they say so, one bucket folder."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mediamill.media.probe import probe
from tests.fixtures_db import TestServer
from tests.service import PATIENCE_S, Serving, a_folder, environment, eventually

RED = (200, 30, 40)
SHARED = {"MEDIAMILL_STORAGE_SHARED": "1"}


@dataclass
class Fleet:
    """Processes on several hosts around one database."""

    folder: Path
    database_url: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def bucket(self) -> dict[str, str]:
        """The folder that hosts may share."""
        return {"OUTPUT_DIR": str(self.folder / "bucket")}

    def log(self, host: str) -> str:
        """What the processes of a host said."""
        path = self.folder / f"{host}.log"
        return path.read_text() if path.exists() else ""

    def start(self, host: str, *arguments: str, fd: int | None = None, **extra: str) -> subprocess.Popen[bytes]:
        """`mediamill ...` on a host."""
        settings = {
            "DATABASE_URL": self.database_url,
            "MEDIAMILL_DATA_DIR": str(self.folder / host),
            "MEDIAMILL_LEASE_SECONDS": "2",
        }
        with (self.folder / f"{host}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mediamill", *arguments],
                cwd=self.folder,
                env=environment({**settings, **extra}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=() if fd is None else (fd,),
            )
        self.processes.append(process)
        return process

    def start_api(self, host: str, **extra: str) -> Serving:
        """`mediamill api` on a free port, once it answers."""
        with socket.create_server(("127.0.0.1", 0)) as sock:
            process: Any = self.start(host, "api", "--fd", str(sock.fileno()), fd=sock.fileno(), **extra)
            api = Serving(process, f"http://127.0.0.1:{sock.getsockname()[1]}", self.folder / f"{host}.log")
        assert api.ask("GET", "/health")[0] == 200
        return api

    def start_worker(self, host: str, api: Serving, **extra: str) -> subprocess.Popen[bytes]:
        """`mediamill worker` of one slot, once the API of whatever host knows of it."""
        before = slots(api)
        process = self.start(host, "worker", "--slots", "1", **extra)
        eventually(lambda: slots(api) > before or process.poll() is not None)
        assert process.poll() is None, self.log(host)
        return process

    def end(self) -> None:
        """End what still runs."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def slots(api: Serving) -> int:
    """Free or not, of the workers that the API has heard of."""
    return int(api.ask("GET", "/ready")[1]["pools"].get("cpu", 0))


@pytest.fixture
def fleet(embedded_server: TestServer) -> Iterator[Fleet]:
    """Nothing runs yet; at the end nothing does."""
    name = embedded_server.lend_database()
    with a_folder() as folder, contextlib.ExitStack() as stack:
        fleet = Fleet(folder, embedded_server.server.url(name))
        stack.callback(embedded_server.take_back, name)
        stack.callback(fleet.end)
        yield fleet


def upload(api: Serving, name: str, content: bytes) -> str:
    """Send a file as a form; returns the reference to use in a job."""
    head = f'--cut\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    request = urllib.request.Request(f"{api.url}/v1/files", data=head.encode() + content + b"\r\n--cut--\r\n")
    request.add_header("Content-Type", "multipart/form-data; boundary=cut")
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        return str(json.load(reply)["url"])


def fetched(artifact: dict[str, Any], path: Path) -> Path:
    """The file behind an artifact's URL."""
    with urllib.request.urlopen(artifact["url"], timeout=PATIENCE_S) as reply:
        path.write_bytes(reply.read())
    assert path.stat().st_size == artifact["size_bytes"]
    return path


def photo() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (192, 108), RED).save(buffer, "PNG")
    return buffer.getvalue()


def test_hosts_read_and_serve_what_the_others_stored(fleet: Fleet, tmp_path: Path) -> None:
    where = fleet.bucket | SHARED
    api = fleet.start_api("a", **where)
    on_b = fleet.start_worker("b", api, **where)
    reference = upload(api, "photo.png", photo())
    body = {"images": [{"id": "1", "image_url": reference, "duracao": 0.1}], "quality": "fast"}
    status, job = api.ask("POST", "/v1/jobs", {"model": "img2vid", "input": body})
    assert status == 202, job
    job = api.ended(job["id"])
    assert job["status"] == "succeeded", job
    clip = fetched(job["artifacts"][0], tmp_path / "clip.mp4")
    assert (probe(clip).width_px, probe(clip).frames) == (1920, 2)
    assert np.abs(mean_colour(clip) - RED).max() < 8
    assert job["artifacts"][0]["url"].startswith(f"{api.url}/files/")
    assert "job ended" in fleet.log("b")
    assert not (fleet.folder / "a" / "outputs").exists()
    assert not (fleet.folder / "b" / "outputs").exists()

    fleet.start_worker("c", api, **where)
    jobs = [api.submit(work_s=0.5, seed=n) for n in range(4)]
    assert [api.ended(one)["status"] for one in jobs] == ["succeeded"] * 4
    assert "job ended" in fleet.log("c")

    held = [api.submit(work_s=1.5, seed=n) for n in range(2)]
    for one in held:
        api.running(one)
    on_b.send_signal(signal.SIGKILL)
    ended = [api.ended(one) for one in held]
    assert [(one["status"], one["artifacts"][0]["width"]) for one in ended] == [("succeeded", 64)] * 2
    assert sorted(one["attempt"] for one in ended) == [1, 2]


def mean_colour(clip: Path) -> Any:
    """Of the first picture, RGB."""
    import av

    with av.open(str(clip)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24").mean(axis=(0, 1))


def test_a_host_that_would_keep_files_elsewhere_is_refused(fleet: Fleet) -> None:
    fleet.start_api("a", **fleet.bucket, **SHARED)
    cases = [
        ("own", "worker", {}, f"keeps files in another folder than '{fleet.folder}/own/outputs'"),
        ("front", "api", fleet.bucket, "say so with MEDIAMILL_STORAGE_SHARED=1"),
    ]
    started = [(host, words, fleet.start(host, role, **extra)) for host, role, extra, words in cases]
    for host, words, process in started:
        assert process.wait(PATIENCE_S) == 2, fleet.log(host)
        assert words in fleet.log(host)
        assert "Traceback" not in fleet.log(host)

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image
from standardwebhooks import Webhook

from mediamill.media.probe import probe
from tests.service import PATIENCE_S, Serving, a_folder, environment, eventually, mediamill, serving

KEY = "swordfish"


@pytest.fixture(scope="module")
def service() -> Iterator[Serving]:
    """A service that wants a key."""
    extra = {"X_API_KEY": KEY, "MEDIAMILL_FETCH_ALLOW": "127.0.0.0/8"}
    with a_folder() as folder, serving(folder, extra=extra) as started:
        yield started


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a photo.jpg"
    Image.linear_gradient("L").resize((320, 200)).convert("RGB").save(path)
    return path


def submit(service: Serving, **values: object) -> str:
    body = {"model": "fake", "input": {"kind": "image", "width": 64, "height": 64, **values}}
    status, job = service.ask("POST", "/v1/jobs", body, X_API_Key=KEY)
    assert status == 202, job
    return str(job["id"])


def test_jobs_are_listed_shown_followed_and_fetched(service: Serving, tmp_path: Path) -> None:
    job_id = submit(service, work_s=0.5)
    extra = {"X_API_KEY": KEY, "MEDIAMILL_SERVER": service.url}
    waited = mediamill("jobs", "wait", job_id, "--out", str(tmp_path / "out"), cwd=tmp_path, extra=extra)
    assert waited.returncode == 0, waited.stderr
    (file,) = (tmp_path / "out").iterdir()
    assert (probe(file).width_px, probe(file).height_px) == (64, 64)
    assert str(file) in waited.stdout
    listed = mediamill("jobs", "list", "--status", "succeeded", "--model", "fake", cwd=tmp_path, extra=extra)
    assert job_id in listed.stdout
    shown = json.loads(mediamill("jobs", "show", job_id, cwd=tmp_path, extra=extra).stdout)
    assert (shown["id"], shown["status"]) == (job_id, "succeeded")


def test_a_job_is_cancelled_and_waiting_for_it_fails(service: Serving, tmp_path: Path) -> None:
    job_id = submit(service, work_s=600)
    extra = {"X_API_KEY": KEY}
    cancelled = mediamill("jobs", "cancel", job_id, "--server", service.url, cwd=tmp_path, extra=extra)
    assert json.loads(cancelled.stdout)["id"] == job_id
    waited = mediamill("jobs", "wait", job_id, "--server", service.url, cwd=tmp_path, extra=extra)
    assert waited.returncode == 130
    unknown = mediamill("jobs", "show", "nonsense", "--server", service.url, cwd=tmp_path, extra=extra)
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: ")


def test_a_receiver_verifies_with_the_secret_that_is_shown(service: Serving, tmp_path: Path) -> None:
    data = service.log.parent / "data"
    shown = mediamill("webhook-secret", "--data-dir", str(data), cwd=tmp_path)
    assert (shown.returncode, shown.stdout.count("\n")) == (0, 1), shown.stderr
    with one_delivery() as (url, wait):
        body = {"model": "fake", "input": {"kind": "image", "width": 64, "height": 64}, "webhook_url": url}
        status, job = service.ask("POST", "/v1/jobs", body, X_API_Key=KEY)
        assert status == 202, job
        headers, sent = wait()
    assert Webhook(shown.stdout.strip()).verify(sent, headers)["data"]["id"] == job["id"]


@contextlib.contextmanager
def one_delivery() -> Iterator[tuple[str, Callable[[], tuple[dict[str, str], bytes]]]]:
    """The URL of a receiver, and a call that waits for what it gets."""
    got: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.put((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", lambda: got.get(timeout=PATIENCE_S)
        finally:
            server.shutdown()


def test_without_the_key_the_service_own_sentence_is_shown(service: Serving, tmp_path: Path) -> None:
    done = mediamill("jobs", "list", "--server", service.url, cwd=tmp_path, extra={"X_API_KEY": "wrong"})
    assert done.returncode == 2
    assert done.stderr == "error: The API key is not valid.\n"


def test_photos_are_sent_and_clips_come_back(service: Serving, photo: Path) -> None:
    arguments = ["img2vid", str(photo), str(photo), "--seconds", "0.5", "--out", "clips", "--server", service.url]
    done = mediamill(*arguments, cwd=photo.parent, extra={"X_API_KEY": KEY})
    assert done.returncode == 0, done.stderr
    clips = sorted((photo.parent / "clips").iterdir())
    assert [clip.name for clip in clips] == ["video_1.mp4", "video_2.mp4"]  # two of one name keep the job's
    assert [probe(clip).frames for clip in clips] == [12, 12]


def test_ctrl_c_cancels_the_job_at_the_service(service: Serving, photo: Path) -> None:
    arguments = ["img2vid", str(photo), "--seconds", "600", "--server", service.url]
    command = subprocess.Popen(
        [sys.executable, "-m", "mediamill", *arguments],
        cwd=photo.parent,
        env=environment({"X_API_KEY": KEY}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def running() -> list[dict[str, str]]:
        _, page = service.ask("GET", "/v1/jobs?model=img2vid&status=running", X_API_Key=KEY)
        return list(page["data"])

    try:
        job_id = eventually(running)[0]["id"]
    finally:
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 130
    assert said.endswith("cancelled\n")
    ended = eventually(
        lambda: (job := service.ask("GET", f"/v1/jobs/{job_id}", X_API_Key=KEY)[1])["finished_at"] and job
    )
    assert ended["status"] == "cancelled"

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mediamill.media.probe import probe
from tests.service import PATIENCE_S, Serving, a_folder, environment, eventually, mediamill, serving

KEY = "swordfish"


@pytest.fixture(scope="module")
def service() -> Iterator[Serving]:
    """A service that wants a key."""
    with a_folder() as folder, serving(folder, extra={"X_API_KEY": KEY}) as started:
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

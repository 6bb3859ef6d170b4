from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mediamill.media.probe import probe
from tests.service import PATIENCE_S, Serving, a_folder, alive, environment, eventually, serving, start

QUICK = {"MEDIAMILL_LEASE_SECONDS": "2", "MEDIAMILL_FAKE_ENGINES": "all"}


@pytest.fixture(scope="module")
def service() -> Iterator[Serving]:
    """One service for the tests that leave it as good as they found it."""
    with a_folder() as folder, serving(folder, extra=QUICK) as started:
        yield started


def test_a_job_goes_from_request_to_a_file_that_plays(service: Serving, tmp_path: Path) -> None:
    job = service.ended(service.submit(kind="video", width=96, height=64, duration_s=1, fps=10))
    assert job["status"] == "succeeded", job
    (artifact,) = job["artifacts"]
    with urllib.request.urlopen(artifact["url"], timeout=PATIENCE_S) as reply:
        body = reply.read()
    (tmp_path / "clip.mp4").write_bytes(body)
    facts = probe(tmp_path / "clip.mp4")
    assert len(body) == artifact["size_bytes"]
    assert (facts.width_px, facts.height_px, facts.frames) == (96, 64, 10)
    assert facts.duration_s == pytest.approx(1.0, abs=0.1)


def test_a_killed_api_is_started_again_and_no_connection_is_refused(service: Serving) -> None:
    before = service.member("api")
    before.kill()
    status, body = service.ask("GET", "/health")
    assert (status, body["status"]) == (200, "ok")
    assert service.member("api").pid != before.pid


def test_a_killed_worker_is_started_again_and_its_job_ends_once(service: Serving) -> None:
    job_id = service.submit(work_s=2)
    service.running(job_id)
    before = service.member("worker")
    family = before.children(recursive=True)
    before.kill()
    job = service.ended(job_id)
    assert job["status"] == "succeeded", job
    assert job["attempt"] == 2
    assert service.member("worker").pid != before.pid
    eventually(lambda: not alive(family))


def test_a_killed_database_is_started_again_and_nothing_is_lost(service: Serving) -> None:
    job_id = service.submit(work_s=1)
    (postgres,) = [p for p in psutil.Process(service.process.pid).children() if "postgres" in p.name()]
    postgres.kill()
    eventually(lambda: not alive([postgres]))
    job = eventually(lambda: _answered(service, job_id))
    assert job["status"] == "succeeded", job


def _answered(service: Serving, job_id: str) -> dict[str, object] | None:
    """The ended job; None while the database is away."""
    status, job = service.ask("GET", f"/v1/jobs/{job_id}")
    assert status in {200, 503}, job
    return job if status == 200 and job["finished_at"] else None


def test_a_second_service_on_the_same_folder_or_port_is_refused_by_name(service: Serving, tmp_path: Path) -> None:
    folder = service.log.parent / "data"
    for arguments, words in (
        (["--data-dir", str(folder), "--port", "0"], f"{str(folder)!r} is in use by another mediamill serve"),
        (["--data-dir", str(tmp_path), "--port", service.url.rpartition(":")[2]], "is in use by another program"),
        (["--data-dir", str(tmp_path), "--port", "0", "--host", "0.0.0.0"], "without an API key"),
        (["--data-dir", str(tmp_path), "--port", "0", "--pools", "tpu"], "There is no pool 'tpu'"),
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "mediamill", "serve", *arguments],
            env=environment(),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert ended.returncode == 2, ended.stderr
        assert words in ended.stderr
        assert "Traceback" not in ended.stderr
        assert ended.stdout == ""


def test_one_signal_drains_and_a_restart_goes_on(folder: Path) -> None:
    with serving(folder, extra=QUICK) as service:
        running, queued = service.submit(work_s=1), service.submit(work_s=0.1)
        service.running(running)
        family = service.family()
        assert service.stop(signals=(signal.SIGTERM,)) == 0
        assert not alive(family)
    with serving(folder, extra=QUICK) as service:
        job = service.ended(running)
        assert (job["status"], job["attempt"]) == ("succeeded", 1), job
        assert service.ended(queued)["status"] == "succeeded"
        family = service.family()
        assert service.stop(signals=(signal.SIGINT,)) == 0
        assert not alive(family)


def test_a_second_signal_ends_at_once_and_the_job_runs_again(folder: Path) -> None:
    with serving(folder, extra=QUICK) as service:
        job_id = service.submit(work_s=600)
        service.running(job_id)
        family = service.family()
        service.process.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in service.log.read_text())
        assert service.stop() == 0
        assert not alive(family)
    with serving(folder, extra=QUICK) as service:
        assert service.running(job_id)["attempt"] == 2
        service.ask("POST", f"/v1/jobs/{job_id}/cancel")
        assert service.ended(job_id)["status"] == "cancelled"


def test_a_killed_supervisor_leaves_no_process(folder: Path) -> None:
    service = start(folder, extra=QUICK)
    service.running(service.submit(work_s=600))
    family = service.family()
    assert len(family) >= 4
    os.kill(service.process.pid, signal.SIGKILL)
    service.process.wait()
    eventually(lambda: not alive(family))

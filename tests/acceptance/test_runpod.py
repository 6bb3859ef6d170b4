"""`mediamill serve` with a model on RunPod: from request to file, over kills, restarts and cancels."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.media_samples import still
from tests.runpod_host import IN_PROGRESS, KEY, RunPodHost, completed, hosting, inline
from tests.service import PATIENCE_S, Serving, a_folder, eventually, mediamill, serving

ASKED = {"model": "zimage", "prompt": "a red fox", "width": 512, "height": 512}
THERE = "Job queued on RunPod. Poll GET /api/v1/generate/{jobId} for status."


@pytest.fixture(scope="module")
def host() -> Iterator[RunPodHost]:
    with hosting() as started:
        yield started


def variables(host: RunPodHost) -> dict[str, str]:
    return {
        "MEDIAMILL_LEASE_SECONDS": "2",
        "MEDIAMILL_DRAIN_SECONDS": "0.2",
        "MEDIAMILL_FETCH_ALLOW": "127.0.0.1",
        **host.environment(ZIMAGE="ep-zimage"),
    }


@pytest.fixture(scope="module")
def service(host: RunPodHost) -> Iterator[Serving]:
    with a_folder() as folder, serving(folder, "--pools", "cpu,remote", extra=variables(host)) as started:
        yield started


@pytest.fixture
def picture(tmp_path: Path) -> bytes:
    return still(tmp_path / "sample.png", 512, 512).read_bytes()


def made(service: Serving, **values: object) -> str:
    status, body = service.ask("POST", "/api/v1/generate", {**ASKED, **values})
    assert (status, body["message"]) == (202, THERE), body
    return str(body["jobId"])


def there(host: RunPodHost, job_id: str) -> list[str]:
    """The ids of the jobs that came to the host for one of ours."""
    return [job.id for job in list(host.jobs.values()) if job.input["job_id"] == job_id]


def arrived(host: RunPodHost, service: Serving, job_id: str) -> str:
    """Its one job there, once that runs and its row says so."""
    eventually(lambda: service.job(job_id)["phase"] == "generating")
    (found,) = there(host, job_id)
    return found


def finished(service: Serving, job_id: str, picture: bytes) -> dict[str, object]:
    """The finished job as the documented poller sees it, its file compared with what was made."""
    service.ended(job_id)
    status, body = service.ask("GET", f"/api/v1/generate/{job_id}")
    assert (status, body["status"]) == (200, "completed"), body
    with urllib.request.urlopen(body["result"]["url"], timeout=PATIENCE_S) as reply:
        assert reply.read() == picture
    facts = {name: body["result"][name] for name in ("contentType", "fileSizeBytes", "width", "height")}
    assert facts == {"contentType": "image/png", "fileSizeBytes": len(picture), "width": 512, "height": 512}
    return dict(body["result"])


def test_a_job_goes_to_runpod_and_its_file_comes_back(host: RunPodHost, service: Serving, picture: bytes) -> None:
    assert service.ask("GET", "/ready")[1]["pools"]["remote"] >= 64
    told = {**IN_PROGRESS, "output": {"progress": 0.25, "message": "step 2 of 8", "eta_s": 6}}
    host.script = lambda _body: [told]
    job_id = made(service, imageUrl=f"data:image/png;base64,{base64.b64encode(picture).decode()}")
    eventually(lambda: service.job(job_id)["progress"] == 25)
    assert service.ask("GET", f"/api/v1/generate/{job_id}")[1]["status"] == "processing"
    (remote,) = there(host, job_id)
    assert base64.b64decode(host.jobs[remote].input["image_url"].partition(",")[2]) == picture
    url = host.file("made.png", picture)
    artifact = {"name": "output.png", "media_type": "image/png", "size_bytes": len(picture), "url": url}
    host.jobs[remote].states = [completed(artifact, output={"seed": 11})]
    result = finished(service, job_id, picture)
    assert (str(result["url"]).endswith(f"/outputs/{job_id}/output.png"), result["seed"]) == (True, 11)


def test_a_killed_worker_loses_nothing_and_pays_nothing_twice(
    host: RunPodHost, service: Serving, picture: bytes
) -> None:
    host.script = lambda _body: [IN_PROGRESS]
    job_ids = [made(service) for _ in range(3)]
    remote = {job_id: arrived(host, service, job_id) for job_id in job_ids}
    service.member("worker", "remote").kill()
    for job_id in job_ids:
        eventually(lambda job_id=job_id: service.job(job_id)["attempt"] == 2)
        host.jobs[remote[job_id]].states = [completed(inline("output.png", picture))]
    for job_id in job_ids:
        finished(service, job_id, picture)
        assert there(host, job_id) == [remote[job_id]]
        assert remote[job_id] not in host.cancels


def test_a_cancel_reaches_runpod(host: RunPodHost, service: Serving) -> None:
    host.script = lambda _body: [IN_PROGRESS]
    job_id = made(service)
    remote = arrived(host, service, job_id)
    status, body = service.ask("DELETE", f"/api/v1/generate/{job_id}")
    assert (status, body["status"], body["error"]) == (200, "failed", "Job was cancelled")
    eventually(lambda: remote in host.cancels)


def test_a_failure_there_is_told_here(host: RunPodHost, service: Serving) -> None:
    error = json.dumps({"error_type": "<class 'RuntimeError'>", "error_message": "Inference failed: GPU out of memory"})
    host.script = lambda _body: [{"status": "FAILED", "error": error}]
    job_id = made(service)
    service.ended(job_id)
    assert service.ask("GET", f"/api/v1/generate/{job_id}")[1]["error"] == "Inference failed: GPU out of memory"
    assert service.job(job_id)["error"]["code"] == "out_of_memory"


def test_a_deploy_in_the_middle_of_a_job_costs_nothing(host: RunPodHost, picture: bytes) -> None:
    host.script = lambda _body: [IN_PROGRESS]
    with a_folder() as folder:
        with serving(folder, "--pools", "remote", extra=variables(host)) as service:
            first, second = made(service), made(service)
            there_first, there_second = arrived(host, service, first), arrived(host, service, second)
            assert service.stop() == 0
        host.jobs[there_first].states = [completed(inline("output.png", picture))]
        assert not {there_first, there_second} & set(host.cancels)
        with serving(folder, "--pools", "remote", extra=variables(host)) as service:
            finished(service, first, picture)
            service.ask("DELETE", f"/api/v1/generate/{second}")
            eventually(lambda: there_second in host.cancels)
            assert (there(host, first), there(host, second)) == ([there_first], [there_second])
        assert KEY not in service.log.read_text()
        for log in (folder / "data" / "logs").iterdir():
            assert KEY not in log.read_text()


def test_doctor_tells_how_the_endpoints_are(host: RunPodHost, tmp_path: Path) -> None:
    extra = host.environment(ZIMAGE="ep-zimage", LTX2="ep-gone", NOSUCH="x")
    done = mediamill("doctor", cwd=tmp_path, extra={**extra, "MEDIAMILL_DATA_DIR": str(tmp_path)})
    assert "RunPod: zimage runs on endpoint ep-zimage, workers: {'idle': 1, 'running': 0}" in done.stdout
    assert "WRONG RunPod: ltx2 runs there: RunPod knows no endpoint 'ep-gone'." in done.stdout
    assert "WRONG settings: RUNPOD_NOSUCH_ENDPOINT_ID names no catalog entry" in done.stdout
    assert KEY not in done.stdout + done.stderr


def test_a_route_that_cannot_be_is_refused_at_the_start(tmp_path: Path) -> None:
    for command in (["serve", "--port", "0"], ["worker", "--pool", "remote"], ["api"]):
        extra = {"MEDIAMILL_ROUTES": "zimage=runpod", "DATABASE_URL": "postgresql://127.0.0.1:9/none"}
        done = mediamill(*command, cwd=tmp_path, extra=extra)
        assert done.returncode == 2, done.stderr
        assert "MEDIAMILL_ROUTES sends zimage to RunPod; that needs RUNPOD_API_KEY." in done.stderr

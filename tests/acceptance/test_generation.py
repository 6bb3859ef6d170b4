"""Generation end to end: a real service, a real worker process, real pipeline classes with tiny weights."""

from __future__ import annotations

import base64
import io
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mediamill.media.probe import probe
from tests.service import Serving, eventually, serving

IMAGE: Mapping[str, Any] = {"prompt": "a red fox", "width": 72, "height": 64, "steps": 4, "seed": 7}
CLIP: Mapping[str, Any] = {
    "prompt": "a cat",
    "width": 64,
    "height": 96,
    "num_frames": 10,
    "fps": 12,
    "num_inference_steps": 2,
    "seed": 7,
}


@pytest.fixture(scope="module")
def service(tiny_settings: Mapping[str, str]) -> Iterator[Serving]:
    extra = {**tiny_settings, "MEDIAMILL_DISK_RESERVE_BYTES": "0"}
    # Not under pytest's own folder: another session starting as root would lock the database server's user out.
    with (
        tempfile.TemporaryDirectory(prefix="mediamill-serve-") as folder,
        serving(Path(folder), "--pools", "gpu", extra=extra) as running,
    ):
        yield running


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return bytes(reply.read())


def made(service: Serving, model: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    status, job = service.ask("POST", "/v1/jobs", {"model": model, "input": dict(asked)})
    assert status == 202, job
    return service.ended(job["id"])


def test_a_picture_comes_back_with_what_a_probe_found(service: Serving) -> None:
    job = made(service, "zimage", IMAGE)
    assert job["status"] == "succeeded", job
    (artifact,) = job["artifacts"]
    assert (artifact["name"], artifact["media_type"]) == ("output.png", "image/png")
    assert (artifact["width"], artifact["height"]) == (72, 64)
    content = fetched(artifact["url"])
    assert Image.open(io.BytesIO(content)).size == (72, 64)
    assert job["output"]["seed"] == 7
    assert {"loading_s", "generating_s"} <= set(job["timings"])
    again = made(service, "zimage", IMAGE)
    assert again["artifacts"][0]["sha256"] == artifact["sha256"]


def test_a_clip_comes_back_exact_through_both_contracts(service: Serving, tmp_path: Path) -> None:
    status, body = service.ask("POST", "/api/v1/text-to-video", dict(CLIP))
    assert status == 200, body
    assert (body["num_frames"], body["fps"], body["width"], body["height"]) == (10, 12, 64, 96)
    path = tmp_path / "clip.mp4"
    path.write_bytes(base64.b64decode(body["video"]))
    facts = probe(path, media_type="video/mp4")
    assert (facts.frames, facts.fps, facts.width_px, facts.height_px) == (10, 12, 64, 96)

    status, created = service.ask("POST", "/api/v1/generate", {"model": "ltx-video", **CLIP})
    assert status == 202, created
    job_path = f"/api/v1/generate/{created['jobId']}"
    done = eventually(lambda: (s := service.ask("GET", job_path)[1])["status"] == "completed" and s)
    assert done["result"]["durationMs"] == 833
    assert fetched(done["result"]["url"]) == path.read_bytes()


def test_a_picture_of_ours_goes_into_the_next_job(service: Serving) -> None:
    first = made(service, "zimage", IMAGE)
    clip = made(service, "ltx-video", {**CLIP, "image_url": first["artifacts"][0]["url"]})
    assert clip["status"] == "succeeded", clip
    assert clip["artifacts"][0]["frames"] == 10
    data = base64.b64encode(fetched(first["artifacts"][0]["url"])).decode()
    again = made(service, "ltx-video", {**CLIP, "image_url": f"data:image/png;base64,{data}"})
    assert again["artifacts"][0]["sha256"] == clip["artifacts"][0]["sha256"]


def test_requests_at_once_give_what_they_give_alone(service: Serving) -> None:
    asked = [{**IMAGE, "seed": seed} for seed in range(3)]
    alone = [made(service, "zimage", one)["artifacts"][0]["sha256"] for one in asked]
    with ThreadPoolExecutor(3) as pool:
        together = [job["artifacts"][0]["sha256"] for job in pool.map(lambda one: made(service, "zimage", one), asked)]
    assert together == alone
    assert len(set(alone)) == 3


def test_a_cancel_reaches_the_engine_and_the_next_job_runs(service: Serving) -> None:
    status, job = service.ask("POST", "/v1/jobs", {"model": "zimage", "input": {**IMAGE, "width": 512, "steps": 100}})
    assert status == 202, job
    service.running(job["id"])
    status, body = service.ask("DELETE", f"/api/v1/generate/{job['id']}")
    assert (status, body["success"]) == (200, True)
    assert service.ended(job["id"])["status"] == "cancelled"
    assert made(service, "zimage", IMAGE)["status"] == "succeeded"

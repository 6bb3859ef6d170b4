"""Generation end to end: a real service, a real worker process, real pipeline classes with tiny weights."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import json
import queue
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mediamill.media.probe import probe
from tests.service import Serving, eventually, serving
from tests.terminal import in_terminal, plain

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
    extra = {
        **tiny_settings,
        "MEDIAMILL_DISK_RESERVE_BYTES": "0",
        "OMP_NUM_THREADS": "1",
        "MEDIAMILL_FAKE_ENGINES": "ltx2",
        "MEDIAMILL_FETCH_ALLOW": "127.0.0.1",
        "MEDIAMILL_MODEL_MEMORY_BYTES": str(4 * 1024**3),
    }
    # Not under pytest's own folder: another session starting as root would lock the database server's user out.
    with (
        tempfile.TemporaryDirectory(prefix="mediamill-serve-") as folder,
        serving(Path(folder), "--pools", "cpu,gpu", extra=extra) as running,
    ):
        yield running


@dataclass
class Told:
    """What a receiver of callbacks was sent."""

    url: str
    bodies: queue.Queue[bytes] = field(default_factory=queue.Queue)


@contextlib.contextmanager
def receiver() -> Iterator[Told]:
    """A server on loopback that takes callbacks."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.bodies.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told = Told(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


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


def test_the_request_of_ltx2_works_on_the_fake_engine(service: Serving) -> None:
    still = made(service, "zimage", IMAGE)["artifacts"][0]["url"]
    asked = {"model": "ltx2", "imageUrl": still, "prompt": "A cinematic scene", "duration": 3, "fps": 12}
    for sound in (False, True):
        status, done = service.ask("POST", "/api/v1/generate?wait=60", {**asked, "generateAudio": sound})
        assert status == 200, done
        result = done["result"]
        assert (result["contentType"], result["width"], result["height"]) == ("video/mp4", 1024, 576)
        assert result["durationMs"] == 3000
        assert result["url"].endswith(f"/outputs/{done['jobId']}/output.mp4")
        facts = service.job(done["jobId"])["artifacts"][0]
        assert (facts["frames"], "audio_codec" in facts) == (36, sound)


def test_the_documented_callback_arrives_byte_for_byte(service: Serving) -> None:
    asked = {"model": "zimage", "prompt": "a red fox", "width": 512, "height": 512, "steps": 8, "seed": 1}
    with receiver() as told:
        for more, word in (({}, "completed"), ({"width": 2048, "height": 2048, "prompt": "caf\u00e9"}, "failed")):
            status, created = service.ask(
                "POST", "/api/v1/generate", {**asked, **more, "webhookUrl": f"{told.url}/webhook"}
            )
            assert status == 202, created
            body = told.bodies.get(timeout=60)
            state = service.ask("GET", f"/api/v1/generate/{created['jobId']}")[1]
            assert state["status"] == word
            expected: dict[str, Any] = {"jobId": created["jobId"], "status": word}
            if word == "completed":
                result = state["result"]
                expected["result"] = {
                    "url": result["url"],
                    "fileSizeBytes": result["fileSizeBytes"],
                    "processingTimeMs": state["processingTimeMs"],
                }
            else:
                expected["error"] = state["error"]
            assert body == json.dumps(expected, separators=(",", ":"), ensure_ascii=False).encode()


def test_what_cannot_fit_is_refused_with_what_to_lower_and_the_next_job_runs(service: Serving) -> None:
    before = made(service, "zimage", IMAGE)["artifacts"][0]["sha256"]
    failed = made(service, "zimage", {**IMAGE, "width": 2048, "height": 2048})
    assert (failed["status"], failed["error"]["code"]) == ("failed", "out_of_memory")
    assert "Lower width and height (now 2048x2048)" in failed["error"]["message"]
    assert made(service, "zimage", IMAGE)["artifacts"][0]["sha256"] == before


def test_a_running_job_shows_previews_and_the_time_left(service: Serving) -> None:
    asked = {**IMAGE, "width": 512, "height": 512, "steps": 100}
    status, job = service.ask("POST", "/v1/jobs", {"model": "zimage", "input": asked})
    assert status == 202, job
    looked = eventually(lambda: "preview_url" in (job_now := service.job(job["id"])) and job_now)
    assert Image.open(io.BytesIO(fetched(looked["preview_url"]))).size == (256, 256)
    assert looked["eta_s"] >= 0
    state = service.ask("GET", f"/api/v1/generate/{job['id']}")[1]
    assert state["status"] != "processing" or "previewUrl" in state
    later = eventually(lambda: (now := service.job(job["id"])).get("preview_url") != looked["preview_url"] and now)
    assert "preview_url" in later or later["status"] == "succeeded"
    done = service.ended(job["id"])
    assert not {"preview_url", "eta_s"} & done.keys()


def test_the_terminal_shows_previews_of_a_service(service: Serving, tmp_path: Path) -> None:
    asked = ["generate", "zimage", "a red fox", "--width", "768", "--height", "768", "--steps", "100", "-o", "fox.png"]
    status, screen = in_terminal(*asked, "--server", service.url, cwd=tmp_path)
    assert status == 0, plain(screen)
    assert "\u2580" in screen
    assert "of 100, " in plain(screen)
    assert probe(tmp_path / "fox.png").width_px == 768


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

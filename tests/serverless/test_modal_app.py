"""The Modal app with the real package, over real HTTP, with the examples of the document."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import av
import pytest

from mediamill.config import Settings
from mediamill.errors import InvalidRequest
from mediamill.serverless.endpoint import MOST_AT_ONCE, Endpoint
from tests.serverless.conftest import ROOT, Started, clean_environment, started

CONTAINER = "tests/serverless/modal_container.py"
FAKE = {"MEDIAMILL_FAKE_ENGINES": "ltx-video"}
CURL = """
curl -sS -X POST "$URL" \\
  -H "Content-Type: application/json" \\
  -d '{
    "prompt": "A dog running on the beach",
    "num_frames": 24,
    "fps": 8,
    "seed": 42
  }' | jq -r '.video' | base64 -d > output.mp4
"""
PYTHON = """
import base64, os
import requests

def generate_video(prompt, **kwargs):
    response = requests.post(os.environ["URL"], json={"prompt": prompt, **kwargs})
    response.raise_for_status()
    return base64.b64decode(response.json()["video"])

open("output.mp4", "wb").write(generate_video(prompt="A cat playing piano", num_frames=24, fps=8))
"""


@asynccontextmanager
async def served(folder: Path, **settings: str) -> AsyncIterator[tuple[str, Started]]:
    """The web function's URL, and its process."""
    log = folder / "log"
    environment = clean_environment(folder, **settings)
    async with started(CONTAINER, "serve", cwd=ROOT, log=log, environment=environment) as process:
        async with asyncio.timeout(60):
            while not log.read_text().startswith("http://") or "\n" not in log.read_text():
                assert process.process.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
        yield log.read_text().splitlines()[0], process


async def post(url: str, body: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with session.post(url, data=sent, headers={"Content-Type": "application/json"}) as reply:
            return reply.status, await reply.json()


async def health(url: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/health") as reply:
        return await reply.json()


def frames_of(content: bytes) -> list[tuple[int, int]]:
    with av.open(io.BytesIO(content)) as video:
        assert video.streams.video[0].average_rate == 8
        return [(frame.width, frame.height) for frame in video.decode(video=0)]


async def ran(*command: str, cwd: Path, url: str) -> None:
    log = cwd / "client.log"
    environment = {**clean_environment(cwd), "URL": url}
    async with started(*command, cwd=cwd, log=log, environment=environment) as client:
        assert await client.process.wait() == 0, log.read_text()


async def test_the_documents_curl_makes_its_clip_with_the_real_pipeline(tmp_path: Path, tiny_ltx_video: Path) -> None:
    async with served(tmp_path, MEDIAMILL_MODEL_LTX_VIDEO=str(tiny_ltx_video)) as (url, process):
        before = await health(url)
        shell = f"import subprocess; subprocess.run(['bash', '-euo', 'pipefail', '-c', {CURL!r}], check=True)"
        await ran("-c", shell, cwd=tmp_path, url=url)
        assert frames_of((tmp_path / "output.mp4").read_bytes()) == [(512, 512)] * 24
        after = await health(url)
        await process.end()
        assert await process.left() == []
    assert before == {"status": "ok", "model": "ltx-video", "engine": "diffusers", "loaded": False, "busy": False}
    assert after == {**before, "loaded": True}


async def test_the_documents_python_and_its_shapes_of_replies_and_errors(tmp_path: Path) -> None:
    async with served(tmp_path, **FAKE) as (url, _):
        await ran("-c", PYTHON, cwd=tmp_path, url=url)
        assert frames_of((tmp_path / "output.mp4").read_bytes()) == [(512, 512)] * 24
        asked = {"prompt": "a fox", "num_frames": 5, "fps": 8, "width": 64, "height": 96, "seed": "3", "style": "x"}
        status, reply = await post(url, {**asked, "webhook_url": "https://example.com/hook"})
        assert status == 200
        assert frames_of(base64.b64decode(reply.pop("video"), validate=True)) == [(64, 96)] * 5
        warnings = reply.pop("warnings")
        assert [any(word in w for w in warnings) for word in ("'style'", "webhook_url")] == [True] * 2
        assert reply == {
            "format": "mp4",
            "num_frames": 5,
            "fps": 8,
            "width": 64,
            "height": 96,
            "prompt": "a fox",
        }
        for body, place in (
            ({"prompt": "x", "num_frames": 0}, ["body", "num_frames"]),
            ({"num_frames": 5}, ["body", "prompt"]),
            ({"prompt": "x", "response_format": "url"}, ["body", "response_format"]),
            ({"prompt": "x", "model": "sora"}, ["body", "model"]),
            ([1], ["body"]),
            (b'{"prompt', ["body"]),
        ):
            status, reply = await post(url, body)
            assert (status, reply["detail"][0]["loc"]) == (422, place), reply
        status, reply = await post(url, {"prompt": "x", "image_url": "http://10.0.0.7/a.png"})
        assert status == 422
        assert "image_url" in json.dumps(reply)


async def test_a_failure_is_500_and_lateness_is_504(tmp_path: Path) -> None:
    places = {"ltx_video": str(tmp_path / "nothing")}
    settings = Settings(
        _env_file=None, data_dir=tmp_path, model_locations={k.upper(): v for k, v in places.items()}, device="cpu"
    )
    endpoint = Endpoint(settings)
    try:
        status, reply = await endpoint.answer({"prompt": "x"})
    finally:
        await endpoint.close()
    assert status == 500
    assert reply["detail"].startswith("Video generation failed: The weights of ltx-video")
    late = Endpoint(settings.model_copy(update={"fake_engines": ("ltx-video",)}), limit_s=0.0)
    try:
        status, reply = await late.answer({"prompt": "x"})
    finally:
        await late.close()
    assert status == 504
    assert reply == {"detail": "Video generation failed: it took longer than 0 s"}


async def test_with_a_bucket_the_url_of_the_clip_comes_back(tmp_path: Path, s3_settings: Settings) -> None:
    found = s3_settings.model_copy(update={"data_dir": tmp_path, "fake_engines": ("ltx-video",)})
    endpoint = Endpoint(found)
    try:
        small = {"prompt": "x", "num_frames": 3, "width": 64, "height": 64}
        status, reply = await endpoint.answer({**small, "response_format": "url"})
        assert status == 200
        assert reply["video"].startswith(f"{found.s3_endpoint}/{found.s3_bucket}/outputs/")
        inline = await endpoint.answer(small)
        assert len(frames_of(base64.b64decode(inline[1]["video"], validate=True))) == 3
    finally:
        await endpoint.close()


async def test_a_batch_runs_in_one_warm_container_and_one_failure_loses_nothing(
    tmp_path: Path, tiny_ltx_video: Path
) -> None:
    small = {"num_frames": 2, "width": 64, "height": 64, "num_inference_steps": 2, "seed": 1}
    requests = [{**small, "prompt": "a"}, {**small}, {**small, "prompt": "c"}]
    environment = clean_environment(tmp_path, MEDIAMILL_MODEL_LTX_VIDEO=str(tiny_ltx_video))
    log = tmp_path / "log"
    command = (CONTAINER, "batch", json.dumps(requests))
    async with started(*command, cwd=ROOT, log=log, environment=environment) as process:
        assert await process.process.wait() == 0, log.read_text()
    replies = json.loads(log.read_text().splitlines()[-1])
    assert [r.get("prompt") for r in replies] == ["a", None, "c"]
    assert replies[1]["detail"][0]["loc"] == ["body", "prompt"]
    assert all(r["health"]["loaded"] for r in replies)
    assert [len(frames_of(base64.b64decode(r["video"]))) for r in (replies[0], replies[2])] == [2, 2]


@pytest.mark.parametrize("requests", [[], [{}] * (MOST_AT_ONCE + 1), "abc", {"prompt": "x"}])
async def test_a_batch_is_bounded(tmp_path: Path, requests: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"1 to {MOST_AT_ONCE}"):
        await Endpoint(Settings(_env_file=None, data_dir=tmp_path)).batch(requests)


FACTS = """
import json
from mediamill.serverless import modal_app as m
from mediamill.config import Settings
given = m.environment(m._settings)
print(json.dumps({
    "functions": sorted(m.app.registered_functions), "name": m.app.name, "given": given,
    "gpu": m._on_gpu["gpu"], "max": m._on_gpu["max_containers"], "requirements": m.requirements(),
}))
"""


async def test_the_app_is_the_documents_and_takes_the_deployers_settings_along(tmp_path: Path) -> None:
    settings = {
        "S3_BUCKET_NAME": "clips",
        "S3_ACCESS_KEY": "id",
        "S3_SECRET_KEY": "hidden",
        "HF_TOKEN": "token",
        "MEDIAMILL_FETCH_ALLOW": "10.0.0.0/8,cdn.local",
        "MEDIAMILL_MODEL_LTX_VIDEO": "Lightricks/LTX-Video-0.9.5",
        "MEDIAMILL_MODAL_GPU": "H100",
        "X_API_KEY": "stays-here",
        "DATABASE_URL": "postgresql://stays/here",
    }
    environment = clean_environment(tmp_path, **settings)
    log = tmp_path / "log"
    async with started("-W", "ignore", "-c", FACTS, cwd=tmp_path, log=log, environment=environment) as process:
        assert await process.process.wait() == 0, log.read_text()
    facts = json.loads(log.read_text().splitlines()[-1])
    assert facts["name"] == "ltx-video"
    assert facts["functions"] == ["batch_generate", "download_weights", "generate_video_endpoint"]
    assert (facts["gpu"], facts["max"]) == ("H100", 3)
    assert facts["given"] == {
        "S3_BUCKET": "clips",
        "S3_ACCESS_KEY_ID": "id",
        "S3_SECRET_ACCESS_KEY": "hidden",
        "HF_TOKEN": "token",
        "MEDIAMILL_FETCH_ALLOW": "10.0.0.0/8,cdn.local",
        "MEDIAMILL_MODEL_LTX_VIDEO": "Lightricks/LTX-Video-0.9.5",
    }
    wanted = " ".join(facts["requirements"])
    assert all(name in wanted for name in ("torch", "diffusers", "fastapi", "obstore"))
    assert not any(name in wanted for name in ("faster-whisper", "runpod", "modal", "extra"))


async def test_settings_that_cannot_work_stop_the_deployment(tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = clean_environment(tmp_path, S3_BUCKET="clips")
    command = ("-m", "modal", "deploy", "scripts/modal_ltx_video.py")
    async with started(*command, cwd=ROOT, log=log, environment=environment) as process:
        assert await process.process.wait() == 1
    assert "S3_ACCESS_KEY_ID" in log.read_text()


@pytest.mark.parametrize("place", [("scripts/modal_ltx_video.py",), ("-m", "mediamill.serverless.modal_app")])
async def test_modal_deploy_takes_the_app_up_to_the_account_it_has_not(tmp_path: Path, place: tuple[str, ...]) -> None:
    log = tmp_path / "log"
    command = ("-m", "modal", "deploy", *place)
    async with started(*command, cwd=ROOT, log=log, environment=clean_environment(tmp_path)) as process:
        assert await process.process.wait() == 1
    assert "Token missing" in log.read_text()

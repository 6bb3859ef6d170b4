"""The text-to-video contract through a real server: the document's own examples, its errors."""

from __future__ import annotations

import asyncio
import base64
import json
import shlex

import pytest
import requests

from tests.api import hands
from tests.api.queued import queued

CLIP = b"\x00\x00\x00\x18ftypmp42 not really"
CURL = """
curl -s -X POST "$URL" \\
  -H "Content-Type: application/json" \\
  -d '{
    "prompt": "A dog running on the beach",
    "num_frames": 24,
    "fps": 8,
    "seed": 42
  }'"""
TYPESCRIPT = {"prompt": "A sunset over the ocean", "num_frames": 48, "fps": 12}
POSTMAN = {"prompt": "A cat playing piano", "num_frames": 24}


def generate_video(url: str, prompt: str, **kwargs: object) -> bytes:
    """The document's Python example."""
    response = requests.post(url, json={"prompt": prompt, **kwargs}, timeout=30)
    response.raise_for_status()

    result = response.json()
    return base64.b64decode(result["video"])


async def delivered(service, calling, **finish):
    """The call's result, the job being finished while it waits."""
    calling = asyncio.ensure_future(calling)
    await queued(service)
    await hands.finish(service.deps, names=("output.mp4",), content=CLIP, **finish)
    return await calling


async def test_the_documents_command_gets_a_clip(service):
    line = CURL.replace("$URL", f"{service.base_url}/api/v1/text-to-video")

    async def curl() -> dict:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(line), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        return json.loads(out)

    body = await delivered(service, curl())
    assert list(body) == ["video", "format", "num_frames", "fps", "width", "height", "prompt"]
    assert base64.b64decode(body["video"]) == CLIP
    assert (body["format"], body["num_frames"], body["fps"], body["prompt"]) == (
        "mp4",
        hands.FACTS.frames,
        hands.FACTS.fps,
        "A dog running on the beach",
    )


async def test_the_documents_python_gets_a_clip(service):
    url = f"{service.base_url}/api/v1/text-to-video"
    call = asyncio.to_thread(generate_video, url, prompt="A cat playing piano", num_frames=24, fps=8)
    assert await delivered(service, call) == CLIP


@pytest.mark.parametrize("body", [TYPESCRIPT, POSTMAN], ids=["typescript", "postman"])
async def test_the_documents_bodies_get_a_clip(service, body):
    answer = await delivered(service, service.post("/api/v1/text-to-video", body), output={"seed": 9})
    assert answer.status == 200
    assert base64.b64decode(answer.body["video"]) == CLIP
    assert answer.body["seed"] == 9


async def test_a_url_is_given_instead_when_asked_for(service):
    call = service.post("/api/v1/text-to-video", {**POSTMAN, "response_format": "url"})
    body = (await delivered(service, call)).body
    async with service.http.get(body["video"]) as file:
        assert await file.read() == CLIP


async def test_a_failure_is_500_with_the_documents_sentence_and_the_job(service):
    calling = asyncio.ensure_future(service.post("/api/v1/text-to-video", POSTMAN))
    await queued(service)
    job_id = await hands.fail(service.deps, "out_of_memory", "Out of memory. Lower width.")
    answer = await calling
    assert answer.status == 500
    assert answer.body == {"detail": "Video generation failed: Out of memory. Lower width.", "jobId": job_id}


async def test_a_cancel_meanwhile_is_409(service):
    calling = asyncio.ensure_future(service.post("/api/v1/text-to-video", POSTMAN))
    job_id = await queued(service)
    await service.call("POST", f"/v1/jobs/{job_id}/cancel")
    answer = await calling
    assert answer.status == 409
    assert answer.body["detail"].startswith("Video generation failed: ")


async def test_wrong_fields_are_fastapis_422(service):
    answer = await service.post("/api/v1/text-to-video", {"num_frames": 0, "width": 63})
    assert answer.status == 422
    assert [d["loc"] for d in answer.body["detail"]] == [
        ["body", "prompt"],
        ["body", "num_frames"],
        ["body", "width"],
    ]
    assert answer.body["detail"][0] == {"type": "missing", "loc": ["body", "prompt"], "msg": "Field required"}
    assert (await service.get("/v1/jobs")).body["data"] == []


async def test_a_caller_may_be_answered_at_once(service):
    answer = await service.post("/api/v1/text-to-video", POSTMAN, Prefer="respond-async")
    assert answer.status == 202
    assert answer.body == {"jobId": answer.body["jobId"], "status": "queued"}
    assert answer.headers["Location"] == f"/v1/jobs/{answer.body['jobId']}"


async def test_a_retry_with_the_same_key_gets_the_same_clip(service):
    first = await delivered(service, service.post("/api/v1/text-to-video", POSTMAN, Idempotency_Key="once"))
    again = await service.post("/api/v1/text-to-video", POSTMAN, Idempotency_Key="once")
    assert again.body["video"] == first.body["video"]
    assert len((await service.get("/v1/jobs")).body["data"]) == 1


async def test_a_key_is_needed_where_one_is_configured(start):
    async with start(x_api_key="k") as service:
        answer = await service.post("/api/v1/text-to-video", POSTMAN)
        assert (answer.status, set(answer.body)) == (401, {"detail"})


async def test_health_says_what_would_run(service):
    answer = await service.get("/api/v1/text-to-video/health")
    assert answer.body == {"status": "ok", "model": "ltx-video", "engine": "diffusers"}

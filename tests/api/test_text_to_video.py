"""The text-to-video contract through a real server: the document's own examples, its errors."""

from __future__ import annotations

import asyncio
import base64

import pytest
import requests

from tests.api import hands
from tests.api.commands import shell, typescript
from tests.api.queued import queued

CLIP = b"\x00\x00\x00\x18ftypmp42 not really"
CURL = """
curl -X POST "$URL" \\
  -H "Content-Type: application/json" \\
  -d '{
    "prompt": "A dog running on the beach",
    "num_frames": 24,
    "fps": 8,
    "seed": 42
  }' | jq -r '.video' | base64 -d > output.mp4
"""
TYPESCRIPT = """
import fs from 'fs';

const ENDPOINT_URL = '$URL';

interface VideoRequest {
  prompt: string;
  num_frames?: number;
  fps?: number;
  width?: number;
  height?: number;
}

async function generateVideo(request: VideoRequest): Promise<Buffer> {
  const response = await fetch(ENDPOINT_URL, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(request),
  });

  const result = await response.json();
  return Buffer.from(result.video, 'base64');
}

// Usage
const videoBuffer = await generateVideo({
  prompt: 'A sunset over the ocean',
  num_frames: 48,
  fps: 12,
});

fs.writeFileSync('output.mp4', videoBuffer);
"""
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


async def test_the_documents_command_gets_a_clip(service, tmp_path):
    await delivered(service, shell(CURL, tmp_path, URL=f"{service.base_url}/api/v1/text-to-video"))
    assert (tmp_path / "output.mp4").read_bytes() == CLIP


async def test_the_documents_typescript_gets_a_clip(service, tmp_path):
    script = TYPESCRIPT.replace("$URL", f"{service.base_url}/api/v1/text-to-video")
    await delivered(service, typescript(script, tmp_path))
    assert (tmp_path / "output.mp4").read_bytes() == CLIP


async def test_the_documents_python_gets_a_clip(service):
    url = f"{service.base_url}/api/v1/text-to-video"
    call = asyncio.to_thread(generate_video, url, prompt="A cat playing piano", num_frames=24, fps=8)
    assert await delivered(service, call) == CLIP


async def test_the_reply_is_the_documents(service):
    answer = await delivered(service, service.post("/api/v1/text-to-video", {**POSTMAN, "seed": 1}))
    assert answer.status == 200
    body = answer.body
    assert list(body) == ["video", "format", "num_frames", "fps", "width", "height", "prompt"]
    assert base64.b64decode(body["video"]) == CLIP
    facts = (body["format"], body["num_frames"], body["fps"], body["width"], body["height"], body["prompt"])
    assert facts == ("mp4", hands.FACTS.frames, hands.FACTS.fps, 320, 180, "A cat playing piano")


async def test_a_drawn_seed_and_warnings_are_told(service):
    call = service.post("/api/v1/text-to-video", {"model": "ltx-video", **POSTMAN, "sampler": "euler"})
    body = (await delivered(service, call, output={"seed": 9})).body
    assert (body["seed"], body["warnings"]) == (9, ["Unknown field 'sampler' was ignored."])


async def test_a_url_is_given_instead_when_asked_for(service):
    call = service.post("/api/v1/text-to-video", {**POSTMAN, "response_format": "url"})
    body = (await delivered(service, call)).body
    async with service.http.get(body["video"]) as file:
        assert await file.read() == CLIP


@pytest.mark.parametrize(
    ("code", "status", "sentence"),
    [
        ("out_of_memory", 500, "Out of memory. Lower width."),
        ("deadline_exceeded", 504, "The job took longer than 1200 s."),
    ],
)
async def test_a_failure_has_the_documents_sentence_and_the_job(service, code, status, sentence):
    calling = asyncio.ensure_future(service.post("/api/v1/text-to-video", POSTMAN))
    await queued(service)
    job_id = await hands.fail(service.deps, code, sentence)
    answer = await calling
    assert answer.status == status
    assert answer.body == {"detail": f"Video generation failed: {sentence}", "jobId": job_id}


async def test_a_job_goes_on_when_its_caller_leaves(service):
    calling = asyncio.ensure_future(service.post("/api/v1/text-to-video", POSTMAN))
    job_id = await queued(service)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    await hands.finish(service.deps, names=("output.mp4",), content=CLIP)
    assert (await service.get(f"/api/v1/generate/{job_id}")).body["status"] == "completed"


async def test_a_caller_with_too_many_unfinished_jobs_is_told_when_to_come_again(start):
    async with start(max_unfinished=1) as service:
        await service.post("/api/v1/text-to-video", POSTMAN, Prefer="respond-async")
        refused = await service.post("/api/v1/text-to-video", POSTMAN)
        assert refused.status == 429
        assert int(refused.headers["Retry-After"]) > 0
        assert refused.body["detail"].startswith("This API key may have 1 unfinished")


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


async def test_everything_that_is_wrong_is_told_at_once(service):
    refused = await service.post("/api/v1/text-to-video", {"width": 65, "webhook_url": "ftp://x"})
    assert refused.status == 422
    assert {d["loc"][-1] for d in refused.body["detail"]} == {"prompt", "width", "webhook_url"}


async def test_a_caller_may_be_answered_at_once(service):
    answer = await service.post("/api/v1/text-to-video", POSTMAN, Prefer="respond-async")
    assert answer.status == 202
    assert answer.body == {"jobId": answer.body["jobId"], "status": "queued"}
    assert answer.headers["Location"] == f"/v1/jobs/{answer.body['jobId']}"


async def test_a_retry_with_the_same_key_gets_the_same_clip(service):
    first = await delivered(service, service.post("/api/v1/text-to-video", POSTMAN, Idempotency_Key="once"))
    again = await service.post("/api/v1/text-to-video", POSTMAN, Idempotency_Key="once")
    assert again.body == first.body
    other = await service.post("/api/v1/text-to-video", {"prompt": "another"}, Idempotency_Key="once")
    assert other.status == 409
    assert set(other.body) == {"detail"}
    assert len((await service.get("/v1/jobs")).body["data"]) == 1


async def test_a_key_is_needed_where_one_is_configured(start):
    async with start(x_api_key="k") as service:
        answer = await service.post("/api/v1/text-to-video", POSTMAN)
        assert (answer.status, set(answer.body)) == (401, {"detail"})


async def test_the_documents_table_is_published(service):
    document = (await service.get("/openapi.json")).body
    operation = document["paths"]["/api/v1/text-to-video"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    fields = schema["properties"]
    assert schema["required"] == ["prompt"]
    defaults = {"negative_prompt": "", "num_frames": 24, "fps": 8, "width": 512, "height": 512, "seed": None}
    defaults |= {"num_inference_steps": 50, "guidance_scale": 7.5}
    assert {name: fields[name].get("default") for name in defaults} == defaults
    ranges = {"num_frames": (1, 257), "fps": (1, 60), "width": (64, 1920), "height": (64, 1920)}
    ranges |= {"num_inference_steps": (1, 100), "guidance_scale": (0, 20)}
    assert {name: (fields[name]["minimum"], fields[name]["maximum"]) for name in ranges} == ranges
    assert {"401", "409", "422", "429", "500", "503", "504"} <= operation["responses"].keys()


async def test_health_says_what_would_run(service):
    answer = await service.get("/api/v1/text-to-video/health")
    assert answer.body == {"status": "ok", "model": "ltx-video", "engine": "diffusers"}

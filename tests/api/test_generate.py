"""The generation contract through a real server: the document's own commands, its states, bulk, cancel."""

from __future__ import annotations

import asyncio
import json
import shlex
from typing import Any

import pytest

from tests.api import hands
from tests.api.queued import queued

KEY = "your-api-key"
CREATE = """
curl -s -X POST "$BASE/api/v1/generate" \\
  -H "Authorization: Bearer $KEY" \\
  -H "Content-Type: application/json" \\
  -d '{
    "model": "ltx2",
    "imageUrl": "https://example.com/image.jpg",
    "prompt": "A cinematic scene",
    "duration": 5
  }'"""
POLL = """
curl -s "$BASE/api/v1/generate/gen_abc123" \\
  -H "Authorization: Bearer $KEY"
"""
SUNSET = {"model": "zimage", "prompt": "A beautiful sunset over mountains", "width": 1024, "height": 1024}
"""The body of the document's TypeScript example."""


async def curl(line: str, base_url: str) -> dict[str, Any]:
    """Run a command of the document as a user would; its output as JSON."""
    arguments = shlex.split(line.replace("$BASE", base_url).replace("$KEY", KEY))
    process = await asyncio.create_subprocess_exec(
        *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return json.loads(out)


async def test_the_documents_commands_create_and_poll_a_job(start):
    async with start(x_api_key=KEY, fake_engines=("all",)) as service:
        created = await curl(CREATE, service.base_url)
        assert created["success"] is True
        assert (created["model"], created["status"]) == ("ltx2", "queued")
        assert created["message"] == "Job queued. Poll GET /api/v1/generate/{jobId} for status."
        poll = POLL.replace("gen_abc123", created["jobId"])
        assert await curl(poll, service.base_url) | {"createdAt": "", "position": 0} == {
            "status": "queued",
            "jobId": created["jobId"],
            "model": "ltx2",
            "position": 0,
            "createdAt": "",
        }
        taken = await hands.take(service.deps)
        await service.deps.store.beat(taken.job.id, taken.attempt, progress=0.5)
        running = await curl(poll, service.base_url)
        assert (running["status"], running["progress"]) == ("processing", 50)
        assert running["startedAt"] >= running["createdAt"]


async def test_a_typescript_client_gets_its_result(start):
    """What the document's loop reads: `jobId`, then `status`, `result.url` or `error`."""
    async with start(x_api_key=KEY) as service:
        headers = {"Authorization": f"Bearer {KEY}"}
        created = await service.call("POST", "/api/v1/generate", json=SUNSET, headers=headers)
        assert created.status == 202
        job_id = created.body["jobId"]
        await hands.finish(service.deps, names=("output.png",), media_type="image/png", content=b"a picture")
        status = (await service.call("GET", f"/api/v1/generate/{job_id}", headers=headers)).body
        assert list(status) == [
            "status",
            "jobId",
            "model",
            "result",
            "processingTimeMs",
            "createdAt",
            "completedAt",
        ]
        assert status["status"] == "completed"
        result = status["result"]
        assert (result["contentType"], result["fileSizeBytes"]) == ("image/png", 9)
        assert "durationMs" not in result
        assert f"/outputs/{job_id}/output.png" in result["url"]
        async with service.http.get(result["url"]) as file:
            assert await file.read() == b"a picture"


async def test_a_failed_and_a_cancelled_job_are_failed_to_pollers(service):
    first = (await service.post("/api/v1/generate", SUNSET)).body["jobId"]
    await hands.fail(service.deps, "out_of_memory", "Inference failed: GPU out of memory")
    body = (await service.get(f"/api/v1/generate/{first}")).body
    assert list(body) == ["status", "jobId", "model", "error", "createdAt", "failedAt"]
    assert (body["status"], body["error"]) == ("failed", "Inference failed: GPU out of memory")

    second = (await service.post("/api/v1/generate", SUNSET)).body["jobId"]
    cancelled = await service.call("DELETE", f"/api/v1/generate/{second}")
    assert cancelled.status == 200
    assert (cancelled.body["success"], cancelled.body["status"]) == (True, "failed")
    assert cancelled.body["error"] == "Job was cancelled"
    again = await service.call("DELETE", f"/api/v1/generate/{first}")
    assert again.body["error"] == "Inference failed: GPU out of memory"


@pytest.mark.parametrize(
    ("body", "status", "path"),
    [
        ({}, 400, "model"),
        ({"model": "sora", "prompt": "x"}, 400, "model"),
        ({"model": "zimage"}, 400, "prompt"),
        ({"model": "zimage", "prompt": "x", "width": 64}, 400, "width"),
        ({"model": "ltx2", "prompt": "x"}, 400, "imageUrl"),
        ({"model": "zimage", "prompt": "x", "imageUrl": "http://127.0.0.1/x.png"}, 400, "imageUrl"),
        ({"model": "zimage", "prompt": "x", "imageUrl": "ftp://example.com/x.png"}, 400, "imageUrl"),
        ({"model": "ltx-video", "prompt": "x", "num_frames": 999}, 400, "num_frames"),
    ],
)
async def test_a_wrong_request_is_refused_before_anything_is_queued(service, body, status, path):
    answer = await service.post("/api/v1/generate", body)
    assert answer.status == status
    assert answer.body["success"] is False
    assert answer.body["error"]
    assert [d["path"] for d in answer.body["details"]] == [path]
    assert (await service.get("/v1/jobs")).body["data"] == []


@pytest.mark.parametrize(
    "body",
    [
        {"model": "ltx2", "imageUrl": "https://example.com/i.jpg"},
        {"model": "longcat", "audioUrl": "https://example.com/a.wav", "imageUrl": "https://example.com/i.jpg"},
        {"model": "wav2lip", "audioUrl": "https://example.com/a.wav", "videoUrl": "https://example.com/v.mp4"},
    ],
)
async def test_what_does_not_exist_yet_is_501_with_a_sentence(service, body):
    answer = await service.post("/api/v1/generate", body)
    assert answer.status == 501
    assert answer.body["success"] is False
    assert body["model"] in answer.body["error"]


async def test_errors_around_the_handler_have_the_contracts_shape(start):
    async with start(x_api_key=KEY) as service:
        refused = await service.post("/api/v1/generate", SUNSET)
        assert (refused.status, refused.body["success"]) == (401, False)
        unknown = await service.get("/api/v1/generate/gen_abc123", X_API_Key=KEY)
        assert (unknown.status, unknown.body["success"]) == (404, False)
        wrong = await service.call("PUT", "/api/v1/generate", headers={"X-API-Key": KEY})
        assert (wrong.status, wrong.body["success"]) == (405, False)


async def test_warnings_and_a_replay_are_told(service):
    body = {**SUNSET, "sampler": "euler", "negativePrompt": "blur"}
    first = await service.post("/api/v1/generate", body, Idempotency_Key="k1")
    assert first.body["warnings"][0] == "Unknown field 'sampler' was ignored."
    assert "negative_prompt" in first.body["warnings"][1]
    replay = await service.post("/api/v1/generate", body, Idempotency_Key="k1")
    assert replay.body == first.body
    other = await service.post("/api/v1/generate", SUNSET, Idempotency_Key="k1")
    assert (other.status, other.body["success"]) == (409, False)


async def test_a_caller_may_wait_for_the_end(service):
    waiting = asyncio.ensure_future(service.post("/api/v1/generate?wait=20", SUNSET))
    await queued(service)
    await hands.finish(service.deps, names=("output.png",), media_type="image/png")
    answer = await waiting
    assert (answer.status, answer.body["status"]) == (200, "completed")
    at_once = await service.post("/api/v1/generate?wait=0.05", SUNSET)
    assert (at_once.status, at_once.body["status"]) == (202, "queued")


async def test_a_bulk_is_queued_polled_and_ends_as_what_its_jobs_became(service):
    jobs = [SUNSET, {"model": "ltx-video", "prompt": "a cat"}]
    made = await service.post("/api/v1/generate/bulk", {"jobs": jobs})
    assert made.status == 202
    assert list(made.body) == ["success", "batchId", "jobs"]
    assert [(j["index"], j["status"]) for j in made.body["jobs"]] == [(0, "queued"), (1, "queued")]
    path = f"/api/v1/generate/bulk/{made.body['batchId']}"
    assert made.headers["Location"] == path
    assert (await service.get(path)).body["status"] == "pending"
    await hands.finish(service.deps, names=("output.png",), media_type="image/png")
    assert (await service.get(path)).body["status"] == "processing"
    await hands.fail(service.deps, "engine_failed", "it broke")
    done = (await service.get(path)).body
    assert (done["status"], done["total"], done["completed"], done["failed"]) == ("partial_failure", 2, 1, 1)
    assert sorted(j["status"] for j in done["jobs"]) == ["completed", "failed"]
    assert [j["jobId"] for j in done["jobs"]] == [j["jobId"] for j in made.body["jobs"]]
    assert (await service.get("/api/v1/generate/bulk/nope")).status == 404


async def test_a_bulk_with_one_wrong_job_queues_none(service):
    wrong = await service.post("/api/v1/generate/bulk", {"jobs": [SUNSET, {**SUNSET, "steps": 1}]})
    assert wrong.status == 400
    assert [d["path"] for d in wrong.body["details"]] == ["jobs.1.steps"]
    late = await service.post(
        "/api/v1/generate/bulk", {"jobs": [SUNSET, {"model": "ltx-video", "prompt": "x", "width": 65}]}
    )
    assert late.status == 400
    assert "jobs.1" in late.body["error"]
    assert (await service.get("/v1/jobs")).body["data"] == []


async def test_a_bulk_is_made_once_for_a_key(service):
    body = {"jobs": [SUNSET, SUNSET]}
    first = await service.post("/api/v1/generate/bulk", body, Idempotency_Key="bulk-1")
    again = await service.post("/api/v1/generate/bulk", body, Idempotency_Key="bulk-1")
    assert again.body == first.body
    assert len((await service.get("/v1/jobs")).body["data"]) == 2


async def test_the_schema_of_each_model_is_published(service):
    document = (await service.get("/openapi.json")).body
    schema = document["paths"]["/api/v1/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["discriminator"] == {"propertyName": "model"}
    by_model = {s["properties"]["model"]["const"]: s for s in schema["oneOf"]}
    assert sorted(by_model) == ["longcat", "ltx2", "wav2lip", "zimage"]
    width = by_model["ltx2"]["properties"]["width"]
    assert (width["minimum"], width["maximum"], width["default"]) == (512, 1920, 1024)
    assert by_model["zimage"]["required"] == ["model", "prompt"]
    assert "501" in document["paths"]["/api/v1/generate"]["post"]["responses"]

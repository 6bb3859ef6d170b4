"""The generation contract through a real server: the document's own commands, its states, bulk, cancel."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from mediamill import catalog
from tests.api import hands
from tests.api.commands import shell, typescript
from tests.api.queued import queued

KEY = "your-api-key"
CREATE = """
curl -X POST "$BASE/api/v1/generate" \\
  -H "Authorization: Bearer $KEY" \\
  -H "Content-Type: application/json" \\
  -d '{
    "model": "ltx2",
    "imageUrl": "https://example.com/image.jpg",
    "prompt": "A cinematic scene",
    "duration": 5
  }'"""
POLL = """
curl "$BASE/api/v1/generate/gen_abc123" \\
  -H "Authorization: Bearer $KEY"
"""
TYPESCRIPT = """
const API_URL = '$BASE';
const API_KEY = 'your-api-key';

// Create job
const response = await fetch(`${API_URL}/api/v1/generate`, {
  method: 'POST',
  headers: {
    'Authorization': `Bearer ${API_KEY}`,
    'Content-Type': 'application/json',
  },
  body: JSON.stringify({
    model: 'zimage',
    prompt: 'A beautiful sunset over mountains',
    width: 1024,
    height: 1024,
  }),
});

const { jobId } = await response.json();

// Poll for completion
const pollForResult = async (jobId: string): Promise<string> => {
  while (true) {
    const status = await fetch(`${API_URL}/api/v1/generate/${jobId}`, {
      headers: { 'Authorization': `Bearer ${API_KEY}` },
    }).then(r => r.json());

    if (status.status === 'completed') {
      return status.result.url;
    }
    if (status.status === 'failed') {
      throw new Error(status.error);
    }

    await new Promise(r => setTimeout(r, 2000)); // Poll every 2s
  }
};

const resultUrl = await pollForResult(jobId);
console.log('Generated image:', resultUrl);
"""
SUNSET = {"model": "zimage", "prompt": "A beautiful sunset over mountains", "width": 1024, "height": 1024}
"""The body of the document's TypeScript example."""


async def test_the_documents_commands_create_and_poll_a_job(start, tmp_path):
    async with start(x_api_key=KEY, fake_engines=("all",)) as service:
        around = {"BASE": service.base_url, "KEY": KEY}
        created = json.loads(await shell(CREATE, tmp_path, **around))
        assert list(created) == ["success", "jobId", "model", "status", "message"]
        assert (created["success"], created["model"], created["status"]) == (True, "ltx2", "queued")
        assert created["message"] == "Job queued. Poll GET /api/v1/generate/{jobId} for status."
        poll = POLL.replace("gen_abc123", created["jobId"])
        assert json.loads(await shell(poll, tmp_path, **around)) | {"createdAt": "", "position": 0} == {
            "status": "queued",
            "jobId": created["jobId"],
            "model": "ltx2",
            "position": 0,
            "createdAt": "",
        }
        taken = await hands.take(service.deps)
        await service.deps.store.beat(taken.job.id, taken.attempt, progress=0.5)
        running = json.loads(await shell(poll, tmp_path, **around))
        assert list(running) == ["status", "jobId", "model", "progress", "startedAt", "createdAt"]
        assert (running["status"], running["progress"]) == ("processing", 50)
        assert running["startedAt"] >= running["createdAt"]


async def test_the_documents_typescript_gets_its_result(start, tmp_path):
    async with start(x_api_key=KEY) as service:
        running = asyncio.ensure_future(typescript(TYPESCRIPT.replace("$BASE", service.base_url), tmp_path))
        await queued(service, X_API_Key=KEY)
        job_id = await hands.finish(service.deps, names=("output.png",), media_type="image/png")
        assert await running == f"Generated image: {service.base_url}/files/outputs/{job_id}/output.png\n"


async def test_the_documents_typescript_throws_what_failed(start, tmp_path):
    async with start(x_api_key=KEY) as service:
        running = asyncio.ensure_future(typescript(TYPESCRIPT.replace("$BASE", service.base_url), tmp_path))
        await queued(service, X_API_Key=KEY)
        await hands.fail(service.deps, "out_of_memory", "Inference failed: GPU out of memory")
        with pytest.raises(AssertionError, match="Error: Inference failed: GPU out of memory"):
            await running


async def test_a_finished_picture_is_told_as_documented(service):
    job_id = (await service.post("/api/v1/generate", SUNSET)).body["jobId"]
    await hands.finish(service.deps, names=("output.png",), media_type="image/png", content=b"a picture")
    status = (await service.get(f"/api/v1/generate/{job_id}")).body
    assert list(status) == ["status", "jobId", "model", "result", "processingTimeMs", "createdAt", "completedAt"]
    result = status["result"]
    assert (result["contentType"], result["fileSizeBytes"]) == ("image/png", 9)
    assert "durationMs" not in result
    async with service.http.get(result["url"]) as file:
        assert await file.read() == b"a picture"


async def test_a_running_job_shows_its_preview(service, tmp_path):
    job_id = (await service.post("/api/v1/generate", SUNSET)).body["jobId"]
    taken = await hands.take(service.deps)
    key = f"previews/{job_id}/preview-2.png"
    (tmp_path / "look").write_bytes(b"a look")
    await service.deps.storage.put(key, tmp_path / "look", media_type="image/png")
    await service.deps.store.beat(job_id, taken.attempt, progress=0.3, eta_s=30, preview=key)
    shown = (await service.get(f"/api/v1/generate/{job_id}")).body["previewUrl"]
    native = (await service.get(f"/v1/jobs/{job_id}")).body
    assert native["preview_url"] == shown
    assert 0 < native["eta_s"] <= 30
    async with service.http.get(f"{service.base_url}/v1/jobs/{job_id}/events") as events:
        async for line in events.content:
            if line.startswith(b"data:"):
                assert json.loads(line.removeprefix(b"data:"))["preview_url"] == shown
                break
    async with service.http.get(shown) as file:
        assert await file.read() == b"a look"


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
        ({"model": "zimage", "prompt": "x", "webhookUrl": "http://10.0.0.1/x"}, 400, "webhookUrl"),
        ({"model": "ltx-video", "prompt": "x", "webhookUrl": "http://10.0.0.1/x"}, 400, "webhookUrl"),
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
    ("body", "paths"),
    [
        ({"model": "zimage", "width": 1, "webhookUrl": "ftp://x"}, {"prompt", "width", "webhookUrl"}),
        ({"model": "ltx-video", "width": 1, "webhookUrl": "no url"}, {"prompt", "width", "webhookUrl"}),
        ({**SUNSET, "imageUrl": "ftp://x", "webhookUrl": "ftp://x"}, {"imageUrl", "webhookUrl"}),
    ],
)
async def test_everything_that_is_wrong_is_told_at_once(service, body, paths):
    refused = await service.post("/api/v1/generate", body)
    assert (refused.status, {d["path"] for d in refused.body["details"]}) == (400, paths)


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
    assert "negativePrompt" in first.body["warnings"][1]
    replay = await service.post("/api/v1/generate", body, Idempotency_Key="k1")
    assert replay.body == first.body
    other = await service.post("/api/v1/generate", SUNSET, Idempotency_Key="k1")
    assert (other.status, other.body["success"]) == (409, False)


async def test_a_caller_may_wait_for_the_end(service):
    waiting = asyncio.ensure_future(service.post("/api/v1/generate?wait=20", {**SUNSET, "sampler": "euler"}))
    await queued(service)
    await hands.finish(service.deps, names=("output.png",), media_type="image/png")
    answer = await waiting
    assert (answer.status, answer.body["status"]) == (200, "completed")
    assert answer.body["warnings"] == ["Unknown field 'sampler' was ignored."]
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
    private = {**SUNSET, "imageUrl": "http://10.0.0.1/x.png"}
    several = await service.post("/api/v1/generate/bulk", {"jobs": [private, SUNSET, private]})
    assert [d["path"] for d in several.body["details"]] == ["jobs.0.imageUrl", "jobs.2.imageUrl"]
    text = base64.b64encode(b"no picture at all" * 9).decode()
    damaged = await service.post("/api/v1/generate/bulk", {"jobs": [SUNSET, {**SUNSET, "imageUrl": text}]})
    assert (damaged.status, damaged.body["error"][:17]) == (422, "jobs.1: imageUrl:")
    missing = {"model": "wav2lip", "audioUrl": "https://example.com/a.wav", "videoUrl": "https://example.com/v.mp4"}
    unknown = await service.post("/api/v1/generate/bulk", {"jobs": [SUNSET, missing]})
    assert (unknown.status, unknown.body["error"].partition(" ")[0]) == (501, "jobs.1:")
    assert (await service.get("/v1/jobs")).body["data"] == []
    assert [key async for key, _ in service.deps.storage.list("uploads")] == []


async def test_an_input_that_cannot_be_taken_is_named_as_it_was_sent(service):
    text = base64.b64encode(b"no picture at all" * 9).decode()
    refused = await service.post("/api/v1/generate", {**SUNSET, "imageUrl": text})
    assert (refused.status, refused.body["error"].partition(" ")[0]) == (422, "imageUrl:")


async def test_a_bulk_tells_the_warnings_of_each_job(service):
    made = await service.post("/api/v1/generate/bulk", {"jobs": [SUNSET, {**SUNSET, "guidanceScale": 5, "x": 1}]})
    first, second = made.body["jobs"]
    assert "warnings" not in made.body
    assert "warnings" not in first
    assert second["warnings"] == [
        "Unknown field 'x' was ignored.",
        "guidanceScale above 0 is for the base model; Tongyi-MAI/Z-Image-Turbo wants 0.",
    ]


async def test_a_bulk_names_fields_it_does_not_know(service):
    body = {"jobs": [SUNSET], "webhook": "https://example.com/hook", "webhook_url": None}
    made = await service.post("/api/v1/generate/bulk", body, Idempotency_Key="b1")
    assert made.body["warnings"] == ["Unknown field 'webhook' was ignored."]
    again = await service.post("/api/v1/generate/bulk", body, Idempotency_Key="b1")
    assert again.body == made.body


async def test_nobody_is_told_of_a_bulk_inside_the_network(service):
    refused = await service.post("/api/v1/generate/bulk", {"jobs": [SUNSET], "webhookUrl": "http://169.254.169.254/"})
    assert refused.status == 400
    assert [d["path"] for d in refused.body["details"]] == ["webhookUrl"]
    assert (await service.get("/v1/jobs")).body["data"] == []


async def test_a_bulk_is_made_once_for_a_key(start):
    body = {"jobs": [SUNSET, {**SUNSET, "x": 1}]}
    async with start(max_unfinished=2) as service:
        too_many = await service.post("/api/v1/generate/bulk", {"jobs": [SUNSET] * 3})
        assert (too_many.status, (await service.get("/v1/jobs")).body["data"]) == (429, [])
        first = await service.post("/api/v1/generate/bulk", body, Idempotency_Key="bulk-1")
        again = await service.post("/api/v1/generate/bulk", body, Idempotency_Key="bulk-1")
        assert (again.status, again.body) == (202, first.body)
        assert again.headers["Idempotency-Replayed"] == "true"
        assert again.headers["Location"] == first.headers["Location"]
        assert len((await service.get("/v1/jobs")).body["data"]) == 2
        other = await service.post("/api/v1/generate/bulk", {"jobs": [SUNSET]}, Idempotency_Key="bulk-1")
        assert (other.status, other.body["success"]) == (409, False)
        more = await service.post("/api/v1/generate/bulk", body)
        assert (more.status, more.body["success"]) == (429, False)
        assert int(more.headers["Retry-After"]) > 0


SCHEMA = {
    "ltx2": {
        "imageUrl": {},
        "prompt": {"maxLength": 5000},
        "duration": {"default": 5, "minimum": 3, "maximum": 10},
        "width": {"default": 1024, "minimum": 512, "maximum": 1920},
        "height": {"default": 576, "minimum": 512, "maximum": 1080},
        "numInferenceSteps": {"default": 30, "minimum": 10, "maximum": 50},
        "guidanceScale": {"default": 7.5, "minimum": 1, "maximum": 15},
        "fps": {"default": 24, "minimum": 12, "maximum": 30},
        "webhookUrl": {},
    },
    "zimage": {
        "prompt": {"minLength": 1, "maxLength": 1000},
        "negativePrompt": {"maxLength": 500},
        "width": {"default": 1024, "minimum": 512, "maximum": 2048},
        "height": {"default": 1024, "minimum": 512, "maximum": 2048},
        "steps": {"default": 9, "minimum": 8, "maximum": 100},
        "guidanceScale": {"default": 0, "minimum": 0, "maximum": 20},
        "seed": {"minimum": 0},
        "webhookUrl": {},
    },
    "longcat": {
        "audioUrl": {},
        "imageUrl": {},
        "prompt": {"maxLength": 5000},
        "mode": {"default": "ai2v", "enum": ["at2v", "ai2v"]},
        "resolution": {"default": "480P", "enum": ["480P", "720P"]},
        "audioCfg": {"default": 4.0, "minimum": 1, "maximum": 10},
        "numSegments": {"default": 1, "minimum": 1, "maximum": 10},
        "webhookUrl": {},
    },
    "wav2lip": {
        "videoUrl": {},
        "audioUrl": {},
        "padTop": {"default": 0, "minimum": 0, "maximum": 50},
        "padBottom": {"default": 10, "minimum": 0, "maximum": 50},
        "padLeft": {"default": 0, "minimum": 0, "maximum": 50},
        "padRight": {"default": 0, "minimum": 0, "maximum": 50},
        "webhookUrl": {},
    },
}
"""The document's tables."""


async def test_the_documents_tables_are_published(service):
    document = (await service.get("/openapi.json")).body
    operation = document["paths"]["/api/v1/generate"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["discriminator"] == {"propertyName": "model"}
    by_model = {s["properties"]["model"]["const"]: s for s in schema["oneOf"]}
    assert sorted(by_model) == sorted(catalog.load())
    for model, fields in SCHEMA.items():
        properties = by_model[model]["properties"]
        for name, facts in fields.items():
            branches = [properties[name], *properties[name].get("anyOf", [])]
            found = {key: next((b[key] for b in branches if key in b), None) for key in facts}
            assert found == facts, (model, name)
    required = {model: by_model[model]["required"] for model in SCHEMA}
    assert required == {
        "ltx2": ["model"],  # and imageUrl, unless the mode is t2v
        "zimage": ["model", "prompt"],
        "longcat": ["model", "audioUrl"],
        "wav2lip": ["model", "videoUrl", "audioUrl"],
    }
    assert {"num_frames", "webhookUrl"} <= by_model["ltx-video"]["properties"].keys()
    assert {"400", "401", "404", "409", "413", "415", "429", "500", "501", "503"} <= operation["responses"].keys()

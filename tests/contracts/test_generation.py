"""The generation contract: requests to catalog input, jobs to the document's shapes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mediamill import catalog
from mediamill.contracts import generation
from mediamill.errors import Busy, InvalidRequest, MediamillError, UnsupportedMedia
from mediamill.model import Artifact, Job, JobError, MediaFacts, Status

AT = datetime(2026, 1, 21, 21, 0, 0, tzinfo=UTC)
VIDEO = Artifact(
    "output.mp4",
    "outputs/gen_abc123/output.mp4",
    "video/mp4",
    12345678,
    "0" * 64,
    MediaFacts(width_px=1024, height_px=576, duration_s=5.0, fps=24.0, frames=120, video_codec="h264"),
)
PICTURE = Artifact("output.png", "k", "image/png", 99, "0" * 64, MediaFacts(width_px=512, height_px=768))
URLS = {"output.mp4": "https://pub-xxx.r2.dev/outputs/gen_abc123/output.mp4", "output.png": "https://x/output.png"}


def job(status: Status, **changes: Any) -> Job:
    plain = Job(id="gen_abc123", model="ltx2", status=status, input={"seed": 1}, created_at=AT, contract="generation")
    return replace(plain, **changes)


QUEUED = job(Status.QUEUED)
RUNNING = job(Status.RUNNING, progress=0.5, started_at=AT + timedelta(seconds=5))
DONE = job(
    Status.SUCCEEDED,
    progress=1.0,
    started_at=AT + timedelta(seconds=5),
    finished_at=AT + timedelta(seconds=45),
    artifacts=(VIDEO,),
)
OUT_OF_MEMORY = JobError("out_of_memory", "Inference failed: GPU out of memory")
FAILED = job(Status.FAILED, finished_at=AT + timedelta(seconds=30), error=OUT_OF_MEMORY)

DOCUMENTED = {
    "queued": """{
  "status": "queued",
  "jobId": "gen_abc123",
  "model": "ltx2",
  "createdAt": "2026-01-21T21:00:00.000Z"
}""",
    "processing": """{
  "status": "processing",
  "jobId": "gen_abc123",
  "model": "ltx2",
  "progress": 50,
  "startedAt": "2026-01-21T21:00:05.000Z",
  "createdAt": "2026-01-21T21:00:00.000Z"
}""",
    "completed": """{
  "status": "completed",
  "jobId": "gen_abc123",
  "model": "ltx2",
  "result": {
    "url": "https://pub-xxx.r2.dev/outputs/gen_abc123/output.mp4",
    "contentType": "video/mp4",
    "fileSizeBytes": 12345678,
    "durationMs": 5000,
    "width": 1024,
    "height": 576
  },
  "processingTimeMs": 45000,
  "createdAt": "2026-01-21T21:00:00.000Z",
  "completedAt": "2026-01-21T21:00:45.000Z"
}""",
    "failed": """{
  "status": "failed",
  "jobId": "gen_abc123",
  "model": "ltx2",
  "error": "Inference failed: GPU out of memory",
  "createdAt": "2026-01-21T21:00:00.000Z",
  "failedAt": "2026-01-21T21:00:30.000Z"
}""",
    "accepted": """{
  "success": true,
  "jobId": "gen_abc123",
  "model": "ltx2",
  "status": "queued",
  "message": "Job queued. Poll GET /api/v1/generate/{jobId} for status."
}""",
    "webhook of a success": """{
  "jobId": "gen_abc123",
  "status": "completed",
  "result": {
    "url": "https://pub-xxx.r2.dev/outputs/gen_abc123/output.mp4",
    "fileSizeBytes": 12345678,
    "processingTimeMs": 45000
  }
}""",
    "webhook of a failure": """{
  "jobId": "gen_abc123",
  "status": "failed",
  "error": "Inference failed: GPU out of memory"
}""",
}


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("queued", generation.reply(QUEUED, {})),
        ("processing", generation.reply(RUNNING, {})),
        ("completed", generation.reply(DONE, URLS)),
        ("failed", generation.reply(FAILED, {})),
        ("accepted", generation.accepted(QUEUED)),
        ("webhook of a success", generation.webhook(DONE, URLS)),
        ("webhook of a failure", generation.webhook(FAILED, {})),
    ],
)
def test_every_body_is_the_documents_byte_for_byte(name: str, made: dict[str, Any]) -> None:
    assert json.dumps(made, indent=2) == DOCUMENTED[name]


def test_a_picture_has_no_duration_and_a_drawn_seed_is_told() -> None:
    done = replace(DONE, model="zimage", input={"seed": None}, artifacts=(PICTURE,), output={"seed": 77})
    result = generation.reply(done, URLS)["result"]
    assert result == {
        "url": "https://x/output.png",
        "contentType": "image/png",
        "fileSizeBytes": 99,
        "width": 512,
        "height": 768,
        "seed": 77,
    }


def test_a_seed_that_was_asked_for_is_not_told_again() -> None:
    assert "seed" not in generation.reply(replace(DONE, output={"seed": 1}), URLS)["result"]


def test_an_entry_of_several_files_tells_them_all() -> None:
    result = generation.reply(replace(DONE, model="img2vid", artifacts=(VIDEO, PICTURE)), URLS)["result"]
    assert result["url"] == URLS["output.mp4"]
    assert [(f["name"], f["contentType"]) for f in result["files"]] == [
        ("output.mp4", "video/mp4"),
        ("output.png", "image/png"),
    ]


def test_a_preview_is_told_where_there_is_one() -> None:
    running = replace(RUNNING, preview="previews/g/preview-2.png")
    body = generation.reply(running, {"previews/g/preview-2.png": "https://x/preview-2.png"})
    assert body == generation.reply(RUNNING, {}) | {"previewUrl": "https://x/preview-2.png"}


def test_warnings_name_fields_as_this_contract_spells_them() -> None:
    warned = replace(QUEUED, model="zimage", warnings=("negative_prompt has no effect while guidance_scale is 0.",))
    told = ["negativePrompt has no effect while guidanceScale is 0."]
    assert generation.accepted(warned)["warnings"] == told
    assert generation.bulk_accepted("b", [QUEUED, warned])["jobs"] == [
        {"index": 0, "jobId": "gen_abc123", "status": "queued"},
        {"index": 1, "jobId": "gen_abc123", "status": "queued", "warnings": told},
    ]


@pytest.mark.parametrize(
    ("model", "message", "told"),
    [
        ("zimage", "image_url: host answered HTTP 404.", "imageUrl: host answered HTTP 404."),
        ("ltx2", "Lower num_inference_steps.", "Lower numInferenceSteps."),
        ("ltx-video", "image_url: host answered HTTP 404.", "image_url: host answered HTTP 404."),
    ],
)
def test_a_failure_names_fields_as_this_contract_spells_them(model: str, message: str, told: str) -> None:
    failed = replace(FAILED, model=model, error=JobError("input_unreachable", message))
    assert generation.reply(failed, {})["error"] == generation.webhook(failed, {})["error"] == told


def test_a_position_may_be_told_while_waiting() -> None:
    assert generation.reply(replace(QUEUED, position=3), {})["position"] == 3


@pytest.mark.parametrize(
    ("ended", "sentence"),
    [
        (job(Status.CANCELLED, finished_at=AT, error=JobError("cancelled", "x")), "Job was cancelled"),
        (
            job(
                Status.FAILED,
                started_at=AT + timedelta(seconds=9),
                finished_at=AT + timedelta(seconds=1209),
                error=JobError("deadline_exceeded", "x"),
            ),
            "Job timed out after 1200 s",
        ),
        (
            job(Status.FAILED, finished_at=AT + timedelta(seconds=60), error=JobError("deadline_exceeded", "x")),
            "Job timed out after 60 s",
        ),
    ],
)
def test_pollers_know_failed_only(ended: Job, sentence: str) -> None:
    body = generation.reply(ended, {})
    assert (body["status"], body["error"]) == ("failed", sentence)
    assert generation.webhook(ended, {}) == {"jobId": "gen_abc123", "status": "failed", "error": sentence}


REQUESTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ltx2": (
        {
            "model": "ltx2",
            "imageUrl": "https://example.com/image.jpg",
            "prompt": "A cinematic video of the scene",
            "duration": 5,
            "width": 1024,
            "height": 576,
            "numInferenceSteps": 30,
            "guidanceScale": 7.5,
            "fps": 24,
            "webhookUrl": "https://your-app.com/webhook",
        },
        {
            "mode": "i2v",
            "image_url": "https://example.com/image.jpg",
            "prompt": "A cinematic video of the scene",
            "num_frames": 120,
            "width": 1024,
            "height": 576,
            "steps": 30,
            "guidance": 7.5,
            "fps": 24,
            "file_name": "output.mp4",
        },
    ),
    "zimage": (
        {
            "model": "zimage",
            "prompt": "A photorealistic portrait of a businesswoman",
            "negativePrompt": "blurry, low quality",
            "width": 1024,
            "height": 1024,
            "steps": 9,
            "guidanceScale": 0,
            "seed": 42,
            "webhookUrl": "https://your-app.com/webhook",
        },
        {
            "prompt": "A photorealistic portrait of a businesswoman",
            "negative_prompt": "blurry, low quality",
            "width": 1024,
            "height": 1024,
            "steps": 9,
            "guidance_scale": 0,
            "seed": 42,
        },
    ),
    "longcat": (
        {
            "model": "longcat",
            "audioUrl": "https://example.com/speech.wav",
            "imageUrl": "https://example.com/avatar.jpg",
            "prompt": "A person speaking naturally",
            "mode": "ai2v",
            "resolution": "480P",
            "audioCfg": 4.0,
            "numSegments": 1,
            "webhookUrl": "https://your-app.com/webhook",
        },
        {
            "audio_url": "https://example.com/speech.wav",
            "image_url": "https://example.com/avatar.jpg",
            "prompt": "A person speaking naturally",
            "mode": "ai2v",
            "resolution": "480P",
            "audio_cfg": 4.0,
            "num_segments": 1,
        },
    ),
    "wav2lip": (
        {
            "model": "wav2lip",
            "videoUrl": "https://example.com/face-video.mp4",
            "audioUrl": "https://example.com/speech.wav",
            "padTop": 0,
            "padBottom": 10,
            "padLeft": 0,
            "padRight": 0,
            "webhookUrl": "https://your-app.com/webhook",
        },
        {
            "video_url": "https://example.com/face-video.mp4",
            "audio_url": "https://example.com/speech.wav",
            "pad_top": 0,
            "pad_bottom": 10,
            "pad_left": 0,
            "pad_right": 0,
        },
    ),
}
"""The document's request of each model, and what the catalog gets."""


@pytest.mark.parametrize("model", sorted(REQUESTS))
def test_the_documents_requests_are_valid_catalog_input(model: str) -> None:
    raw, expected = REQUESTS[model]
    asked = generation.request(raw)
    assert asked.webhook_url == "https://your-app.com/webhook"
    assert asked.warnings == ()
    assert {k: v for k, v in asked.input.items() if k in expected} == expected
    request, _ = catalog.validate(catalog.get(model), asked.input)
    kept = request.model_dump()
    assert {k: kept[k] for k in expected} == expected


@pytest.mark.parametrize("model", sorted(REQUESTS))
def test_defaults_are_the_documents(model: str) -> None:
    raw, expected = REQUESTS[model]
    required = {"model", "prompt"} | {k for k in raw if k.endswith("Url") and k != "webhookUrl"}
    asked = generation.request({k: v for k, v in raw.items() if k in required})
    optional = {"negative_prompt", "seed"}
    assert {k: asked.input[k] for k in expected if k not in optional} == {
        k: v for k, v in expected.items() if k not in optional
    }


@pytest.mark.parametrize(
    ("model", "field", "good", "bad"),
    [
        ("ltx2", "duration", [3, 10, 4.5, "5"], [2.9, 10.1, "long", None, True]),
        ("ltx2", "width", [512, 1920], [510, 1922, 1025]),
        ("ltx2", "height", [512, 1080], [511, 1081]),
        ("ltx2", "numInferenceSteps", [10, 50], [9, 51]),
        ("ltx2", "guidanceScale", [1, 15], [0.9, 15.1]),
        ("ltx2", "fps", [12, 30, 23.976], [11, 31]),
        ("ltx2", "prompt", ["", "x" * 5000], ["x" * 5001, 7]),
        ("zimage", "prompt", ["x", "x" * 1000], ["", "x" * 1001, None]),
        ("zimage", "negativePrompt", ["x" * 500], ["x" * 501]),
        ("zimage", "width", [512, 2048, "1024", 1024.0], [511, 2049, 600.5]),
        ("zimage", "height", [512, 2048], [511, 2049]),
        ("zimage", "steps", [8, 100], [7, 101]),
        ("zimage", "guidanceScale", [0, 1, 20], [0.5, 20.1, -1, True]),
        ("zimage", "seed", [0, None, "42"], [-1, "x", True]),
        ("longcat", "mode", ["at2v", "ai2v"], ["v2v"]),
        ("longcat", "resolution", ["480P", "720P"], ["480p", "1080P"]),
        ("longcat", "audioCfg", [1, 10], [0.9, 10.1]),
        ("longcat", "numSegments", [1, 10], [0, 11]),
        ("wav2lip", "padTop", [0, 50], [-1, 51, False]),
        ("wav2lip", "padBottom", [0, 50], [-1, 51]),
        ("wav2lip", "padLeft", [0, 50], [-1, 51]),
        ("wav2lip", "padRight", [0, 50], [-1, 51]),
        ("longcat", "prompt", ["", "x" * 5000], ["x" * 5001]),
    ],
)
def test_ranges_are_the_documents_and_errors_name_the_field(
    model: str, field: str, good: list[Any], bad: list[Any]
) -> None:
    raw = REQUESTS[model][0]
    for value in good:
        generation.request({**raw, field: value})
    for value in bad:
        with pytest.raises(InvalidRequest) as caught:
            generation.request({**raw, field: value})
        assert [d.path for d in caught.value.details] == [field]


@pytest.mark.parametrize(
    ("raw", "paths"),
    [
        ({}, ["model"]),
        ({"model": 7}, ["model"]),
        ({"model": "sora"}, ["model"]),
        ({"model": "zimage"}, ["prompt"]),
        ({"model": "ltx2", "prompt": "x"}, ["imageUrl"]),
        ({"model": "ltx2", "mode": "t2v"}, ["prompt"]),
        ({"model": "longcat", "audioUrl": "https://x/a.wav"}, ["imageUrl"]),
        ({"model": "wav2lip"}, ["videoUrl", "audioUrl"]),
        ({"model": "ltx-video", "prompt": "x", "webhookUrl": 5}, ["webhookUrl"]),
        ({"model": "ltx2", "imageUrl": "", "width": 1}, ["imageUrl", "width"]),
        ({"model": "ltx2", "mode": "t2v", "fps": 1}, ["prompt", "fps"]),
        ({"model": "ltx2", "mode": "v2v"}, ["mode"]),
        ({"model": "longcat", "audioCfg": 11}, ["audioUrl", "imageUrl", "audioCfg"]),
        ({"model": "zimage", "guidanceScale": 0.5}, ["prompt", "guidanceScale"]),
    ],
)
def test_what_is_missing_is_named(raw: dict[str, Any], paths: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        generation.request(raw)
    assert sorted(d.path for d in caught.value.details) == sorted(paths)


@pytest.mark.parametrize("field", ["width", "height"])
def test_an_odd_size_of_a_video_is_refused_with_the_reason(field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{field}: must be even for H.264 video .got 601"):
        generation.request({**REQUESTS["ltx2"][0], field: 601})


def test_several_wrong_fields_are_all_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        generation.request({**REQUESTS["zimage"][0], "width": 1, "steps": 1, "seed": "x"})
    assert [d.path for d in caught.value.details] == ["width", "steps", "seed"]
    body = generation.error_reply(caught.value, 400)
    assert body["success"] is False
    assert "got 1" in body["error"]
    assert list(body["details"][0]) == ["path", "message"]


@pytest.mark.parametrize(("duration", "fps", "frames"), [(3, 12, 36), (3.5, 25, 88), (4.1, 24, 98), (10, 30, 300)])
def test_frames_are_duration_times_rate_half_up(duration: float, fps: float, frames: int) -> None:
    raw = {**REQUESTS["ltx2"][0], "duration": duration, "fps": fps}
    assert generation.request(raw).input["num_frames"] == frames


def test_text_to_video_on_ltx2_needs_to_be_asked_for() -> None:
    asked = generation.request({"model": "ltx2", "mode": "t2v", "prompt": "a fox"})
    request, _ = catalog.validate(catalog.get("ltx2"), asked.input)
    assert (request.mode, request.image_url, request.generate_audio) == ("t2v", None, False)


def test_any_other_entry_is_asked_with_its_own_fields() -> None:
    asked = generation.request({"model": "ltx-video", "prompt": "a cat", "num_frames": 9, "webhookUrl": "https://h/x"})
    assert (asked.model, asked.webhook_url) == ("ltx-video", "https://h/x")
    assert asked.input == {"prompt": "a cat", "num_frames": 9}


def test_unknown_fields_are_named_and_not_refused() -> None:
    asked = generation.request({**REQUESTS["zimage"][0], "sampler": "euler"})
    assert asked.warnings == ("Unknown field 'sampler' was ignored.",)


def test_catalog_errors_come_back_under_wire_names() -> None:
    error = InvalidRequest("x", details=[generation.Detail("negative_prompt", "m"), generation.Detail("odd", "n")])
    assert [d.path for d in generation.wire_error(error, "zimage").details] == ["negativePrompt", "odd"]
    assert [d.path for d in generation.wire_error(error, "ltx-video").details] == ["negative_prompt", "odd"]
    late = generation.wire_error(UnsupportedMedia("image_url: the file is damaged."), "zimage")
    assert (type(late), late.message) == (UnsupportedMedia, "imageUrl: the file is damaged.")
    busy = generation.wire_error(Busy("negative_prompt", delay_s=7), "zimage")
    assert isinstance(busy, Busy)
    assert busy.delay_s == 7
    error = InvalidRequest("x", details=[generation.Detail("webhook_url", "m")])
    for model in ("zimage", "ltx-video"):
        assert [d.path for d in generation.wire_error(error, model).details] == ["webhookUrl"]


@pytest.mark.parametrize(
    ("states", "word"),
    [
        ([Status.QUEUED, Status.QUEUED], "pending"),
        ([Status.QUEUED, Status.RUNNING], "processing"),
        ([Status.SUCCEEDED, Status.QUEUED], "processing"),
        ([Status.SUCCEEDED, Status.SUCCEEDED], "completed"),
        ([Status.SUCCEEDED, Status.FAILED], "partial_failure"),
        ([Status.CANCELLED, Status.SUCCEEDED], "partial_failure"),
        ([Status.FAILED, Status.CANCELLED], "failed"),
    ],
)
def test_a_bulk_is_what_its_jobs_are(states: list[Status], word: str) -> None:
    by_state = {Status.QUEUED: QUEUED, Status.RUNNING: RUNNING, Status.SUCCEEDED: DONE, Status.FAILED: FAILED}
    jobs = [by_state.get(s, job(s, finished_at=AT)) for s in states]
    body = generation.bulk_reply("b-1", jobs, [URLS] * len(jobs))
    assert (body["batchId"], body["status"], body["total"]) == ("b-1", word, 2)
    assert [j["index"] for j in body["jobs"]] == [0, 1]


@pytest.mark.parametrize(
    ("raw", "paths"),
    [
        ({}, ["jobs"]),
        ({"jobs": []}, ["jobs"]),
        ({"jobs": [{"model": "zimage", "prompt": "x"}] * 51}, ["jobs"]),
    ],
)
def test_a_bulk_has_one_to_fifty_jobs(raw: dict[str, Any], paths: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        generation.bulk(raw)
    assert [d.path for d in caught.value.details] == paths


def test_an_error_names_the_job_it_is_about() -> None:
    error = MediamillError("no")
    error.job_id = "j"
    assert generation.error_reply(error, 500) == {"success": False, "error": "no", "jobId": "j"}

"""The text-to-video contract: its request, its reply, FastAPI's error shapes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from mediamill import catalog
from mediamill.contracts import text_to_video as contract
from mediamill.errors import (
    Busy,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    MediamillError,
    OutOfMemory,
    TooMany,
    Unauthorized,
)
from mediamill.model import Artifact, Job, JobError, MediaFacts, Status

DOCUMENTED = {
    "prompt": "A cat playing piano in a cozy room, cinematic lighting",
    "negative_prompt": "blurry, low quality, distorted",
    "num_frames": 24,
    "fps": 8,
    "width": 512,
    "height": 512,
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "seed": 42,
}
CLIP = Artifact(
    "output.mp4",
    "outputs/j/output.mp4",
    "video/mp4",
    5,
    "0" * 64,
    MediaFacts(width_px=512, height_px=512, duration_s=3.0, fps=8.0, frames=24, video_codec="h264"),
)
DONE = Job(
    id="j",
    model="ltx-video",
    status=Status.SUCCEEDED,
    input=DOCUMENTED,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    finished_at=datetime(2026, 1, 1, tzinfo=UTC),
    artifacts=(CLIP,),
    output={"seed": 42},
)


def test_facts_are_those_of_the_file_and_not_of_the_request() -> None:
    facts = MediaFacts(width_px=64, height_px=96, duration_s=1.0, fps=12.0, frames=10, video_codec="h264")
    body = contract.body(replace(DONE, artifacts=(replace(CLIP, facts=facts),)), "AAAA")
    assert (body["num_frames"], body["fps"], body["width"], body["height"]) == (10, 12, 64, 96)


def test_the_documents_request_is_the_catalogs_input() -> None:
    asked = contract.request(DOCUMENTED)
    assert asked.input == {**DOCUMENTED, "image_url": None}
    assert (asked.model, asked.response_format, asked.webhook_url, asked.warnings) == ("ltx-video", "base64", None, ())
    request, warnings = catalog.validate(catalog.get("ltx-video"), asked.input)
    assert request.model_dump() == {**DOCUMENTED, "image_url": None}
    assert warnings == ()


def test_defaults_are_the_documents() -> None:
    unasked = {"negative_prompt": "", "seed": None, "image_url": None}
    assert contract.request({"prompt": "p"}).input == {**DOCUMENTED, "prompt": "p", **unasked}


def test_the_router_takes_the_models_name() -> None:
    """What the document's service layer sends: `generateVideo({model: 'ltx-video', prompt, num_frames})`."""
    asked = contract.request({"model": "ltx-video", "prompt": "A cat playing piano", "num_frames": 24})
    assert (asked.model, asked.warnings) == ("ltx-video", ())


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("model", ["ltx-video"], ["sora", None]),
        ("num_frames", [1, 257, "24"], [0, 258, 1.5, True]),
        ("fps", [1, 60], [0, 61, True]),
        ("width", [64, 1920], [62, 1922, 513]),
        ("height", [64, 1920], [62, 1922, 65]),
        ("num_inference_steps", [1, 100], [0, 101]),
        ("guidance_scale", [0, 20], [-0.1, 20.1]),
        ("seed", [0, None], [-1, "x", True]),
        ("prompt", ["x"], ["", None, 7]),
        ("response_format", ["url"], ["gif"]),
    ],
)
def test_published_ranges_hold(field: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        contract.request({**DOCUMENTED, field: value})
    for value in bad:
        with pytest.raises(InvalidRequest) as caught:
            contract.request({**DOCUMENTED, field: value})
        (complaint,) = contract.error_reply(caught.value, 422)["detail"]
        assert complaint["loc"] == ["body", field]
        assert complaint["msg"]


@pytest.mark.parametrize("field", ["width", "height"])
def test_an_odd_size_is_refused_with_the_reason(field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{field}: must be even for H.264 video .got 65"):
        contract.request({**DOCUMENTED, field: 65})


def test_a_missing_prompt_has_fastapis_words() -> None:
    with pytest.raises(InvalidRequest) as caught:
        contract.request({})
    assert contract.error_reply(caught.value, 422) == {
        "detail": [{"type": "missing", "loc": ["body", "prompt"], "msg": "Field required"}]
    }


def test_the_reply_is_the_documents_with_probed_facts() -> None:
    body = contract.body(DONE, "QkFTRTY0")
    assert list(body.items()) == [
        ("video", "QkFTRTY0"),
        ("format", "mp4"),
        ("num_frames", 24),
        ("fps", 8),
        ("width", 512),
        ("height", 512),
        ("prompt", DOCUMENTED["prompt"]),
    ]


def test_a_drawn_seed_is_told() -> None:
    assert contract.body(replace(DONE, input={**DOCUMENTED, "seed": None}), "x")["seed"] == 42


@pytest.mark.parametrize(
    ("job", "body"),
    [
        (DONE, {**contract.body(DONE, "https://x/o.mp4"), "jobId": "j"}),
        (
            replace(DONE, status=Status.FAILED, artifacts=(), error=JobError("engine_failed", "it broke")),
            {"detail": "Video generation failed: it broke", "jobId": "j"},
        ),
        (
            replace(DONE, status=Status.CANCELLED, artifacts=()),
            {"detail": "Video generation failed: Job was cancelled", "jobId": "j"},
        ),
    ],
)
def test_the_webhook_is_the_reply_with_a_url(job: Job, body: dict[str, Any]) -> None:
    assert contract.webhook(job, {"output.mp4": "https://x/o.mp4"}) == body


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (OutOfMemory("no room"), 500, "Video generation failed: no room"),
        (DeadlineExceeded("too long"), 504, "Video generation failed: too long"),
        (Unauthorized("who?"), 401, "who?"),
        (Busy("full"), 503, "full"),
        (TooMany("enough"), 429, "enough"),
        (Conflict("another body"), 409, "another body"),
        (Cancelled("Job j was cancelled."), 409, "Video generation failed: Job j was cancelled."),
        (MediamillError(), 500, "Video generation failed: Something went wrong."),
    ],
)
def test_errors_have_one_detail(error: MediamillError, status: int, detail: str) -> None:
    assert contract.error_reply(error, status) == {"detail": detail}

"""The whole request schema of the LTX-2 worker document, and when its jobs are accepted."""

from __future__ import annotations

from typing import Any

import pytest

from mediamill import catalog
from mediamill.config import Settings
from mediamill.errors import InvalidRequest, NotImplementedYet

LTX2 = catalog.get("ltx2")
PICTURE = "https://example.com/image.jpg"


def test_defaults_are_the_documents() -> None:
    request, warnings = catalog.validate(LTX2, {"prompt": "a watch"})
    shown = request.model_dump()
    documented = {
        "mode": "t2v",
        "negative_prompt": None,
        "seed": None,
        "steps": 30,
        "guidance": 7.0,
        "fps": 24,
        "num_frames": 49,
        "height": 512,
        "width": 512,
        "image_url": None,
        "image_base64": None,
        "output_format": "mp4",
        "file_name": "video.mp4",
        "return_signed_url": True,
        "low_vram": False,
    }
    assert {k: shown[k] for k in documented} == documented
    assert warnings == ()


@pytest.mark.parametrize(
    "asked",
    [
        {"width": 256, "height": 256, "num_frames": 25, "low_vram": True},
        {"mode": "i2v", "image_url": PICTURE},
        {"mode": "i2v", "image_base64": "data:image/png;base64,iVBORw0KGgo="},
        {"mode": "v2v", "video_url": "https://example.com/a.mp4", "strength": 0.5},
        {"prompts": ["one", "two"], "prompt": None, "interpolate_fps": 60},
        {"prompt": ""},
    ],
)
def test_what_the_document_allows_passes(asked: dict[str, Any]) -> None:
    catalog.validate(LTX2, {"prompt": "a watch", **asked})


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"prompt": None}, "prompt is required"),
        ({"mode": "i2v"}, "needs image_url or image_base64"),
        ({"mode": "v2v"}, "needs video_url or video_base64"),
        ({"mode": "i2v", "image_url": PICTURE, "image_base64": "aGk="}, "not both"),
        ({"width": 511}, "even"),
        ({"output_format": "gif"}, "output_format"),
        ({"file_name": "../x.mp4"}, "file_name"),
        ({"file_name": "x.gif"}, "file_name"),
        ({"prompts": ["x"] * 9}, "prompts"),
        ({"strength": 1.1}, "strength"),
    ],
)
def test_what_contradicts_is_refused_with_the_reason(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        catalog.validate(LTX2, {"prompt": "a watch", **asked})


@pytest.mark.parametrize(
    ("model", "fake", "allowed"),
    [
        ("ltx2", (), False),
        ("ltx2", ("ltx2",), True),
        ("ltx2", ("all",), True),
        ("longcat", (), False),
        ("longcat", ("all",), False),
        ("wav2lip", ("wav2lip",), False),
    ],
)
def test_what_does_not_exist_yet_is_said_before_queueing(model: str, fake: tuple[str, ...], allowed: bool) -> None:
    asked = {
        "ltx2": {"prompt": "x"},
        "longcat": {"audio_url": "https://x/a.wav", "image_url": PICTURE},
        "wav2lip": {"audio_url": "https://x/a.wav", "video_url": "https://x/a.mp4"},
    }
    entry = catalog.get(model)
    request, _ = catalog.validate(entry, asked[model])
    settings = Settings(_env_file=None, fake_engines=fake)
    if allowed:
        entry.allow(request, settings)
    else:
        with pytest.raises(NotImplementedYet, match="yet"):
            entry.allow(request, settings)

"""`ltx2`: text, image or video to video with LTX-2. Its pipelines come next; until then it runs on the fake engine."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from mediamill.catalog import (
    AudioUrl,
    Entry,
    EvenPx,
    ImageUrl,
    Request,
    Seed,
    VideoUrl,
    Weights,
    engine_of,
    place_of,
    register,
)
from mediamill.config import Settings
from mediamill.errors import NotImplementedYet

MAX_PROMPTS = 8
_FILE_NAME = re.compile(r"[^/\\\x00-\x1f]{1,200}\.mp4", re.IGNORECASE)


class Ltx2Request(Request):
    """One clip, or one for each of `prompts`."""

    mode: Literal["t2v", "i2v", "v2v"] = "t2v"
    prompt: str | None = Field(None, max_length=5000)
    """Required unless `prompts` are given; may be empty."""
    prompts: list[str] | None = Field(None, min_length=1, max_length=MAX_PROMPTS)
    """One clip each, instead of `prompt`."""
    negative_prompt: str | None = Field(None, max_length=5000)
    seed: Seed = None
    """Null: drawn, and told in the output."""
    steps: int = Field(30, ge=1, le=100)
    guidance: float = Field(7.0, ge=0, le=20)
    fps: float = Field(24, ge=1, le=60)
    num_frames: int = Field(49, ge=1, le=1000)
    height: EvenPx = Field(512, ge=64, le=1920)
    width: EvenPx = Field(512, ge=64, le=1920)
    image_url: ImageUrl | None = None
    """The first frame, for i2v."""
    image_base64: ImageUrl | None = None
    """The same as base64, with or without a `data:` prefix."""
    video_url: VideoUrl | None = None
    """The video to change, for v2v."""
    video_base64: VideoUrl | None = None
    strength: float = Field(0.7, ge=0, le=1)
    """For v2v: near 0 keeps the video, 1 ignores it."""
    audio_url: AudioUrl | None = None
    """Speech to move the lips to."""
    generate_audio: bool = False
    """Make a sound track too."""
    interpolate_fps: float | None = Field(None, ge=1, le=120)
    """Interpolate the motion to this rate afterwards."""
    output_format: Literal["mp4"] = "mp4"
    file_name: str = "video.mp4"
    return_signed_url: bool = True
    low_vram: bool = False
    """Components visit the GPU one at a time: less memory, 2 to 3 times slower."""

    @field_validator("file_name")
    @classmethod
    def _one_component(cls, name: str) -> str:
        if not _FILE_NAME.fullmatch(name) or name.startswith("."):
            raise ValueError("must be one file name that ends in .mp4")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.prompt is None and not self.prompts:
            raise ValueError("prompt is required")
        for kind in ("image", "video"):
            given = [name for name in (f"{kind}_url", f"{kind}_base64") if getattr(self, name) is not None]
            if len(given) > 1:
                raise ValueError(f"give {kind}_url or {kind}_base64, not both")
            if not given and {"image": "i2v", "video": "v2v"}[kind] == self.mode:
                raise ValueError(f"mode {self.mode!r} needs {kind}_url or {kind}_base64")
        return self


def _allow(_request: Any, settings: Settings) -> None:
    if place_of(ENTRY, settings) == "local" and engine_of(ENTRY, settings.fake_engines) != "fake":
        raise NotImplementedYet(
            "ltx2 has no engine here yet; set MEDIAMILL_FAKE_ENGINES=ltx2 to try its API with fake clips."
        )


ENTRY = register(
    Entry(
        name="ltx2",
        summary="Text, image or video to video with LTX-2, with sound.",
        request=Ltx2Request,
        engine="diffusers",
        output_kind="video",
        pool="gpu",
        allow=_allow,
        licence="LTX-2 Community Licence (commercial use is limited by revenue)",
        weights=Weights(repo="Lightricks/LTX-2", family="ltx2", size_multiple=32, frame_multiple=8),
        examples=({"mode": "t2v", "prompt": "A product commercial for a luxury watch", "seed": 123},),
    )
)

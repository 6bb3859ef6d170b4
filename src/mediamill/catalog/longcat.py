"""`longcat`: audio-driven avatars. Documented; its jobs are answered with NotImplementedYet unless they go elsewhere."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mediamill.catalog import AudioUrl, Entry, ImageUrl, Request, place_of, register
from mediamill.config import Settings
from mediamill.errors import NotImplementedYet


class LongCatRequest(Request):
    """One speaking avatar."""

    audio_url: AudioUrl
    image_url: ImageUrl | None = None
    """The face, required for ai2v."""
    prompt: str | None = Field(None, max_length=5000)
    mode: Literal["at2v", "ai2v"] = "ai2v"
    resolution: Literal["480P", "720P"] = "480P"
    audio_cfg: float = Field(4.0, ge=1, le=10)
    num_segments: int = Field(1, ge=1, le=10)

    @model_validator(mode="after")
    def _face(self) -> Self:
        if self.mode == "ai2v" and self.image_url is None:
            raise ValueError("image_url is required for mode 'ai2v'")
        return self


def _allow(_request: Any, settings: Settings) -> None:
    if place_of(ENTRY, settings) == "local":
        raise NotImplementedYet(
            "longcat (LongCat-Video-Avatar) does not exist here yet; RUNPOD_LONGCAT_ENDPOINT_ID and RUNPOD_API_KEY send it to RunPod."
        )


ENTRY = register(
    Entry(
        name="longcat",
        summary="Audio-driven avatar with LongCat-Video-Avatar (not there yet).",
        request=LongCatRequest,
        engine="diffusers",
        output_kind="video",
        pool="gpu",
        allow=_allow,
    )
)

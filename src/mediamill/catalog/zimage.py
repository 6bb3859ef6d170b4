"""`zimage`: text to image and image to image with Z-Image, turbo or base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from mediamill.catalog import Entry, ImageUrl, Request, Seed, Weights, place_of, register
from mediamill.config import Settings


class ZImageRequest(Request):
    """One picture."""

    prompt: str = Field(min_length=1, max_length=1000)
    """What to show, English or Chinese."""
    negative_prompt: str | None = Field(None, max_length=500)
    """What to avoid; has an effect only with guidance above 0."""
    width: int = Field(1024, ge=64, le=2048)
    height: int = Field(1024, ge=64, le=2048)
    steps: int = Field(9, ge=1, le=100)
    """Denoising steps: 8 or 9 for turbo, 28 to 50 for base."""
    guidance_scale: float = Field(0.0, ge=0, le=20)
    """0 for turbo, 1 to 20 for base; above 0 every step costs twice."""
    seed: Seed = None
    """Unset: drawn, and told in the output."""
    image_url: ImageUrl | None = None
    """A picture to start from: image to image."""
    strength: float = Field(0.6, gt=0, le=1)
    """How far to go from that picture: near 0 keeps it, 1 ignores it."""


def _warn(request: Any) -> Sequence[str]:
    if request.negative_prompt and request.guidance_scale == 0:
        return ("negative_prompt has no effect while guidance_scale is 0.",)
    return ()


def _allow(request: Any, settings: Settings) -> Sequence[str]:
    """Whether it is turbo or base is what the configured repo is, and only its name tells that, and only of weights here."""
    source = settings.model_location("zimage") or settings.model_name or _WEIGHTS.repo
    if request.guidance_scale > 0 and "turbo" in source.lower() and place_of(_ENTRY, settings) == "local":
        shown = Path(source).name if Path(source).expanduser().is_absolute() else source
        return (f"guidance_scale above 0 is for the base model; {shown} wants 0.",)
    return ()


_WEIGHTS = Weights(repo="Tongyi-MAI/Z-Image-Turbo", family="zimage", size_multiple=16)

_ENTRY = register(
    Entry(
        name="zimage",
        summary="Text to image (and image to image) with Z-Image-Turbo or Z-Image.",
        request=ZImageRequest,
        engine="diffusers",
        output_kind="image",
        pool="gpu",
        run_timeout_s=1200.0,
        warn=_warn,
        allow=_allow,
        licence="Apache-2.0",
        weights=_WEIGHTS,
        examples=({"prompt": "A photorealistic portrait of a businesswoman", "seed": 42},),
    )
)

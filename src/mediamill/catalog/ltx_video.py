"""`ltx-video`: text to video and image to video with LTX-Video."""

from __future__ import annotations

from pydantic import Field

from mediamill.catalog import Entry, EvenPx, ImageUrl, Request, Seed, Weights, register


class LtxVideoRequest(Request):
    """One silent clip."""

    prompt: str = Field(min_length=1, max_length=5000)
    """Text description of the video to generate."""
    negative_prompt: str = Field("", max_length=5000)
    """What to avoid; has an effect only with guidance above 1."""
    num_frames: int = Field(24, ge=1, le=257)
    """Number of frames to generate; 24 are 3 seconds at 8 a second."""
    fps: int = Field(8, ge=1, le=60)
    """Frames per second of the clip; the motion is made for this rate."""
    width: EvenPx = Field(512, ge=64, le=1920)
    """Video width in pixels, even."""
    height: EvenPx = Field(512, ge=64, le=1920)
    """Video height in pixels, even."""
    num_inference_steps: int = Field(50, ge=1, le=100)
    """Number of denoising steps: more are better and slower."""
    guidance_scale: float = Field(7.5, ge=0, le=20)
    """How closely to follow the prompt; up to 1 switches guidance off and halves the cost."""
    seed: Seed = None
    """Unset: drawn, and told in the result."""
    image_url: ImageUrl | None = None
    """The first frame: image to video."""


register(
    Entry(
        name="ltx-video",
        summary="Text to video and image to video with LTX-Video.",
        request=LtxVideoRequest,
        engine="diffusers",
        output_kind="video",
        pool="gpu",
        run_timeout_s=1200.0,
        licence="LTX-Video Open Weights Licence (see docs/models/ltx-video.md)",
        weights=Weights(repo="Lightricks/LTX-Video", family="ltx_video", size_multiple=32, frame_multiple=8),
        examples=({"prompt": "A cat playing piano in a cozy room, cinematic lighting", "seed": 42},),
    )
)

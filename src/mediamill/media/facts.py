"""What a probe found in a file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MediaFacts:
    """What a probe of a finished file found; never echoed from the request. None: does not apply."""

    width_px: int | None = None
    height_px: int | None = None
    duration_s: float | None = None
    fps: float | None = None
    frames: int | None = None
    video_codec: str | None = None
    audio_codec: str | None = None
    has_audio: bool = False

"""What a probe found in a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Hdr = Literal["pq", "hlg"]
"""Which of the two transfers of ITU-R BT.2100 a video has."""


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
    hdr: Hdr | None = None
    """None: SDR, or no video."""

"""The Ken Burns move: which window of a still each picture of the clip shows, and where its samples lie.

Coordinates are continuous: pixel i of a row spans i to i+1, its centre is at i+0.5. Forgetting the halves makes the
picture drift by up to half a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import Literal

Anchor = Literal["center", "top-left"]

ZOOM_SPAN = 0.324
"""The zoom goes from 1 to (just below) 1 + this."""
FPS = 24
WIDTH_PX = 1920
HEIGHT_PX = 1080

MAX_LEAD_PX = 200


def frame_count(duration_s: float) -> int:
    """Pictures of a clip: seconds times 24, half rounded up, at least 1."""
    exact = Decimal(repr(duration_s)) * FPS  # as the caller wrote it: 0.1 is a tenth here
    return max(1, int(exact.quantize(Decimal(1), ROUND_HALF_UP)))


def zoom_at(n: int, frames: int) -> float:
    """Magnification of picture n (0 to frames-1)."""
    return 1.0 + ZOOM_SPAN * n / frames


@dataclass(frozen=True)
class Window:
    """The part of the still that is shown, as fractions 0 to 1 of its width and height; its aspect never changes."""

    left: float
    top: float
    size: float


def window_at(n: int, frames: int, anchor: Anchor = "center") -> Window:
    """The window of picture n: 1/zoom of the still, about its centre or from its top left corner."""
    size = 1.0 / zoom_at(n, frames)
    start = (1.0 - size) / 2 if anchor == "center" else 0.0
    return Window(start, start, size)


@dataclass(frozen=True)
class Axis:
    """Where the samples of one output row (or column) lie in a source row: sample i at `start + (i + 0.5) * step`."""

    start: float
    step: float


def axis(start: float, size: float, *, source_px: int, output_px: int, siting_px: float = 0.0) -> Axis:
    """One direction of a window, in source pixels.

    Args:
        start: The window's left or top, a fraction of the source.
        size: The window's width or height, a fraction of the source.
        source_px: Pixels of the source plane in that direction.
        output_px: Pixels of the output plane in that direction.
        siting_px: How far the output's samples lie off their pixels' centres: -0.25 for the horizontal chroma of
            4:2:0 video, whose samples sit on the left luma column.
    """
    step = size * source_px / output_px
    return Axis(start * source_px + siting_px * step, step)


@lru_cache(maxsize=4096)
def lead_of(along: Axis, tolerance_px: float) -> int | None:
    """How many output samples to begin early so that sampling starts on a whole source pixel, within the tolerance.

    A plain resize can only start at a whole pixel, and is five times as fast as a general warp. Starting k samples
    early moves the start by k steps; steps are not whole, so a small k nearly always brings it to a whole pixel.
    Returns None where no lead up to `MAX_LEAD_PX` does.
    """
    at_edge = abs(along.start) <= tolerance_px
    for lead in (0, *range(2, MAX_LEAD_PX)) if at_edge else range(2, MAX_LEAD_PX):  # a kernel looks 2 px to its left
        begin = along.start - lead * along.step
        if abs(begin - math.floor(begin + 0.5)) <= tolerance_px:
            return lead
    return None

"""A still as bt709 limited-range YUV planes, made once, and sub-pixel windows of them.

Colour is converted once for a clip, not once for each of its pictures; then only planes are sampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from mediamill.media.ken_burns import MAX_LEAD_PX, ZOOM_SPAN, Axis, Window, axis, lead_of

Plane = npt.NDArray[np.uint8]
Kernel = Literal["linear", "cubic"]

_KERNELS = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
LUMA_TOLERANCE_PX = 0.01
_CHROMA_TOLERANCE_PX = 0.02
_TAIL_SAMPLES = 3
_CHROMA_LEFT_PX = -0.25
_RGB_TO_YUV709 = (
    np.array(
        [
            [0.2126, 0.7152, 0.0722],
            [-0.2126 / 1.8556, -0.7152 / 1.8556, 0.9278 / 1.8556],
            [0.7874 / 1.5748, -0.7152 / 1.5748, -0.0722 / 1.5748],
        ]
    )
    * np.array([[219.0], [224.0], [224.0]])
    / 255.0
)
_OFFSETS = np.array([[16.0], [128.0], [128.0]])
_BT709 = np.hstack([_RGB_TO_YUV709, _OFFSETS])


def mip_size(output_px: int) -> int:
    """The source size at which the largest zoom is about 1:1: more would alias, less would blur. A multiple of 4."""
    return math.ceil(output_px * (1 + ZOOM_SPAN) / 4) * 4


@dataclass(frozen=True)
class PaddedPlane:
    """A plane with its edge repeated `pad_px` to the left and above, so that sampling may begin early."""

    padded: Plane
    pad_px: int

    @property
    def width_px(self) -> int:
        """Without the padding."""
        return int(self.padded.shape[1]) - self.pad_px

    @property
    def height_px(self) -> int:
        """Without the padding."""
        return int(self.padded.shape[0]) - self.pad_px


@dataclass(frozen=True)
class StillPlanes:
    """Y at full size, U and V at half; all bt709, limited range."""

    y: PaddedPlane
    u: PaddedPlane
    v: PaddedPlane


def from_rgb(pixels: Plane) -> StillPlanes:
    """Planes of an (H, W, 3) uint8 RGB picture with even sides."""
    yuv = cv2.transform(pixels, _BT709)
    luma, blue, red = cv2.split(yuv)
    half = (pixels.shape[1] // 2, pixels.shape[0] // 2)
    chroma = [cv2.resize(plane, half, interpolation=cv2.INTER_AREA) for plane in (blue, red)]
    return StillPlanes(_padded(luma), _padded(chroma[0]), _padded(chroma[1]))


def _padded(plane: Any) -> PaddedPlane:
    pad_px = math.ceil(MAX_LEAD_PX * 1.5)
    padded: Any = cv2.copyMakeBorder(plane, pad_px, 0, pad_px, 0, cv2.BORDER_REPLICATE)
    return PaddedPlane(padded, pad_px)


def sample(still: StillPlanes, window: Window, out: tuple[Plane, Plane, Plane], kernel: Kernel = "linear") -> None:
    """Fill the Y, U and V planes of one picture with a window of the still."""
    sample_plane(still.y, window, out[0], kernel)
    sample_plane(still.u, window, out[1], siting_px=_CHROMA_LEFT_PX, tolerance_px=_CHROMA_TOLERANCE_PX)
    sample_plane(still.v, window, out[2], siting_px=_CHROMA_LEFT_PX, tolerance_px=_CHROMA_TOLERANCE_PX)


def sample_plane(
    source: PaddedPlane,
    window: Window,
    out: Plane,
    kernel: Kernel = "linear",
    *,
    siting_px: float = 0.0,
    tolerance_px: float = LUMA_TOLERANCE_PX,
) -> None:
    """Fill `out` with a window of one plane, placed to within the tolerance."""
    height_px, width_px = out.shape
    across = axis(window.left, window.size, source_px=source.width_px, output_px=width_px, siting_px=siting_px)
    down = axis(window.top, window.size, source_px=source.height_px, output_px=height_px)
    if not (_resize_keeps_scale() and _resize(source, across, down, out, kernel, tolerance_px)):
        _warp(source, across, down, out, kernel)


def _warp(source: PaddedPlane, across: Axis, down: Axis, out: Plane, kernel: Kernel) -> None:
    """Any window. Slow."""
    pad = source.pad_px - 0.5
    matrix = np.array(
        [
            [across.step, 0.0, across.start + 0.5 * across.step + pad],
            [0.0, down.step, down.start + 0.5 * down.step + pad],
        ]
    )
    size = (out.shape[1], out.shape[0])
    flags = _KERNELS[kernel] | cv2.WARP_INVERSE_MAP
    if out.flags.c_contiguous:
        cv2.warpAffine(source.padded, matrix, size, dst=out, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    else:
        out[:] = cv2.warpAffine(source.padded, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _resize(
    source: PaddedPlane, across: Axis, down: Axis, out: Plane, kernel: Kernel, tolerance_px: float = LUMA_TOLERANCE_PX
) -> bool:
    """A window that begins on a whole pixel when started early; the early samples are dropped. False: there is none."""
    lead_x, lead_y = lead_of(across, tolerance_px), lead_of(down, tolerance_px)
    if lead_x is None or lead_y is None:
        return False
    height_px, width_px = out.shape
    left = round(across.start - lead_x * across.step) + source.pad_px
    top = round(down.start - lead_y * down.step) + source.pad_px
    if left < 0 or top < 0:
        return False
    step_x = _centred_step(across, lead_x, left - source.pad_px, width_px)
    step_y = _centred_step(down, lead_y, top - source.pad_px, height_px)
    # resize keeps to fx and fy exactly only where it may choose its size itself; a few samples too many are cut off
    right = left + math.ceil((lead_x + width_px + _TAIL_SAMPLES) * across.step)
    bottom = top + math.ceil((lead_y + height_px + _TAIL_SAMPLES) * down.step)
    region = source.padded[top:bottom, left:right]
    early = cv2.resize(region, None, fx=1 / step_x, fy=1 / step_y, interpolation=_KERNELS[kernel])
    window = early[lead_y : lead_y + height_px, lead_x : lead_x + width_px]
    if window.shape != out.shape:
        return False
    np.copyto(out, window)
    return True


def _centred_step(along: Axis, lead: int, begin: int, count: int) -> float:
    """The step with which sampling from that whole pixel is exact in the middle of the row, not at its start.

    What is left of the rounding is then no shift of the whole picture but a change of scale by some millionths.
    """
    middle = along.start + count / 2 * along.step
    return (middle - begin) / (lead + count / 2)


@cache
def _resize_keeps_scale() -> bool:
    """Whether this build of OpenCV resizes by exactly the scale it was given, as the general warp does."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96)).astype(np.uint8)
    smooth: Any = cv2.GaussianBlur(noise, (5, 5), 1.0)
    source = PaddedPlane(smooth, 32)
    across, down = Axis(5 * 1.237 - 3, 1.237), Axis(7 * 1.171 - 2, 1.171)
    fast, exact = np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8)
    if not _resize(source, across, down, fast, "linear"):
        return False
    _warp(source, across, down, exact, "linear")
    return int(np.abs(fast.astype(int) - exact).max()) <= 1

"""One still to one clip: decoded once, converted once, sampled and encoded picture by picture."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2

from mediamill.errors import Cancelled, EngineFailed
from mediamill.media import ken_burns, planes
from mediamill.media.encode import VideoWriter
from mediamill.media.encoders import Codec, EncoderChoice, Quality, choose, software, stood_in
from mediamill.media.images import cover
from mediamill.media.ken_burns import Anchor
from mediamill.media.planes import Kernel, StillPlanes

_KERNEL: dict[Quality, Kernel] = {"fast": "linear", "balanced": "linear", "best": "cubic"}


@dataclass(frozen=True)
class ClipPlan:
    """What a clip shall be."""

    frames: int
    anchor: Anchor = "center"
    quality: Quality = "balanced"
    codec: Codec = "h264"
    width_px: int = ken_burns.WIDTH_PX
    height_px: int = ken_burns.HEIGHT_PX


def kernel_of(quality: Quality) -> Kernel:
    """How pictures are sampled: cubic is sharper and takes twice as long."""
    return _KERNEL[quality]


def load(path: Path, plan: ClipPlan) -> StillPlanes:
    """The still's planes at the size the plan's largest zoom needs.

    Raises: UnsupportedMedia, TooLarge, OutOfMemory.
    """
    return planes.from_rgb(cover(path, planes.mip_size(plan.width_px), planes.mip_size(plan.height_px)))


def render(
    still: StillPlanes,
    out: Path,
    plan: ClipPlan,
    *,
    encoder: str = "auto",
    on_picture: Callable[[int], None] = lambda _n: None,
    on_fallback: Callable[[str], None] = lambda _sentence: None,
    cancelled: threading.Event | None = None,
) -> None:
    """Write the clip to `out`, in the calling thread alone; several run well side by side.

    Args:
        still: From `load`.
        out: The MP4 to write.
        plan: What it shall be.
        encoder: `auto`, `libx264` or `h264_nvenc`; hardware that fails to open is replaced by software for this clip.
        on_picture: Called with the number of pictures done after each one.
        on_fallback: Called with a sentence when software stands in for hardware.
        cancelled: Checked before each picture.
    Raises: Cancelled, EngineFailed.
    """
    cv2.setNumThreads(1)  # parallelism is one thread a clip; OpenCV's own would only fight over the cores
    choice = choose(encoder, codec=plan.codec, quality=plan.quality, still=True)
    stop = cancelled or threading.Event()
    try:
        _write(still, out, plan, choice, on_picture, stop)
    except EngineFailed:
        if not choice.hardware:
            raise
        calm = software(plan.codec, plan.quality, still=True)
        on_fallback(stood_in(choice, calm))
        _write(still, out, plan, calm, on_picture, stop)


def _write(
    still: StillPlanes,
    out: Path,
    plan: ClipPlan,
    choice: EncoderChoice,
    on_picture: Callable[[int], None],
    cancelled: threading.Event,
) -> None:
    kernel = kernel_of(plan.quality)
    with VideoWriter(
        out, width_px=plan.width_px, height_px=plan.height_px, fps=Fraction(ken_burns.FPS), encoder=choice
    ) as writer:
        for n in range(plan.frames):
            if cancelled.is_set():
                raise Cancelled
            frame, views = writer.picture()
            planes.sample(still, ken_burns.window_at(n, plan.frames, plan.anchor), views, kernel)
            writer.write(frame)
            on_picture(n + 1)

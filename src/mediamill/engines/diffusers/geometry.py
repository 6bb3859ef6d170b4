"""Exact sizes and frame counts on models that only know grids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from mediamill.errors import TooLarge, UnsupportedMedia
from mediamill.media.images import cover
from mediamill.model import InputFile

Frame = npt.NDArray[np.uint8]
"""(H, W, 3) RGB, full range."""


def grid_up(value: int, multiple: int) -> int:
    """The smallest multiple that is not below `value`."""
    return -(-value // multiple) * multiple


def frames_up(frames: int, multiple: int) -> int:
    """The smallest count of the form `multiple * k + 1` that is not below `frames`."""
    return grid_up(frames - 1, multiple) + 1


def centre_crop(frame: Frame, *, width_px: int, height_px: int) -> Frame:
    """The middle of a frame; odd differences leave the extra row or column at the bottom or right."""
    top = (frame.shape[0] - height_px) // 2
    left = (frame.shape[1] - width_px) // 2
    return np.ascontiguousarray(frame[top : top + height_px, left : left + width_px])


def covering(picture: InputFile, *, width_px: int, height_px: int) -> Image.Image:
    """An input picture upright, scaled to cover the size and cropped at its centre, RGB.

    Raises: UnsupportedMedia or TooLarge, naming the field.
    """
    try:
        return Image.fromarray(cover(picture.path, width_px, height_px))
    except (TooLarge, UnsupportedMedia) as error:
        raise type(error)(f"{picture.field}: {error.message}") from error

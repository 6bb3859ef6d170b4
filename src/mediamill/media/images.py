"""Decode a still safely, upright, in sRGB, and cropped to cover a given size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mediamill.media import srgb
from mediamill.media.probe import opened_picture

Pixels = npt.NDArray[np.uint8]

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the turn that undoes it; 5 to 8 swap the sides."""
_SIDEWAYS = frozenset({5, 6, 7, 8})
_MAX_16_BIT = 65535


def cover_box(width: int, height: int, *, aspect: float) -> tuple[float, float, float, float]:
    """The largest centred box of that aspect (width / height) inside a picture: left, top, right, bottom, in px."""
    if width > height * aspect:
        kept = height * aspect
        return ((width - kept) / 2, 0.0, (width + kept) / 2, float(height))
    kept = width / aspect
    return (0.0, (height - kept) / 2, float(width), (height + kept) / 2)


def cover(path: Path, width_px: int, height_px: int) -> Pixels:
    """The picture as (height, width, 3) uint8 sRGB of exactly that size: upright, cropped at the centre, never stretched.

    Transparency is laid over black. Of an animation the first picture is taken. Peak memory is about 4 bytes for each
    pixel of the file (JPEG: decoded at a half, quarter or eighth where that is still enough; HEIC: 11), plus the result.

    Raises: UnsupportedMedia, TooLarge (before anything is decoded), OutOfMemory.
    """
    with opened_picture(path) as picture:
        return np.asarray(_fitted(path, picture, width_px, height_px), dtype=np.uint8)


def _fitted(path: Path, picture: Any, width_px: int, height_px: int) -> Image.Image:
    orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
    colour = srgb.stated(path, picture)
    if orientation in _SIDEWAYS:
        width_px, height_px = height_px, width_px
    scale = max(width_px / picture.width, height_px / picture.height)
    if scale < 1:
        picture.draft(None, (int(picture.width * scale) + 1, int(picture.height * scale) + 1))
    plain = _plain_mode(picture)
    box = cover_box(plain.width, plain.height, aspect=width_px / height_px)
    if (width_px, height_px) != plain.size or box != (0, 0, width_px, height_px):
        plain = plain.resize((width_px, height_px), Image.Resampling.LANCZOS, box=box)
    if orientation in _UPRIGHT:
        plain = plain.transpose(_UPRIGHT[orientation])
    return _over_black(srgb.converted(plain, colour))


def _plain_mode(picture: Any) -> Image.Image:
    """L, RGB, RGBA or CMYK with 8 bits a channel: what can be resized with good filters."""
    mode: str = picture.mode
    if mode in {"L", "RGB", "RGBA", "CMYK"} and "transparency" not in picture.info:
        picture.load()
        return picture  # type: ignore[no-any-return]
    if mode in {"P", "PA", "LA", "La", "RGBa"} or "transparency" in picture.info:
        return picture.convert("RGBA")  # type: ignore[no-any-return]
    if mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bit(np.asarray(picture)))
    return picture.convert("L" if mode == "1" else "RGB")  # type: ignore[no-any-return]


def _to_8_bit(values: npt.NDArray[Any]) -> Pixels:
    """Integers are 16-bit samples; floats are 0 to 1, or 0 to 255 where any is above 1."""
    if np.issubdtype(values.dtype, np.floating):
        top = 255.0 if float(np.nanmax(values)) > 1 else 1.0
        scaled = np.clip(np.nan_to_num(values) * (255.0 / top) + 0.5, 0, 255)
    else:
        scaled = np.clip(values, 0, _MAX_16_BIT) / (_MAX_16_BIT / 255) + 0.5
    return np.asarray(scaled, dtype=np.uint8)


def _over_black(picture: Image.Image) -> Image.Image:
    if picture.mode != "RGBA":
        return picture
    ground = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    ground.alpha_composite(picture)
    return ground.convert("RGB")

"""A picture's colours to sRGB, by what the file says they are: an ICC profile, or the code points of ITU-T H.273."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms, ImageFilter

from mediamill.errors import UnsupportedMedia
from mediamill.media import tone
from mediamill.media.probe import opened
from mediamill.media.tone import Colour

_SRGB = ImageCms.createProfile("sRGB")
_CICP_AT = 12
"""Bytes of an ICC `cicp` tag before its code points are over: signature, reserved, and four of one byte."""
_PNG_HEAD_BYTES = 65_536


def converted(picture: Image.Image, colour: Colour | bytes | None) -> Image.Image:
    """The picture (L, RGB, RGBA or CMYK) as sRGB: RGB, or RGBA where it is that.

    Args:
        picture: Decoded, 8 bits a channel.
        colour: From `stated`; None is sRGB.
    """
    if isinstance(colour, bytes):
        return _through_profile(picture, colour)
    plain = picture if picture.mode == "RGBA" else picture.convert("RGB")
    if colour is None or colour.is_srgb:
        return plain
    values = tone.table(colour, "srgb").reshape(-1)
    return plain.filter(ImageFilter.Color3DLUT(tone.TABLE_SIZE, values))


def stated(path: Path, picture: Any) -> Colour | bytes | None:
    """What an opened picture file says its colours are; None: nothing, which is sRGB.

    Code points go before a profile in PNG (W3C PNG, third edition) and after one in AVIF and
    HEIC. An HDR profile says by code points too what it can not say by curves.
    """
    profile: bytes | None = picture.info.get("icc_profile")
    if picture.format == "PNG" and (colour := _of_png(path)) is not None:
        return colour
    if profile:
        colour = _of_profile(profile)
        return colour if colour is not None and colour.is_hdr else profile
    if picture.format == "HEIF":
        return _of_nclx(picture.info.get("nclx_profile"))
    return _of_avif(path) if picture.format == "AVIF" else None


def _through_profile(picture: Image.Image, profile: bytes) -> Image.Image:
    """Phones write Display P3, cameras Adobe RGB, printers CMYK; transparency stays."""
    mode = "RGBA" if picture.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" not in ImageCms.getProfileDescription(source):
            made = ImageCms.profileToProfile(picture, source, _SRGB, outputMode=mode)
            return made if made is not None else picture.convert(mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return picture.convert(mode)  # a broken profile is no reason to refuse the picture
    return picture.convert(mode)


def _of_png(path: Path) -> Colour | None:
    """The `cICP` chunk, which stands before the pixels."""
    with path.open("rb") as file:
        head = file.read(_PNG_HEAD_BYTES)
    at = 8
    while at + 12 <= len(head):
        size, kind = struct.unpack_from(">I4s", head, at)
        if kind == b"cICP" and size == 4:  # noqa: PLR2004 - four code points of one byte
            return Colour(head[at + 8], head[at + 9])
        if kind == b"IDAT":
            return None
        at += 12 + size
    return None


def _of_profile(profile: bytes) -> Colour | None:
    """The `cicp` tag of an ICC profile (ICC.1:2022)."""
    try:
        (count,) = struct.unpack_from(">I", profile, 128)
        for n in range(min(count, 100)):
            kind, at = struct.unpack_from(">4sI", profile, 132 + 12 * n)
            if kind == b"cicp" and len(profile) >= at + _CICP_AT:
                return Colour(profile[at + 8], profile[at + 9])
    except struct.error:
        return None
    return None


def _of_nclx(said: dict[str, Any] | None) -> Colour | None:
    """As libheif reads them."""
    return None if said is None else Colour(int(said["color_primaries"]), int(said["transfer_characteristics"]))


def _of_avif(path: Path) -> Colour | None:
    """The `colr` property of the picture itself, not of its transparency or gain map."""
    try:
        with opened(path, "mov") as container:
            context: Any = next((s.codec_context for s in container.streams.video), None)
            return None if context is None else Colour(int(context.color_primaries), int(context.color_trc))
    except UnsupportedMedia:
        return None  # a grid of more tiles than streams are allowed

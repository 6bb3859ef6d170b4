"""FFmpeg filters that make any video what players expect: 8-bit 4:2:0, bt709, limited range; HDR tone-mapped."""

from __future__ import annotations

from pathlib import Path

from mediamill.media import tone
from mediamill.media.probe import ColourTags, VideoTrack

_TAGS = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
_MATRIX_NAMES = {4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_UNSPECIFIED = 2
_FULL_RANGE = 2
_HD_LINES = 720
_EXACT = "flags=bicubic+accurate_rnd"
_TABLE = "hdr.cube"
_NO_LONGER_TRUE = ",".join(
    f"sidedata=mode=delete:type={kind}"
    for kind in ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL", "DYNAMIC_HDR_PLUS", "26")
)
"""What is told of HDR beside its pictures; encoders pass it on, and players would believe it. The last one is the light
of the room (phones write it), by number, so that an older FFmpeg need not know its name."""


def filters(track: VideoTrack, folder: Path, *drawn: str) -> str:
    """The whole filter chain: the picture converted, then drawn on, then tagged.

    Args:
        track: What the video is.
        folder: FFmpeg's working folder; the table that HDR is converted by is written there.
        drawn: Filters that want the finished picture.
    """
    return ",".join(part for part in (_shape(track), _colour(track, folder), *drawn, _TAGS) if part)


def _shape(track: VideoTrack) -> str:
    """Even sides and square pixels."""
    even = track.width_px % 2 == 0 and track.height_px % 2 == 0
    parts = [] if even else ["crop=trunc(iw/2)*2:trunc(ih/2)*2:0:0:exact=1"]
    if not track.square_pixels:
        parts.append("scale=trunc(iw*sar/2)*2:ih,setsar=1")
    return ",".join(parts)


def _colour(track: VideoTrack, folder: Path) -> str:
    """8-bit 4:2:0, bt709, limited range; "" when it is all that.

    Untagged video is what players take it for: bt709 from 720 lines up, else the matrix of standard definition.
    """
    matrix = _matrix(track.colour, track.height_px)
    full = track.colour.range == _FULL_RANGE or track.pixel_format.startswith("yuvj")
    if track.hdr is None and matrix == "bt709" and not full and track.pixel_format == "yuv420p":
        return ""
    is_rgb = track.pixel_format.startswith(("rgb", "bgr", "gbr"))
    source = "" if is_rgb else f"in_color_matrix={matrix}:in_range={'pc' if full else 'tv'}:"
    final = f"out_color_matrix=bt709:out_range=tv:{_EXACT},format=yuv420p"
    if track.hdr is None:
        return f"scale={source}{final}"
    (folder / _TABLE).write_text(tone.cube(track.colour.meaning, "bt1886"), "ascii")
    # 16 bits: FFmpeg looks those up in a quarter of the time that 8 or 10 take, and rounds less
    return f"scale={source}{_EXACT},format=gbrp16,lut3d=file={_TABLE},scale={final},{_NO_LONGER_TRUE}"


def _matrix(colour: ColourTags, height_px: int) -> str:
    if colour.matrix in _MATRIX_NAMES:
        return _MATRIX_NAMES[colour.matrix]
    if colour.matrix == _UNSPECIFIED and colour.meaning.is_hdr:
        return "bt2020"  # the usual one of ITU-R BT.2100
    if colour.matrix == _UNSPECIFIED and height_px < _HD_LINES:
        return "smpte170m"
    return "bt709"

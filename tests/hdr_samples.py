"""HDR video of flat patches whose light is known, and the distance between colours.

The formulas are those of ITU-R BT.2100 in the direction that a camera or grading tool uses, written apart from the
ones under test.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from tests.media_samples import Pixels, pictures_of

Light = npt.NDArray[np.float64]
"""(n, 3) red, green and blue in cd/m2, for BT.2020 primaries."""

WHITE_NITS = 203.0
PATCH_PX = 64
BT709_TO_BT2020 = np.array(
    [[0.627404, 0.329283, 0.043313], [0.069097, 0.919541, 0.011362], [0.016391, 0.088013, 0.895595]]
)
"""ITU-R BT.2087."""
_LUMA = np.array([0.2627, 0.6780, 0.0593])
_HLG_PEAK_NITS = 1000.0


def light_of_sdr(values: npt.ArrayLike) -> Light:
    """SDR values (0 to 255) as HDR shows them beside its own pictures: BT.1886 light, white at 203 cd/m2 (BT.2408)."""
    return (np.asarray(values) / 255) ** 2.4 * WHITE_NITS @ BT709_TO_BT2020.T


def pq(nits: Light) -> Light:
    """The inverse EOTF."""
    y = (nits / 10_000) ** (2610 / 16384)
    return np.asarray(((3424 + 2413 * 32 * y) / (4096 + 2392 * 32 * y)) ** (2523 / 32))


def hlg(nits: Light) -> Light:
    """The inverse EOTF of a display of 1000 cd/m2."""
    luminance = np.maximum(nits @ _LUMA, 1e-9)[:, None] / _HLG_PEAK_NITS
    scene = nits / _HLG_PEAK_NITS * luminance ** ((1 - 1.2) / 1.2)
    upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)


ENCODERS = {"pq": (pq, "smpte2084"), "hlg": (hlg, "arib-std-b67")}


def hdr_video(path: Path, codes: Light, transfer: str, *, frames: int = 4, x265: str = "") -> Path:
    """A lossless 10-bit HEVC MP4 (BT.2020, limited range) with a row of patches of those code values (0 to 1)."""
    width_px = PATCH_PX * len(codes)
    luma = codes @ _LUMA
    chroma = [(codes[:, 2] - luma) / 1.8814, (codes[:, 0] - luma) / 1.4746]
    planes = [64 + 876 * luma, *(512 + 896 * c for c in chroma)]
    tags = f"colorprim=bt2020:transfer={ENCODERS[transfer][1]}:colormatrix=bt2020nc:range=limited"
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("libx265", rate=Fraction(24))
        stream.width, stream.height, stream.pix_fmt = width_px, PATCH_PX, "yuv420p10le"
        stream.options = {"preset": "ultrafast", "x265-params": f"lossless=1:log-level=none:{tags}{x265}"}
        for n in range(frames):
            frame = av.VideoFrame(width_px, PATCH_PX, "yuv420p10le")
            for plane, values in zip(frame.planes, planes, strict=True):
                rows = np.zeros((plane.height, plane.line_size // 2), "<u2")
                row = np.repeat(np.rint(values), plane.width // len(codes))
                rows[:, : plane.width] = row
                plane.update(rows.tobytes())
            frame.pts = n
            frame.colorspace, frame.color_primaries, frame.color_range = 9, 9, 1
            frame.color_trc = 16 if transfer == "pq" else 18
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def as_phones_write(path: Path) -> Path:
    """Put into an MP4 of ours what a phone's has: Dolby Vision profile 8.4, and the light of the room (`amve`)."""
    profile, level, layers = 8, 5, 0b101
    vision = struct.pack(">I4sBBHB19x", 32, b"dvvC", 1, 0, profile << 9 | level << 3 | layers, 4 << 4)
    room = struct.pack(">I4sIHH", 16, b"amve", 3_140_000, 15_635, 16_450)
    content = bytearray(path.read_bytes())
    entry = content.index(b"hev1", content.index(b"stsd")) - 4
    (entry_bytes,) = struct.unpack_from(">I", content, entry)
    parents = [content.index(name) - 4 for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")]
    content[entry + entry_bytes : entry + entry_bytes] = vision + room
    for at in (*parents, entry):
        (box_bytes,) = struct.unpack_from(">I", content, at)
        struct.pack_into(">I", content, at, box_bytes + len(vision + room))
    path.write_bytes(content)
    return path


def patches_of(path: Path, count: int, picture: int = 0) -> npt.NDArray[np.float64]:
    """The mean colour (0 to 255) of the upper middle of each patch."""
    return means(pictures_of(path)[picture], count)


def means(pixels: Pixels, count: int) -> npt.NDArray[np.float64]:
    """As `patches_of`, of one picture."""
    side = pixels.shape[1] // count
    return np.array([pixels[4:24, n * side + 16 : (n + 1) * side - 16].mean(axis=(0, 1)) for n in range(count)])


def lab(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """CIE Lab of SDR values (0 to 255) on a BT.1886 display with BT.709 primaries."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = (np.clip(values, 0, 255) / 255) ** 2.4 @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def delta_e(expected: npt.ArrayLike, found: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """CIE94 distance (graphic arts): about 1 is what an eye just sees side by side."""
    first, second = lab(expected), lab(found)
    chroma = np.hypot(first[..., 1], first[..., 2])
    lightness, less_chroma = first[..., 0] - second[..., 0], chroma - np.hypot(second[..., 1], second[..., 2])
    sideways = np.maximum(((first - second)[..., 1:] ** 2).sum(axis=-1) - less_chroma**2, 0)
    squares = lightness**2 + (less_chroma / (1 + 0.045 * chroma)) ** 2 + sideways / (1 + 0.015 * chroma) ** 2
    return np.asarray(np.sqrt(squares))


def hue_deg(values: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """The Lab hue angle."""
    _, a, b = lab(np.asarray(values, float))
    return float(np.degrees(np.arctan2(b, a)))

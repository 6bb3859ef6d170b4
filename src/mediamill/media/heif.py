"""HEIC pictures for Pillow: `Image.open` reads them after `register`.

The index is read here, the pixels by the HEVC decoder that reads videos too; why not by libheif:
docs/decisions/2026-11-26-heic-by-the-video-decoder.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import IO, Any

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation
from PIL import Image, ImageFile

from mediamill.media import heif_index
from mediamill.media.heif_index import Still, Tile, damaged
from mediamill.media.sniff import HEAD_BYTES, sniff_bytes
from mediamill.media.tone import Colour

_UNSPECIFIED = 2
_BT601 = 5
_SCALER_MATRIX = {1: 1, 4: 4, 7: 7, 9: 9, 10: 9}
"""ITU-T H.273 to FFmpeg's scaler, which counts two names of BT.601 as one."""
_LIMITED, _FULL = 1, 2
_BLOCK_PX = 64
"""What a coded picture is padded to at most."""
_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def register() -> None:
    """Let `Image.open` read them; may be called again."""
    Image.register_open(HeifImage.format, HeifImage, lambda prefix: prefix[4:8] == b"ftyp")


class HeifImage(ImageFile.ImageFile):
    """RGB or RGBA, upright: HEIF turns by its own properties, and its Exif orientation repeats that and counts for nothing.

    `info` has `icc_profile`, and `colour` where the file has code points.
    """

    format = "HEIF"
    format_description = "HEIC picture"

    def _open(self) -> None:
        file: Any = self.fp
        if sniff_bytes(file.read(HEAD_BYTES)).media_type != "image/heic":
            raise SyntaxError("not HEIC")  # Pillow asks the next one
        self._file = file
        self._still = heif_index.read(file)
        self._size = self._still.shown_px
        self._mode = _mode(self._still)
        if self._still.profile is not None:
            self.info["icc_profile"] = self._still.profile
        if (points := self._still.code_points) is not None:
            self.info["colour"] = Colour(points.primaries, points.transfer)

    def load(self) -> Any:
        """Decode, once."""
        if self._im is None:
            self.im = _decoded(self._file, self._still).im
        return super().load()


def _mode(still: Still) -> str:
    return "RGB" if still.alpha is None else "RGBa" if still.premultiplied else "RGBA"


def _decoded(file: IO[bytes], still: Still) -> Image.Image:
    canvas = _canvas(file, still, "RGB")
    if still.alpha is not None:
        alpha = _canvas(file, still.alpha, "L")
        canvas.putalpha(alpha if alpha.size == canvas.size else alpha.resize(canvas.size))
        if still.premultiplied:
            canvas = Image.frombuffer("RGBa", canvas.size, canvas.tobytes())
    for turn in still.turns:
        canvas = canvas.crop(turn) if isinstance(turn, tuple) else canvas.transpose(turn)
    return canvas


def _canvas(file: IO[bytes], still: Still, mode: str) -> Image.Image:
    """The picture as stored, row by row of tiles, so that no more than one row is held twice."""
    canvas = Image.new(mode, (still.width_px, still.height_px))
    frames = _frames(file, still.tiles)
    for top in range(0, still.height_px, still.tiles[0].height_px):
        row = [next(frames) for _ in range(still.columns)]
        canvas.paste(_picture(_band(row, still, top), still, mode), (0, top))
    return canvas


def _frames(file: IO[bytes], tiles: Sequence[Tile]) -> Iterator[Any]:
    """One frame a tile, in order.

    Raises: UnsupportedMedia: one cannot be decoded, or is smaller than it says.
    """
    done = 0
    for _, run in groupby(tiles, key=lambda tile: tile.config):
        alike = list(run)
        decoder = _decoder(alike[0])
        try:
            packets = (_packet(file, tile, n) for n, tile in enumerate(alike, done))
            for packet in chain(packets, [None]):
                for frame in decoder.decode(packet):
                    tile = tiles[done]
                    whole = frame.width >= tile.width_px and frame.height >= tile.height_px
                    if frame.pts != done or frame.is_corrupt or not whole:
                        raise damaged(f"tile {done + 1} of {len(tiles)} is broken")
                    done += 1
                    yield frame
        except av.error.FFmpegError as error:
            raise damaged(f"tile {done + 1} of {len(tiles)} cannot be decoded") from error
    if done < len(tiles):
        raise damaged(f"{done} of {len(tiles)} tiles can be decoded")


def _decoder(tile: Tile) -> Any:
    """For tiles with one configuration; it allocates no picture that is larger than they say."""
    decoder: Any = av.CodecContext.create("hevc", "r")
    decoder.extradata = tile.config
    decoder.thread_count = 1  # one thread a still
    most_pixels = (tile.width_px + _BLOCK_PX) * (tile.height_px + _BLOCK_PX)
    decoder.options = {"max_pixels": str(most_pixels), "err_detect": "explode"}
    return decoder


def _packet(file: IO[bytes], tile: Tile, number: int) -> Any:
    parts = []
    for at, size_bytes in tile.extents:
        file.seek(at)
        parts.append(file.read(size_bytes))
    packet: Any = av.Packet(b"".join(parts))
    packet.pts = number
    return packet


def _band(row: Sequence[Any], still: Still, top: int) -> Any:
    """The tiles of one row side by side in one frame.

    Its sides are even: for odd ones FFmpeg's scaler puts colour samples elsewhere. What stands out of the picture is
    for the caller to cut off.
    """
    across, down = still.tiles[0].width_px, still.tiles[0].height_px
    height_px = min(down, still.height_px - top)
    band: Any = av.VideoFrame(_even(still.width_px), _even(height_px), row[0].format.name.replace("yuvj", "yuv"))
    band.colorspace, band.color_range = row[0].colorspace, row[0].color_range
    for column, frame in enumerate(row):
        if frame.format.name != row[0].format.name:
            raise damaged("its tiles differ in format")
        for plane, place in enumerate(band.planes):
            offset_px = column * (across if place.width == band.width else frame.format.chroma_width(across))
            _copy(frame.planes[plane], place, offset_px, bytes_a_sample=(frame.format.components[0].bits + 7) // 8)
    return band


def _even(side_px: int) -> int:
    return side_px + side_px % 2


def _copy(source: Any, target: Any, offset_px: int, *, bytes_a_sample: int) -> None:
    """Into the target from that column on, as far as there is room."""
    width = min(source.width, target.width - offset_px) * bytes_a_sample
    height = min(source.height, target.height)
    left = offset_px * bytes_a_sample
    _samples(target)[:height, left : left + width] = _samples(source)[:height, :width]


def _samples(plane: Any) -> npt.NDArray[np.uint8]:
    """(height, bytes a line), not copied."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height]


def _picture(band: Any, still: Still, mode: str) -> Image.Image:
    """RGB, or the lightness alone (L), full range; by the file's code points, else by what the decoder says."""
    points = still.code_points
    matrix = points.matrix if points is not None and points.matrix != _UNSPECIFIED else band.colorspace
    full = points.full_range if points is not None else band.color_range != _LIMITED
    made = band.reformat(
        format="rgb24" if mode == "RGB" else "gray",
        src_colorspace=_SCALER_MATRIX.get(matrix, _BT601),
        src_color_range=_FULL if full else _LIMITED,
        dst_color_range=_FULL,
        interpolation=int(_EXACT),
    )
    plane = made.planes[0]
    return Image.frombuffer(mode, (made.width, made.height), plane, "raw", mode, plane.line_size, 1)

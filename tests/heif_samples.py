"""HEIC files as phones write them: HEVC pictures from x265 in boxes put together here."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Box = bytes
TILE_PX = 64


def box(kind: bytes, *body: bytes) -> Box:
    content = b"".join(body)
    return struct.pack(">I4s", len(content) + 8, kind) + content


def full(kind: bytes, version: int, flags: int, *body: bytes) -> Box:
    return box(kind, struct.pack(">I", version << 24 | flags), *body)


def irot(quarters: int) -> Box:
    """Against the clock."""
    return box(b"irot", bytes([quarters]))


def imir(*, left_right: bool) -> Box:
    return box(b"imir", bytes([int(left_right)]))


def clap(width: int, height: int, right: int, below: int) -> Box:
    """The offset of the centre is `right` / 2 and `below` / 2."""
    return box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, right, 2, below, 2))


def ispe(width: int, height: int) -> Box:
    return full(b"ispe", 0, 0, struct.pack(">II", width, height))


def icc(profile: bytes) -> Box:
    return box(b"colr", b"prof", profile)


def nclx(primaries: int, transfer: int, matrix: int, *, full_range: bool = True) -> Box:
    return box(b"colr", b"nclx", struct.pack(">HHHB", primaries, transfer, matrix, full_range << 7))


@dataclass
class Item:
    kind: bytes
    data: bytes = b""
    properties: list[Box] = field(default_factory=list)
    in_index: bool = False


@dataclass
class Heic:
    """Items are numbered from 1; `references` are (kind, from, to)."""

    items: list[Item] = field(default_factory=list)
    references: list[tuple[bytes, int, list[int]]] = field(default_factory=list)
    primary: int = 1
    brands: Sequence[bytes] = (b"heic", b"mif1", b"heic", b"MiHB")

    def add(self, item: Item) -> int:
        self.items.append(item)
        return len(self.items)

    def written(self) -> bytes:
        head = box(b"ftyp", self.brands[0], bytes(4), *self.brands[1:])
        start = len(head) + len(self._meta(0)) + 8
        return head + self._meta(start) + box(b"mdat", *(item.data for item in self.items if not item.in_index))

    def _meta(self, start: int) -> Box:
        count = struct.pack(">H", len(self.items))
        kinds = (full(b"infe", 2, 0, struct.pack(">HH4sx", n, 0, i.kind)) for n, i in self._numbered())
        return full(
            b"meta",
            0,
            0,
            full(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
            full(b"pitm", 0, 0, struct.pack(">H", self.primary)),
            full(b"iloc", 1, 0, b"\x44\x00", count, *self._places(start)),
            full(b"iinf", 0, 0, count, *kinds),
            full(b"iref", 0, 0, *(_reference(*one) for one in self.references)),
            self._properties(),
            box(b"idat", *(item.data for item in self.items if item.in_index)),
        )

    def _numbered(self) -> Iterable[tuple[int, Item]]:
        return enumerate(self.items, 1)

    def _places(self, start: int) -> Iterable[bytes]:
        at = {True: 0, False: start}
        for number, item in self._numbered():
            yield struct.pack(">HHHHII", number, item.in_index, 0, 1, at[item.in_index], len(item.data))
            at[item.in_index] += len(item.data)

    def _properties(self) -> Box:
        every = list(dict.fromkeys(one for item in self.items for one in item.properties))
        links = (
            struct.pack(">HB", number, len(item.properties)) + bytes(every.index(p) + 1 for p in item.properties)
            for number, item in self._numbered()
            if item.properties
        )
        linked = struct.pack(">I", sum(bool(item.properties) for item in self.items))
        return box(b"iprp", box(b"ipco", *every), full(b"ipma", 0, 0, linked, *links))


def _reference(kind: bytes, source: int, targets: Sequence[int]) -> Box:
    return box(kind, struct.pack(f">HH{len(targets)}H", source, len(targets), *targets))


def hevc(pictures: Sequence[Pixels], pixel_format: str = "yuvj420p", **tags: int) -> tuple[bytes, list[bytes]]:
    """Each picture, (H, W, 3) or (H, W), on its own: the `hvcC` that they share, and the bytes of each."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx265", rate=1)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.codec_tag = "hvc1"
        full_range = "limited" if tags.get("color_range") == 1 else "full"
        params = f"log-level=none:keyint=1:info=0:range={full_range}:pools=1:frame-threads=1"
        stream.options = {"crf": "2", "preset": "ultrafast", "x265-params": params}
        for pixels in pictures:
            frame = av.VideoFrame.from_ndarray(pixels, "gray" if pixels.ndim == 2 else "rgb24")
            made = frame.reformat(
                format=pixel_format,
                dst_colorspace=tags.get("matrix", 5),
                src_color_range=2,
                dst_color_range=tags.get("color_range", 2),
            )
            container.mux(stream.encode(made))
        container.mux(stream.encode(None))
    with av.open(io.BytesIO(out.getvalue())) as container:
        config = bytes(container.streams.video[0].codec_context.extradata)
        return config, [bytes(packet) for packet in container.demux() if packet.size]


def padded(pixels: Pixels, multiple: int) -> Pixels:
    """The last row and column repeated until the sides are multiples."""
    more = [(0, -side % multiple) for side in pixels.shape[:2]]
    return np.pad(pixels, [*more, *[(0, 0)] * (pixels.ndim - 2)], mode="edge")


def single(heic: Heic, pixels: Pixels, *properties: Box, **encoding: object) -> int:
    """A picture of one piece; its number."""
    config, (data,) = hevc([padded(pixels, 2)], **encoding)
    height, width = pixels.shape[:2]
    return heic.add(Item(b"hvc1", data, [box(b"hvcC", config), ispe(width, height), *properties]))


def grid(heic: Heic, pixels: Pixels, *properties: Box, tile_properties: Sequence[Box] = (), **encoding: object) -> int:
    """A picture in tiles; its number."""
    height, width = pixels.shape[:2]
    whole = padded(pixels, TILE_PX)
    rows, columns = whole.shape[0] // TILE_PX, whole.shape[1] // TILE_PX
    pieces = [
        np.ascontiguousarray(whole[y : y + TILE_PX, x : x + TILE_PX])
        for y in range(0, whole.shape[0], TILE_PX)
        for x in range(0, whole.shape[1], TILE_PX)
    ]
    config, coded = hevc(pieces, **encoding)
    alike = [box(b"hvcC", config), ispe(TILE_PX, TILE_PX), *tile_properties]
    tiles = [heic.add(Item(b"hvc1", data, alike)) for data in coded]
    said = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
    number = heic.add(Item(b"grid", said, [ispe(width, height), *properties], in_index=True))
    heic.references.append((b"dimg", number, tiles))
    return number


def with_alpha(heic: Heic, alpha: Pixels, *, premultiplied: bool = False) -> None:
    """Transparency for the primary picture."""
    said = full(b"auxC", 0, 0, b"urn:mpeg:hevc:2015:auxid:1\0")
    number = single(heic, alpha, said, pixel_format="gray")
    heic.references.append((b"auxl", number, [heic.primary]))
    if premultiplied:
        heic.references.append((b"prem", heic.primary, [number]))


def with_exif_orientation(heic: Heic, orientation: int) -> None:
    """What phones write besides `irot`, and what HEIF says is not to be looked at."""
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    heic.references.append((b"cdsc", heic.add(Item(b"Exif", struct.pack(">I", 0) + tiff)), [heic.primary]))


def photo(path: Path, pixels: Pixels, *properties: Box, **encoding: object) -> Path:
    """As an iPhone takes it: tiles, thumbnail and all."""
    heic = Heic()
    heic.primary = grid(heic, pixels, *properties, **encoding)
    small = single(heic, np.zeros((64, 64, 3), np.uint8))
    heic.references.append((b"thmb", small, [heic.primary]))
    path.write_bytes(heic.written())
    return path


def changed(heic: Heic, number: int, **fields: object) -> Heic:
    """With one item otherwise."""
    items = [replace(item, **fields) if at == number else item for at, item in enumerate(heic.items, 1)]
    return replace(heic, items=items)

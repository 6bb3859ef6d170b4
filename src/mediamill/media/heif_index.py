"""What a HEIC file says about its picture (ISO/IEC 14496-12 and 23008-12): where its tiles are and how they are meant.

Nothing is decoded here, and nothing that the file says is believed without a bound.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import SEEK_END
from typing import IO

from PIL import Image

from mediamill.errors import UnsupportedMedia
from mediamill.media.size import check_size

MAX_TILES = 4096
"""50 megapixels in the 512x512 of phones are 191 tiles, in 128x128 they are 3052."""
MAX_INDEX_BYTES = 4 * 2**20
"""What holds no pixels; a phone writes 4 kB."""
_MAX_BOXES = 1000
"""Outermost ones; a phone writes three."""
_MAX_EXTENTS = 65_536
"""Of all items; they may have fields of no bytes, so that the index's size does not bound them."""

_CODED = frozenset({b"hvc1", b"hev1"})
_ALPHA = frozenset({b"urn:mpeg:hevc:2015:auxid:1", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"})
_IN_FILE, _IN_INDEX = 0, 1
_Box = tuple[bytes, bytes]
"""Kind and body."""
CropBox = tuple[int, int, int, int]
"""Left, top, right, bottom, in px."""
Turn = Image.Transpose | CropBox
"""One step from the picture as stored to the one shown."""
_ROTATIONS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
"""By the quarters of `irot`, which counts against the clock, as Pillow does."""


@dataclass(frozen=True)
class CodePoints:
    """ITU-T H.273 numbers from a `colr` box."""

    primaries: int
    transfer: int
    matrix: int
    full_range: bool


@dataclass(frozen=True)
class Tile:
    """One HEVC picture: the decoder's configuration (`hvcC`), and where its bytes are."""

    config: bytes
    width_px: int
    height_px: int
    extents: tuple[tuple[int, int], ...]
    """(offset, size) in the file."""

    @property
    def size_bytes(self) -> int:
        """Of all extents."""
        return sum(size for _, size in self.extents)


@dataclass(frozen=True)
class Still:
    """A picture as stored: `columns` tiles a row, all of one size; what stands out at the right and bottom is cut off."""

    width_px: int
    height_px: int
    columns: int
    tiles: tuple[Tile, ...]
    turns: tuple[Turn, ...] = ()
    profile: bytes | None = None
    code_points: CodePoints | None = None
    alpha: Still | None = None
    premultiplied: bool = False

    @property
    def shown_px(self) -> tuple[int, int]:
        """Width and height after all turns."""
        width, height = self.width_px, self.height_px
        for turn in self.turns:
            if isinstance(turn, tuple):
                width, height = turn[2] - turn[0], turn[3] - turn[1]
            elif turn in {Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270}:
                width, height = height, width
        return width, height


def read(file: IO[bytes]) -> Still:
    """The primary picture of an open file.

    Raises: UnsupportedMedia: damaged, or made of something else than HEVC pictures. TooLarge: it, its transparency or a
        tile has too many pixels.
    """
    size_bytes = file.seek(0, SEEK_END)
    try:
        index = _Index(_meta(file, size_bytes), size_bytes)
        still = index.still(index.primary, with_alpha=True)
    except (struct.error, IndexError) as error:
        raise damaged("its index ends too early") from error
    tiles = still.tiles + (still.alpha.tiles if still.alpha else ())
    if sum(tile.size_bytes for tile in tiles) > size_bytes:
        raise damaged("its tiles overlap")
    return still


def damaged(why: str) -> UnsupportedMedia:
    """The refusal of a file whose parts contradict each other."""
    return UnsupportedMedia(f"The HEIC picture is damaged: {why}.")


def _meta(file: IO[bytes], size_bytes: int) -> bytes:
    """The body of the `meta` box."""
    at = 0
    for _ in range(_MAX_BOXES):
        if at + 8 > size_bytes:
            break
        file.seek(at)
        header = file.read(16)
        length, kind = struct.unpack_from(">I4s", header)
        head = 8
        if length == 1:
            length, head = struct.unpack_from(">Q", header, 8)[0], 16
        length = length or size_bytes - at
        if length < head or at + length > size_bytes:
            raise damaged("it ends too early")
        if kind == b"meta":
            if length > MAX_INDEX_BYTES:
                raise damaged(f"its index has {length} bytes; at most {MAX_INDEX_BYTES} are read")
            file.seek(at + head)
            return file.read(length - head)
        at += length
    raise UnsupportedMedia("The HEIC file has no still picture in it, only a sequence; send one picture.")


def _boxes(data: bytes, at: int = 0) -> Iterator[_Box]:
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1:
            length, head = struct.unpack_from(">Q", data, at + 8)[0], 16
        length = length or len(data) - at
        if length < head or at + length > len(data):
            raise damaged(f"its {kind.decode('latin-1')!r} box has {length} bytes")
        yield kind, data[at + head : at + length]
        at += length


class _Bytes:
    """Big-endian numbers, one after the other."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self._at = at

    def number(self, size_bytes: int) -> int:
        if self._at + size_bytes > len(self._data):
            raise IndexError
        self._at += size_bytes
        return int.from_bytes(self._data[self._at - size_bytes : self._at], "big")


@dataclass
class _Item:
    kind: bytes = b""
    extents: tuple[tuple[int, int], ...] = ()
    data: bytes | None = None
    """Where it is stored in the index itself."""
    properties: list[_Box] = field(default_factory=list)

    def property(self, kind: bytes) -> bytes | None:
        return next((body for name, body in self.properties if name == kind), None)


class _Index:
    """The `meta` box: items, their properties, and what refers to what."""

    def __init__(self, body: bytes, file_bytes: int) -> None:
        self._file_bytes = file_bytes
        self._items: dict[int, _Item] = {}
        self._references: list[tuple[bytes, int, list[int]]] = []
        found = dict(_boxes(body, at=4))
        for kind in (b"pitm", b"iinf", b"iloc", b"iprp"):
            if kind not in found:
                raise damaged(f"it has no {kind.decode()!r} box")
        pitm = found[b"pitm"]
        self.primary = _Bytes(pitm, 4).number(4 if pitm[0] else 2)
        self._read_kinds(found[b"iinf"])
        self._read_places(found[b"iloc"], found.get(b"idat", b""))
        self._read_references(found.get(b"iref", b""))
        self._read_properties(found[b"iprp"])

    def _item(self, number: int) -> _Item:
        return self._items.setdefault(number, _Item())

    def _read_kinds(self, iinf: bytes) -> None:
        for kind, body in _boxes(iinf, at=8 if iinf[0] else 6):
            if kind == b"infe" and body[0] >= 2:  # noqa: PLR2004 - older ones name no kind
                wide = body[0] > 2  # noqa: PLR2004 - version 3 numbers items by 4 bytes
                number = _Bytes(body, 4).number(4 if wide else 2)
                self._item(number).kind = body[10:14] if wide else body[8:12]

    def _read_places(self, iloc: bytes, idat: bytes) -> None:
        version, sizes = iloc[0], struct.unpack_from(">H", iloc, 4)[0]
        offset_bytes, length_bytes, base_bytes, index_bytes = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
        wide = 4 if version > 1 else 2
        numbers = _Bytes(iloc, 6)
        left = _MAX_EXTENTS
        for _ in range(numbers.number(wide)):
            item = self._item(numbers.number(wide))
            method = numbers.number(2) & 15 if version else _IN_FILE
            numbers.number(2)  # a file of its own; nobody writes that
            base = numbers.number(base_bytes)
            extents = []
            count = numbers.number(2)
            left -= count
            if left < 0:
                raise damaged(f"its items are in more than {_MAX_EXTENTS} pieces")
            for _ in range(count):
                if version:
                    numbers.number(index_bytes)
                extents.append((base + numbers.number(offset_bytes), numbers.number(length_bytes)))
            if method == _IN_INDEX:
                at, size = extents[0]
                item.data = idat[at : at + size]
            elif method == _IN_FILE:
                item.extents = tuple(extents)

    def _read_references(self, iref: bytes) -> None:
        if not iref:
            return
        wide = 4 if iref[0] else 2
        for kind, body in _boxes(iref, at=4):
            numbers = _Bytes(body)
            source = numbers.number(wide)
            self._references.append((kind, source, [numbers.number(wide) for _ in range(numbers.number(2))]))

    def _read_properties(self, iprp: bytes) -> None:
        properties: list[_Box] = []
        for kind, body in _boxes(iprp):
            if kind == b"ipco":
                properties = list(_boxes(body))
        for kind, body in _boxes(iprp):
            if kind == b"ipma":
                self._associate(body, properties)

    def _associate(self, ipma: bytes, properties: list[_Box]) -> None:
        number_bytes, link_bytes = 4 if ipma[0] else 2, 2 if ipma[3] & 1 else 1
        unneeded = 0x7FFF if link_bytes == 2 else 0x7F  # noqa: PLR2004 - the top bit says "essential"
        numbers = _Bytes(ipma, 4)
        for _ in range(numbers.number(4)):
            item = self._item(numbers.number(number_bytes))
            links = [numbers.number(link_bytes) & unneeded for _ in range(numbers.number(1))]
            item.properties = [properties[link - 1] for link in links if link]  # told twice, the last counts

    def still(self, number: int, *, with_alpha: bool) -> Still:
        """An item as a picture."""
        item = self._item(number)
        alpha = self._alpha_of(number) if with_alpha else None
        width_px, height_px = _size(item)
        parts, columns = self._parts(number, item)
        colours = [*item.properties, *parts[0].properties]  # older phones tell them of the tiles alone
        return Still(
            width_px=width_px,
            height_px=height_px,
            columns=columns,
            tiles=tuple(self._tile(part) for part in parts),
            turns=tuple(_turns(item, width_px, height_px)),
            profile=_profile(colours),
            code_points=_code_points(colours),
            alpha=None if alpha is None else self.still(alpha, with_alpha=False),
            premultiplied=any(kind == b"prem" and source == number for kind, source, _ in self._references),
        )

    def _alpha_of(self, number: int) -> int | None:
        for kind, source, targets in self._references:
            if kind == b"auxl" and number in targets:
                stated = self._item(source).property(b"auxC")
                if stated is not None and stated[4:].split(b"\0")[0] in _ALPHA:
                    return source
        return None

    def _parts(self, number: int, item: _Item) -> tuple[list[_Item], int]:
        """What the picture is made of, row by row, and how many are in a row."""
        if item.kind in _CODED:
            return [item], 1
        if item.kind != b"grid":
            kind = item.kind.decode("latin-1")
            raise UnsupportedMedia(f"The HEIF picture is of kind {kind!r}; accepted are HEVC pictures, also in tiles.")
        rows, columns, width_px, height_px = _grid(item)
        numbers = next((to for kind, source, to in self._references if kind == b"dimg" and source == number), [])
        if len(numbers) != rows * columns:
            raise damaged(f"{len(numbers)} tiles for {rows} rows and {columns} columns")
        parts = [self._item(part) for part in numbers]
        across, down = _size(parts[0])
        if any(_size(part) != (across, down) for part in parts):
            raise damaged("its tiles differ in size")
        fits = 0 <= columns * across - width_px < across and 0 <= rows * down - height_px < down
        if not fits or (width_px, height_px) != _size(item):
            raise damaged(f"{columns}x{rows} tiles of {across}x{down} do not make {width_px}x{height_px}")
        return parts, columns

    def _tile(self, item: _Item) -> Tile:
        config = item.property(b"hvcC")
        if item.kind not in _CODED or config is None or not any(size for _, size in item.extents):
            raise damaged("a tile is not there")
        if any(at + size > self._file_bytes for at, size in item.extents):
            raise damaged("it ends too early")
        return Tile(config, *_size(item), item.extents)


def _size(item: _Item) -> tuple[int, int]:
    stated = item.property(b"ispe")
    if stated is None:
        raise damaged("it does not say its size")
    width_px, height_px = struct.unpack_from(">II", stated, 4)
    check_size(width_px, height_px)
    return width_px, height_px


def _grid(item: _Item) -> tuple[int, int, int, int]:
    """Rows, columns, width and height in px."""
    if item.data is None:
        raise damaged("its grid is not there")
    _, wide, rows, columns = struct.unpack_from(">4B", item.data)
    width_px, height_px = struct.unpack_from(">II" if wide & 1 else ">HH", item.data, 4)
    rows, columns = rows + 1, columns + 1
    if rows * columns > MAX_TILES:
        raise UnsupportedMedia(f"The HEIC picture has {rows * columns} tiles; at most {MAX_TILES} are read.")
    return rows, columns, width_px, height_px


def _turns(item: _Item, width_px: int, height_px: int) -> Iterator[Turn]:
    """In the order in which they are to be done."""
    for kind, body in item.properties:
        if kind == b"irot" and (turn := _ROTATIONS[body[0] & 3]) is not None:
            yield turn
            if body[0] & 1:
                width_px, height_px = height_px, width_px
        elif kind == b"imir":
            yield Image.Transpose.FLIP_LEFT_RIGHT if body[0] & 1 else Image.Transpose.FLIP_TOP_BOTTOM
        elif kind == b"clap":
            box = _clean_aperture(body, width_px, height_px)
            yield box
            width_px, height_px = box[2] - box[0], box[3] - box[1]


def _clean_aperture(body: bytes, width_px: int, height_px: int) -> CropBox:
    """Its offset is that of its centre from the picture's."""
    values = struct.unpack_from(">IIIIiIiI", body)
    if not all(values[1::2]):
        raise damaged("its crop divides by zero")
    across, down, right, below = (a / b for a, b in zip(values[::2], values[1::2], strict=True))
    left = max(0, round((width_px - across) / 2 + right))
    top = max(0, round((height_px - down) / 2 + below))
    box = (left, top, min(width_px, round(left + across)), min(height_px, round(top + down)))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise damaged("nothing of it is shown")
    return box


def _profile(properties: Sequence[_Box]) -> bytes | None:
    found = (body[4:] for kind, body in properties if kind == b"colr" and body[:4] in {b"prof", b"rICC"})
    return next(found, None) or None


def _code_points(properties: Sequence[_Box]) -> CodePoints | None:
    for kind, body in properties:
        if kind == b"colr" and body[:4] == b"nclx":
            primaries, transfer, matrix, flags = struct.unpack_from(">HHHB", body, 4)
            return CodePoints(primaries, transfer, matrix, bool(flags & 0x80))
    return None

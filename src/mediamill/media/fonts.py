"""Which font has a glyph for a character: the one that comes along, the operator's folder, then the system's.

libass draws nothing, or a box, for a character without a glyph, and says so nowhere a caller looks. So coverage is read
from the fonts' own character maps before anything is drawn.
"""

from __future__ import annotations

import itertools
import struct
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fontpkg_noto_sans
import noto_cjk_sans_otc
from PIL import ImageFont

from mediamill.errors import InvalidRequest

_SUFFIXES = frozenset({".ttf", ".otf", ".ttc", ".otc"})
_MAX_FONT_BYTES = 64 * 1024**2
_MAX_FACES = 64
_SYSTEM_FOLDERS = {
    "darwin": ("/System/Library/Fonts", "/Library/Fonts"),
    "win32": ("C:/Windows/Fonts",),
}
_UNIX_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts")
_PLAIN_STYLES = frozenset({"regular", "book", "roman", "normal", "medium"})
_NAMED_FAMILIES = 30
_NOTO_CJK = Path(str(noto_cjk_sans_otc.FONT_PATH))
_NOTO_SANS = Path(str(fontpkg_noto_sans.ROOT)) / "files" / "NotoSans[wdth,wght].ttf"
_JAPANESE = (0x3040, 0x30FF)
_KOREAN = (0xAC00, 0xD7A3)
_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp"})
_VARIATION = (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))

_UNICODE_MAPS = ((3, 10), (0, 6), (0, 4), (3, 1), (0, 3), (0, 2), (0, 1), (0, 0))
"""(platform, encoding) of Unicode character maps, the fullest first."""


@dataclass(frozen=True)
class Face:
    """One font in a file. `starts` and `ends`: ranges of code points it has glyphs for, in order, ends inclusive."""

    path: Path
    family: str
    style: str
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def has(self, char: str) -> bool:
        """Whether it has a glyph for the character."""
        at = bisect_right(self.starts, ord(char)) - 1
        return at >= 0 and ord(char) <= self.ends[at]


def needs_glyph(char: str) -> bool:
    """False for spaces, controls, joiners and variation selectors: nothing is drawn for them."""
    return not (char.isspace() or unicodedata.category(char) in _INVISIBLE or ord(char) in _VARIATION)


def uncovered(text: str, fonts_dir: Path | None = None) -> list[str]:
    """The characters of a text, each once and in order, that no font here has a glyph for."""
    return assign(text, fonts_dir)[1]


def assign(text: str, fonts_dir: Path | None = None, family: str | None = None) -> tuple[dict[str, Face], list[str]]:
    """A face for each character that needs a glyph, and the characters for which there is none.

    As few faces as possible: those of `family` first where one is named, then the bundled ones. Fonts of the system are
    read only when something is missing.

    Raises: InvalidRequest: there is no font of that family.
    """
    wanted = dict.fromkeys(char for char in text if needs_glyph(char))
    chosen: dict[str, Face] = {}
    preferred = _of_family(family, fonts_dir) if family else ()
    for face in itertools.chain(preferred, _faces(text, fonts_dir)):
        if not wanted:
            break
        found = [char for char in wanted if face.has(char)]
        chosen.update(dict.fromkeys(found, face))
        for char in found:
            del wanted[char]
    return chosen, list(wanted)


def named(chars: Sequence[str]) -> str:
    """Characters as a sentence can name them: U+1F600 GRINNING FACE, at most five."""
    names = [f"U+{ord(c):04X} {unicodedata.name(c, 'UNNAMED')}" for c in chars[:5]]
    more = len(chars) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def _of_family(family: str, fonts_dir: Path | None) -> list[Face]:
    """Every face of a family, wherever it lies; of the first place that has any."""
    known: dict[str, None] = {}
    own = _in_folders([fonts_dir]) if fonts_dir else ()
    for place in ((*_read(_NOTO_SANS), *_read(_NOTO_CJK)), own, _in_system()):
        faces = list(place)
        if found := [face for face in faces if face.family.casefold() == family.casefold()]:
            return found
        known |= dict.fromkeys(face.family for face in faces)
    there = ", ".join(list(known)[:_NAMED_FAMILIES])
    raise InvalidRequest(f"style.font: there is no font family {family!r} here; there are {there}.")


def _faces(text: str, fonts_dir: Path | None) -> Iterator[Face]:
    yield from bundled(text)
    if fonts_dir:
        yield from _in_folders([fonts_dir])
    yield from _in_system()


def _in_system() -> Iterator[Face]:
    system = _SYSTEM_FOLDERS.get(sys.platform, _UNIX_FOLDERS)
    yield from _in_folders([*map(Path, system), Path.home() / ".fonts", Path.home() / ".local/share/fonts"])


def bundled(text: str = "") -> tuple[Face, ...]:
    """The fonts that come along: Noto Sans (Latin, Greek, Cyrillic), then Noto Sans CJK.

    Han characters are drawn the Japanese way in a text with kana, the Korean way in one with Hangul, else the
    simplified Chinese way.
    """
    way = "SC"
    if any(_KOREAN[0] <= ord(c) <= _KOREAN[1] for c in text):
        way = "KR"
    if any(_JAPANESE[0] <= ord(c) <= _JAPANESE[1] for c in text):
        way = "JP"
    return (*_read(_NOTO_SANS), *(face for face in _read(_NOTO_CJK) if face.family == f"Noto Sans CJK {way}"))


def _read(path: Path) -> tuple[Face, ...]:
    return read_faces(path, path.stat().st_mtime_ns)


def _in_folders(folders: Iterable[Path]) -> Iterator[Face]:
    """Regular faces before bold and slanted ones, in the order of their paths."""
    found: list[Face] = []
    for folder in folders:
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.suffix.lower() in _SUFFIXES and path.is_file() and path.stat().st_size <= _MAX_FONT_BYTES:
                found.extend(_read(path))
    yield from sorted(found, key=lambda face: face.style.lower() not in _PLAIN_STYLES)


@cache
def read_faces(path: Path, _changed_ns: int) -> tuple[Face, ...]:
    """Every face of a font file that has a Unicode character map; none for a file that is no font.

    Read once for each version of the file: its modification time is part of the key.
    """
    try:
        data = path.read_bytes()
        faces = []
        for index, offset in enumerate(_face_offsets(data)):
            starts, ends = _character_map(data, offset)
            family, style = ImageFont.truetype(str(path), 10, index).getname()
            if family and starts:
                faces.append(Face(path, family, style or "Regular", starts, ends))
    except (OSError, struct.error, ValueError, IndexError):
        return ()
    return tuple(faces)


def _face_offsets(data: bytes) -> list[int]:
    if data[:4] != b"ttcf":
        return [0]
    (count,) = struct.unpack_from(">I", data, 8)
    return list(struct.unpack_from(f">{min(count, _MAX_FACES)}I", data, 12))


def _character_map(data: bytes, face: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ranges of the fullest Unicode subtable, joined where they touch."""
    table = _cmap_offset(data, face)
    (count,) = struct.unpack_from(">H", data, table + 2)
    records = (struct.unpack_from(">HHI", data, table + 4 + 8 * i) for i in range(count))
    places = {(platform, encoding): table + offset for platform, encoding, offset in records}
    return _cached_ranges(data, next((places[key] for key in _UNICODE_MAPS if key in places), None))


def _cmap_offset(data: bytes, face: int) -> int:
    (tables,) = struct.unpack_from(">H", data, face + 4)
    for i in range(tables):
        tag, _checksum, offset, _length = struct.unpack_from(">4sIII", data, face + 12 + 16 * i)
        if tag == b"cmap":
            return int(offset)
    raise ValueError("no character map")


def _cached_ranges(data: bytes, at: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if at is None:
        return (), ()
    (kind,) = struct.unpack_from(">H", data, at)
    if kind == 12:  # noqa: PLR2004 - subtable format numbers of the OpenType specification
        ranges = _format_12(data, at)
    elif kind == 4:  # noqa: PLR2004 - as above
        ranges = _format_4(data, at)
    else:
        return (), ()
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(s for s, _ in joined), tuple(e for _, e in joined)


def _format_12(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    (groups,) = struct.unpack_from(">I", data, at + 12)
    end = at + 16 + 12 * groups
    if end > len(data):
        raise ValueError("a character map longer than its file")
    for start, last, glyph in struct.iter_unpack(">III", data[at + 16 : end]):
        yield (start + (glyph == 0), last)  # glyph 0 is "no glyph"


def _format_4(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    (double,) = struct.unpack_from(">H", data, at + 6)
    count = double // 2
    ends = struct.unpack_from(f">{count}H", data, at + 14)
    starts = struct.unpack_from(f">{count}H", data, at + 16 + double)
    deltas = struct.unpack_from(f">{count}H", data, at + 16 + 2 * double)
    offsets_at = at + 16 + 3 * double
    offsets = struct.unpack_from(f">{count}H", data, offsets_at)
    for i in range(count):
        if starts[i] == 0xFFFF:  # noqa: PLR2004 - the closing segment
            continue
        for char in range(starts[i], ends[i] + 1):
            glyph = char
            if offsets[i]:
                place = offsets_at + 2 * i + offsets[i] + 2 * (char - starts[i])
                (glyph,) = struct.unpack_from(">H", data, place)
                if glyph == 0:
                    continue
            if (glyph + deltas[i]) & 0xFFFF:
                yield (char, char)

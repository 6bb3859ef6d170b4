"""Whether a fetched file is what its field asks for, by its bytes: kind, and whether it ends too early."""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable
from pathlib import Path

from mediamill.catalog import MediaKind
from mediamill.errors import UnsupportedMedia
from mediamill.media.sniff import HEAD_BYTES, PICTURES, sniff_bytes

ACCEPTED: dict[MediaKind, str] = {
    "image": f"{PICTURES} pictures",
    "video": "MP4, MOV, WebM, Matroska, AVI, MPEG and FLV videos",
    "audio": "MP3, AAC, M4A, WAV, FLAC, Ogg and AIFF sounds, or a video with sound",
    "subtitles": "SRT subtitles as plain text",
    "any": "pictures, videos, sounds and SRT subtitles",
}
"""What each kind of field takes, for messages."""

_FITTING: dict[MediaKind, frozenset[str]] = {
    "image": frozenset({"image"}),
    "video": frozenset({"video"}),
    "audio": frozenset({"audio", "video"}),
    "subtitles": frozenset(),
    "any": frozenset({"image", "video", "audio"}),
}
_EITHER = frozenset({"audio/ogg"})
"""Containers whose first bytes do not tell a sound from a video."""
_MARKUP = re.compile(rb"\s*<(!doctype|html|head|body|\?xml|svg|mpd|smil|script)\b", re.IGNORECASE)
_PLAYLIST = re.compile(rb"\s*(#EXTM3U|ffconcat\b|\[playlist\]|v=0\r?\no=|file\s+['\"./a-z])", re.IGNORECASE)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SIZE_HEADER_BYTES = 8
_LONG_HEADER_BYTES = 16
_MAX_BOXES = 100_000
"""Outermost ones of an MP4 that are looked at, in a fifth of a second: fragments of a second come to that in 14 hours."""


def accepted_type(path: Path, *, kind: MediaKind, field: str) -> str:
    """The media type of a file that a field of this kind takes.

    Raises: UnsupportedMedia naming the field, what the file is, and what is accepted.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    try:
        return _recognised(path, head, kind)
    except UnsupportedMedia as error:
        what = _known_text(head) or error.message.rstrip(".")
        raise UnsupportedMedia(f"{field}: {what[0].lower()}{what[1:]}; accepted: {ACCEPTED[kind]}.") from error


def _recognised(path: Path, head: bytes, kind: MediaKind) -> str:
    if kind == "subtitles" or (kind == "any" and _looks_like_text(head)):
        return _text_type(head)
    sniffed = sniff_bytes(head)
    if sniffed.kind not in _FITTING[kind] and sniffed.media_type not in _EITHER:
        raise UnsupportedMedia(f"The file is {sniffed.media_type}")
    ends_early = _ENDS_EARLY.get(sniffed.media_type)
    if ends_early is not None and ends_early(path):
        raise UnsupportedMedia(f"The file is damaged: it is {sniffed.media_type} and ends too early")
    return sniffed.media_type


def _known_text(head: bytes) -> str | None:
    start = head.lstrip(b"\xef\xbb\xbf")
    if _PLAYLIST.match(start):
        return "The file is a playlist"
    if b"<svg" in start[:1024].lower() and _MARKUP.match(start):
        return "The file is an SVG drawing"
    if re.match(rb"\s*<(!doctype html|html|head|body|script)\b", start, re.IGNORECASE):
        return "The file is an HTML page"
    return "The file is an XML document" if _MARKUP.match(start) else None


def _looks_like_text(head: bytes) -> bool:
    if head.startswith(_UTF16):
        return True
    return bool(head) and not any(byte < 9 or (13 < byte < 32 and byte != 27) for byte in head)  # noqa: PLR2004 - controls


def _text_type(head: bytes) -> str:
    """Subtitles have no signature: any text that is not markup or a playlist may be SRT in some encoding."""
    if not head:
        raise UnsupportedMedia("The file is empty (0 bytes).")
    if head.startswith(_UTF16) or head[1:4:2] == b"\x00\x00" or head[0:3:2] == b"\x00\x00":
        text = head.decode("utf-16-be" if head[0] in (0, 0xFE) else "utf-16-le", "replace").encode()
    else:
        text = head
    text = text.removeprefix(b"\xef\xbb\xbf")
    if _known_text(text):
        raise UnsupportedMedia(_known_text(text))
    if not _looks_like_text(text):
        raise UnsupportedMedia("The file is not text")
    if text.lstrip().startswith(b"[Script Info]"):
        return "text/x-ssa"
    return "text/vtt" if text.startswith(b"WEBVTT") else "application/x-subrip"


def _png_ends_early(path: Path) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.rfind(b"IEND") < 0


def _jpeg_ends_early(path: Path) -> bool:
    """Whether no end marker follows the first scan; pictures inside the metadata are stepped over."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = 2
        while at + 4 <= len(content) and content[at] == 0xFF:  # noqa: PLR2004 - every marker begins so
            if content[at + 1] == 0xFF:  # noqa: PLR2004 - fill byte
                at += 1
            elif content[at + 1] == 0xDA:  # noqa: PLR2004 - start of scan
                return content.find(b"\xff\xd9", at) < 0
            else:
                at += 2 + struct.unpack_from(">H", content, at + 2)[0]
        return at + 4 > len(content)


def _riff_ends_early(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.read(_SIZE_HEADER_BYTES)
    promised: int = struct.unpack_from("<I", header, 4)[0] + _SIZE_HEADER_BYTES
    return path.stat().st_size < promised


def _boxes_end_early(path: Path, *, indexes: frozenset[bytes]) -> bool:
    """Whether every index is missing, or the box that holds one or the pictures goes beyond the end.

    Of a file of more than `_MAX_BOXES` the rest is left to the one who decodes it.
    """
    size_bytes = path.stat().st_size
    indexed = False
    at = 0
    with path.open("rb") as file:
        for _ in range(_MAX_BOXES):
            if at + _SIZE_HEADER_BYTES > size_bytes:
                break
            file.seek(at)
            header = file.read(_LONG_HEADER_BYTES).ljust(_LONG_HEADER_BYTES, b"\x00")
            length, name = struct.unpack_from(">I4s", header)
            if length == 1:
                length = struct.unpack_from(">Q", header, _SIZE_HEADER_BYTES)[0]
            elif length == 0:
                length = size_bytes - at
            if length < _SIZE_HEADER_BYTES:
                break
            indexed = indexed or name in indexes
            if at + length > size_bytes:
                return not indexed or name in indexes | {b"mdat"}
            at += length
    return not indexed


def _mp4_ends_early(path: Path) -> bool:
    return _boxes_end_early(path, indexes=frozenset({b"moov"}))


def _heic_ends_early(path: Path) -> bool:
    return _boxes_end_early(path, indexes=frozenset({b"meta", b"moov"}))


_ENDS_EARLY: dict[str, Callable[[Path], bool]] = {
    "image/png": _png_ends_early,
    "image/jpeg": _jpeg_ends_early,
    "image/webp": _riff_ends_early,
    "image/heic": _heic_ends_early,
    "video/mp4": _mp4_ends_early,
    "video/quicktime": _mp4_ends_early,
    "audio/mp4": _mp4_ends_early,
}

"""Tell a file's type from its first bytes, and name the one demuxer that may read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mediamill.errors import UnsupportedMedia

Kind = Literal["image", "video", "audio"]

HEAD_BYTES = 4096
_TS_PACKET_BYTES = 188
_ID3_HEADER_BYTES = 10


@dataclass(frozen=True)
class Sniffed:
    """`demuxer`: FFmpeg's name of the only demuxer that may open it; "" for still pictures (Pillow reads those)."""

    media_type: str
    kind: Kind
    demuxer: str = ""


# Offset of the magic bytes, the bytes, and what they mean.
_MAGIC: tuple[tuple[int, bytes, Sniffed], ...] = (
    (0, b"\xff\xd8\xff", Sniffed("image/jpeg", "image")),
    (0, b"\x89PNG\r\n\x1a\n", Sniffed("image/png", "image")),
    (0, b"GIF87a", Sniffed("image/gif", "image")),
    (0, b"GIF89a", Sniffed("image/gif", "image")),
    (0, b"BM", Sniffed("image/bmp", "image")),
    (0, b"II*\x00", Sniffed("image/tiff", "image")),
    (0, b"MM\x00*", Sniffed("image/tiff", "image")),
    (4, b"ftypM4A ", Sniffed("audio/mp4", "audio", "mov")),
    (4, b"ftypM4B ", Sniffed("audio/mp4", "audio", "mov")),
    (4, b"ftypqt  ", Sniffed("video/quicktime", "video", "mov")),
    (4, b"ftyp", Sniffed("video/mp4", "video", "mov")),
    (4, b"moov", Sniffed("video/quicktime", "video", "mov")),
    (4, b"mdat", Sniffed("video/quicktime", "video", "mov")),
    (4, b"wide", Sniffed("video/quicktime", "video", "mov")),
    (4, b"free", Sniffed("video/quicktime", "video", "mov")),
    (0, b"\x1aE\xdf\xa3", Sniffed("video/x-matroska", "video", "matroska")),
    (0, b"fLaC", Sniffed("audio/flac", "audio", "flac")),
    (0, b"OggS", Sniffed("audio/ogg", "audio", "ogg")),
    (0, b"FLV\x01", Sniffed("video/x-flv", "video", "flv")),
    (0, b"\x00\x00\x01\xba", Sniffed("video/mpeg", "video", "mpeg")),
)
_IFF = {
    b"WEBP": Sniffed("image/webp", "image"),
    b"WAVE": Sniffed("audio/wav", "audio", "wav"),
    b"AVI ": Sniffed("video/x-msvideo", "video", "avi"),
    b"AIFF": Sniffed("audio/aiff", "audio", "aiff"),
    b"AIFC": Sniffed("audio/aiff", "audio", "aiff"),
}
"""Form type of a RIFF, RF64 or FORM file, at offset 8."""
_HEIC = Sniffed("image/heic", "image")
_AVIF = Sniffed("image/avif", "image")
_HEVC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_AV1_BRANDS = frozenset({b"avif", b"avis"})
_ANY_CODEC_BRANDS = frozenset({b"mif1", b"msf1"})
_MP3 = Sniffed("audio/mpeg", "audio", "mp3")
_ADTS = Sniffed("audio/aac", "audio", "aac")

PICTURES = "JPEG, PNG, WebP, HEIC, AVIF, GIF, BMP and TIFF"
"""The pictures that are read, for messages and documents."""
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,wav,avi,aiff,flac,ogg,flv,mpeg,mpegts,mp3,aac"
"""Everything that may be opened at all, for FFmpeg's `format_whitelist`."""

_TEXT = (
    (b"#EXTM3U", "a playlist"),
    (b"ffconcat", "a playlist"),
    (b"[playlist]", "a playlist"),
    (b"<svg", "an SVG drawing"),
    (b"<html", "an HTML page"),
    (b"<!doctype html", "an HTML page"),
    (b"<?xml", "an XML document"),
    (b"%PDF", "a PDF document"),
)


def sniff(path: Path) -> Sniffed:
    """What the file's bytes say it is; its name counts for nothing.

    Raises: UnsupportedMedia: empty, a playlist, a vector drawing, a page, or nothing known.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    return sniff_bytes(head)


def sniff_bytes(head: bytes) -> Sniffed:
    """As `sniff`, from the first `HEAD_BYTES` of a file."""
    if not head:
        raise UnsupportedMedia("The file is empty (0 bytes).")
    if head[4:8] == b"ftyp" and (still := _still_of(head)) is not None:
        return still
    if head[:4] in {b"RIFF", b"RF64", b"FORM"} and head[8:12] in _IFF:
        return _IFF[head[8:12]]
    for at, magic, found in _MAGIC:
        if head.startswith(magic, at):
            return found
    if head.startswith(b"ID3"):
        return _behind_id3(head)
    if len(head) > _TS_PACKET_BYTES and head[0] == head[_TS_PACKET_BYTES] == 0x47:  # noqa: PLR2004 - the sync byte
        return Sniffed("video/mp2t", "video", "mpegts")
    found_audio = _mpeg_audio(head)
    if found_audio is not None:
        return found_audio
    raise UnsupportedMedia(_not_media(head))


def _still_of(head: bytes) -> Sniffed | None:
    """HEIC and AVIF are MP4 files by their outside; the major brand decides, or where that is of HEIF, the others."""
    major = head[8:12]
    if major in _ANY_CODEC_BRANDS:
        end = int.from_bytes(head[:4], "big")
        others = {head[at : at + 4] for at in range(16, min(end, len(head)), 4)}
        return _AVIF if others & _AV1_BRANDS else _HEIC
    return _HEIC if major in _HEVC_BRANDS else _AVIF if major in _AV1_BRANDS else None


def _mpeg_audio(head: bytes) -> Sniffed | None:
    """ADTS has layer bits 00; MPEG audio is of layer 2 or 3, with a bit rate and a sample rate that exist.

    Nobody has files of layer 1, whose first bytes are those of any text in UTF-16.
    """
    if len(head) < 4 or head[0] != 0xFF:  # noqa: PLR2004 - twelve sync bits
        return None
    if head[1] & 0xF6 == 0xF0:  # noqa: PLR2004 - sync, layer 0
        return _ADTS
    if head[1] & 0xE0 == 0xE0 and head[1] & 0x06 in {0x02, 0x04} and head[2] & 0xF0 != 0xF0 and head[2] & 0x0C != 0x0C:  # noqa: PLR2004
        return _MP3
    return None


def _behind_id3(head: bytes) -> Sniffed:
    """An ID3 tag may stand before MP3 or ADTS; where the tag is longer than the head, MP3 is the rule."""
    size = 0
    for byte in head[6:_ID3_HEADER_BYTES]:
        size = size << 7 | (byte & 0x7F)
    return _mpeg_audio(head[_ID3_HEADER_BYTES + size :]) or _MP3


def _not_media(head: bytes) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:512].lower()
    for magic, what in _TEXT:
        if magic.lower() in (start if magic.startswith(b"<s") else start[: len(magic)]):
            return f"The file is {what}, not a picture, video or sound."
    return "The file is not a picture, video or sound of a known kind."

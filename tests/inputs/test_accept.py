"""What a field takes, by the file's bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mediamill.catalog import MediaKind
from mediamill.errors import UnsupportedMedia
from mediamill.inputs.accept import accepted_type
from tests.heif_samples import photo
from tests.inputs import samples
from tests.media_samples import quarters

JPEG = samples.picture("JPEG", size=(64, 64))
PROGRESSIVE = samples.picture("JPEG", size=(64, 64), progressive=True)
# A picture inside the metadata ends before the real one does.
THUMBNAILED = JPEG[:2] + b"\xff\xe1" + (len(JPEG) + 2).to_bytes(2, "big") + JPEG + JPEG[2:]
MP4 = samples.movie()


def heif(*brands: bytes, index: bytes = b"meta") -> bytes:
    """The outer boxes of a HEIF file."""
    head = samples.box(b"ftyp", brands[0] + bytes(4) + b"".join(brands[1:]))
    return head + samples.box(index, b"\x00" * 64) + samples.box(b"mdat", b"\x01" * 256)


HEIC = heif(b"heic", b"mif1", b"heic")
UTF16 = samples.SRT.encode("utf-16")
PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"


@pytest.mark.parametrize(
    ("content", "kind", "media_type"),
    [
        (samples.picture("PNG"), "image", "image/png"),
        (JPEG, "image", "image/jpeg"),
        (PROGRESSIVE, "image", "image/jpeg"),
        (THUMBNAILED, "image", "image/jpeg"),
        (JPEG + b"a movie behind the picture" * 9000, "image", "image/jpeg"),
        (samples.picture("WEBP"), "image", "image/webp"),
        (samples.picture("GIF"), "image", "image/gif"),
        (samples.picture("BMP"), "image", "image/bmp"),
        (samples.picture("TIFF"), "image", "image/tiff"),
        (samples.picture("AVIF"), "image", "image/avif"),
        (HEIC, "image", "image/heic"),
        (heif(b"mif1", b"heic"), "image", "image/heic"),
        (heif(b"msf1", b"hevc"), "image", "image/heic"),
        (heif(b"heix"), "any", "image/heic"),
        (heif(b"mif1", b"miaf", b"avif"), "image", "image/avif"),
        (heif(b"isom", b"mif1", index=b"moov"), "video", "video/mp4"),
        (MP4, "video", "video/mp4"),
        (MP4, "audio", "video/mp4"),
        (MP4 + b"\x00\x00", "video", "video/mp4"),
        (samples.movie(brand=b"M4A "), "audio", "audio/mp4"),
        (samples.sound(), "audio", "audio/wav"),
        (b"ID3\x04\x00\x00\x00\x00\x00\x00\xff\xfb\x90\x00" + b"\x00" * 400, "audio", "audio/mpeg"),
        (b"OggS" + b"\x00" * 60, "video", "audio/ogg"),
        (samples.SRT.encode(), "subtitles", "application/x-subrip"),
        (samples.SRT.encode("utf-8-sig"), "subtitles", "application/x-subrip"),
        (UTF16, "subtitles", "application/x-subrip"),
        (samples.SRT.encode("utf-16-be"), "subtitles", "application/x-subrip"),
        (samples.SRT.encode("utf-16-le"), "subtitles", "application/x-subrip"),
        (samples.SRT.encode("latin-1"), "subtitles", "application/x-subrip"),
        (b"[Script Info]\nTitle: x\n", "subtitles", "text/x-ssa"),
        (b"WEBVTT\n\n", "subtitles", "text/vtt"),
        (samples.SRT.encode(), "any", "application/x-subrip"),
        (samples.picture("PNG"), "any", "image/png"),
        (MP4, "any", "video/mp4"),
    ],
)
def test_what_fits_is_taken(tmp_path: Path, content: bytes, kind: MediaKind, media_type: str) -> None:
    path = tmp_path / "misleading.txt"
    path.write_bytes(content)
    assert accepted_type(path, kind=kind, field="f") == media_type


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"", "image", "the file is empty (0 bytes)"),
        (b"", "subtitles", "the file is empty (0 bytes)"),
        (b"\n\n<!DOCTYPE html><html></html>", "image", "the file is an HTML page"),
        (b"<html><body>", "video", "the file is an HTML page"),
        (b"\xef\xbb\xbf<HTML>", "subtitles", "the file is an HTML page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "image", "the file is an SVG drawing"),
        (b"<svg xmlns='x'></svg>", "any", "the file is an SVG drawing"),
        (PLAYLIST, "video", "the file is a playlist"),
        (PLAYLIST, "subtitles", "the file is a playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "video", "the file is a playlist"),
        (b"file '/etc/passwd'\n", "video", "the file is a playlist"),
        (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n", "video", "the file is a playlist"),
        (b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash"/>', "video", "the file is an XML document"),
        (b"%PDF-1.7\n", "image", "the file is a PDF document"),
        ("words in UTF-16".encode("utf-16"), "audio", "of a known kind"),
        (b"push graphic-context\n", "image", "of a known kind"),
        (b"\x00\x01\x02\x03" * 99, "video", "of a known kind"),
        (samples.sound(), "video", "the file is audio/wav"),
        (samples.picture("PNG"), "video", "the file is image/png"),
        (samples.picture("PNG"), "audio", "the file is image/png"),
        (MP4, "image", "the file is video/mp4"),
        (MP4, "subtitles", "the file is not text"),
        (samples.picture("PNG"), "subtitles", "the file is not text"),
        (samples.picture("PNG")[:-20], "image", "ends too early"),
        (JPEG[: len(JPEG) // 2], "image", "ends too early"),
        (JPEG[:-2], "image", "ends too early"),
        (PROGRESSIVE[: len(PROGRESSIVE) // 2], "image", "ends too early"),
        (THUMBNAILED[:-40], "image", "ends too early"),
        (JPEG[:10], "image", "ends too early"),
        (samples.picture("WEBP")[:-5], "image", "ends too early"),
        (HEIC, "video", "the file is image/heic"),
        (HEIC[:-1], "image", "the file is damaged: it is image/heic and ends too early"),
        (HEIC[:50], "image", "ends too early"),
        (heif(b"heic", index=b"free"), "image", "ends too early"),
        (MP4[:-1], "video", "ends too early"),
        (MP4[:40], "video", "ends too early"),
        (MP4[:-1], "audio", "ends too early"),
        (samples.box(b"ftyp", b"isom\x00\x00\x02\x00") + samples.box(b"mdat", b"\x00" * 99), "video", "ends too early"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(tmp_path: Path, content: bytes, kind: MediaKind, said: str) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(UnsupportedMedia) as refused:
        accepted_type(path, kind=kind, field="images.0.image_url")
    assert refused.value.message.startswith("images.0.image_url: ")
    assert said in refused.value.message
    assert "; accepted: " in refused.value.message


@pytest.mark.parametrize("kept", [0.05, 0.3, 0.5, 0.9, 0.999])
def test_a_phone_s_photo_that_was_cut_is_refused(tmp_path: Path, kept: float) -> None:
    path = photo(tmp_path / "a.heic", quarters(128, 128))
    assert accepted_type(path, kind="image", field="image_url") == "image/heic"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(UnsupportedMedia, match=r"^image_url: the file is damaged: it is image/heic and ends too early"):
        accepted_type(path, kind="image", field="image_url")


def test_no_more_than_a_day_of_fragments_is_looked_at(tmp_path: Path) -> None:
    """An index behind a million empty boxes is not searched for, and a film of as many fragments is no damaged one."""
    head = samples.box(b"ftyp", b"isom\x00\x00\x02\x00")
    index, fragments = samples.box(b"moov", b"\x00" * 64), samples.box(b"moof", b"") * 1_000_000
    path = tmp_path / "a.mp4"
    path.write_bytes(head + index + fragments)
    assert accepted_type(path, kind="video", field="video") == "video/mp4"
    path.write_bytes(head + fragments + index)
    with pytest.raises(UnsupportedMedia, match="ends too early"):
        accepted_type(path, kind="video", field="video")

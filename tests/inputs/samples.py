"""Small real files, made on the spot."""

from __future__ import annotations

import io
import struct
import wave

from PIL import Image

SRT = "1\r\n00:00:00,000 --> 00:00:01,000\r\nOlá\r\n"


def picture(kind: str = "PNG", *, size: tuple[int, int] = (32, 24), **options: object) -> bytes:
    out = io.BytesIO()
    noise = Image.frombytes("RGB", size, bytes((i * 7919 >> 3) % 256 for i in range(size[0] * size[1] * 3)))
    noise.save(out, kind, **options)
    return out.getvalue()


def sound() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\x00\x01" * 800)
    return out.getvalue()


def box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, name) + body


def movie(*, brand: bytes = b"isom") -> bytes:
    """The outer boxes of an MP4: what is looked at before a demuxer sees it."""
    return box(b"ftyp", brand + b"\x00\x00\x02\x00") + box(b"moov", b"\x00" * 64) + box(b"mdat", b"\x01" * 256)

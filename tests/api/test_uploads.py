"""Multipart bodies, cut at every place a network could cut them."""

from __future__ import annotations

import pytest
from fastapi import Request

from mediamill.api.errors import WrongContentType
from mediamill.api.uploads import receive, safe_name
from mediamill.errors import InvalidRequest, TooLarge, UnsupportedMedia

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8 + b"IEND\xaeB`\x82"
BOUNDARY = "----boundary"


def form(*parts: tuple[str, str | None, bytes]) -> bytes:
    body = b""
    for name, file_name, content in parts:
        about = f'form-data; name="{name}"' + (f'; filename="{file_name}"' if file_name is not None else "")
        body += f"--{BOUNDARY}\r\nContent-Disposition: {about}\r\n\r\n".encode() + content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def request(body: bytes, *, chunk: int = 65536, content_type: str | None = None, announce: bool = False) -> Request:
    chunks = [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""]

    async def receive_chunk() -> dict:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    headers = [(b"content-type", (content_type or f"multipart/form-data; boundary={BOUNDARY}").encode())]
    if announce:
        headers.append((b"content-length", str(len(body)).encode()))
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive_chunk)


@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
async def test_a_file_and_fields_arrive_whole_however_the_body_is_cut(tmp_path, chunk):
    body = form(("a", None, b"1"), ("file", "my photo.png", PNG), ("language", None, "português".encode()))
    received, fields = await receive(request(body, chunk=chunk), tmp_path, limit_bytes=10_000)
    assert received is not None
    assert received.path.read_bytes() == PNG
    assert (received.name, received.media_type, received.size_bytes) == ("my_photo.png", "image/png", len(PNG))
    assert fields == {"a": "1", "language": "português"}


async def test_a_large_file_is_written_out_while_it_comes(tmp_path):
    content = PNG[:8] + b"x" * 3_000_000 + PNG[8:]
    received, _ = await receive(request(form(("file", "a.png", content))), tmp_path, limit_bytes=4_000_000)
    assert received is not None
    assert (received.size_bytes, received.path.stat().st_size) == (len(content), len(content))


@pytest.mark.parametrize("announce", [True, False])
async def test_more_than_the_limit_is_refused(tmp_path, announce):
    body = form(("file", "a.png", PNG + b"x" * 600_000))
    with pytest.raises(TooLarge, match="1000"):
        await receive(request(body, announce=announce), tmp_path, limit_bytes=1000)


@pytest.mark.parametrize(
    ("body", "content_type", "error"),
    [
        (form(("file", "a.png", PNG)), "application/json", WrongContentType),
        (form(("file", "a.png", PNG)), "multipart/form-data", WrongContentType),
        (form(("file", "a.png", PNG)), "multipart/form-data; boundary=other", InvalidRequest),
        (form(("file", "a.png", PNG), ("file", "b.png", PNG)), None, InvalidRequest),
        (form(("photo", "a.png", PNG)), None, InvalidRequest),
        (form(("file", "a.png", PNG))[:-20], None, InvalidRequest),
        (form(("file", "a.png", b"")), None, UnsupportedMedia),
        (form(("file", "a.html", b"<html><script>")), None, UnsupportedMedia),
        (form(("file", "a.srt", b"<svg xmlns='x'>")), None, UnsupportedMedia),
        (form(("file", "a.exe", b"MZ\x90\x00")), None, UnsupportedMedia),
        (form(*((f"f{i}", None, b"x") for i in range(70))), None, TooLarge),
        (form(("a", None, b"x" * 300_000)), None, TooLarge),
        (f"--{BOUNDARY}\r\nX-Long: {'x' * 9000}\r\n\r\n".encode(), None, InvalidRequest),
    ],
)
async def test_what_is_not_one_media_file_in_a_form_is_refused(tmp_path, body, content_type, error):
    with pytest.raises(error):
        await receive(request(body, content_type=content_type), tmp_path, limit_bytes=1_000_000)


async def test_a_form_without_a_file_gives_its_fields_and_leaves_nothing(tmp_path):
    received, fields = await receive(request(form(("url_audio", None, b"u"))), tmp_path, limit_bytes=10)
    assert (received, fields, list(tmp_path.iterdir())) == (None, {"url_audio": "u"}, [])


async def test_subtitles_in_any_encoding_are_known(tmp_path):
    body = form(("file", "a.SRT", "1\n00:00:00,000 --> 00:00:01,000\nOlá\n".encode("utf-16")))
    received, _ = await receive(request(body), tmp_path, limit_bytes=1000)
    assert received is not None
    assert received.media_type == "application/x-subrip"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\vídeo 1.mp4", "vídeo_1.mp4"),
        ("..", "file"),
        (".hidden", "hidden"),
        ("", "file"),
        ("a\x00b\n.png", "a_b_.png"),
        ("x" * 300 + ".mp4", "x" * 76 + ".mp4"),
    ],
)
def test_a_file_name_becomes_one_safe_component(given, kept):
    assert safe_name(given) == kept

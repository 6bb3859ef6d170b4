"""Whatever a caller may send to `/video/*` that cannot be done, and the exact reply to each, from a real worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Service
from tests.api.test_end_to_end import working
from tests.fixtures_web import Page, WebServer
from tests.media_samples import ffmpeg, png_bomb, sine, still, video, wav
from tests.video_contract import REQUIRED

SRT = "1\n00:00:00,000 --> 00:00:00,500\nOlá\n"
PUBLIC = "https://example.com/"
NOT_PUBLIC = "may not be used: its address is not public"
REFERENCES = "accepted: an http(s) URL, file:<key> of an uploaded file, a data: URI or base64"
PICTURES = "accepted: JPEG, PNG, WebP, HEIC, AVIF, GIF, BMP and TIFF pictures."
VIDEOS = "accepted: MP4, MOV, WebM, Matroska, AVI, MPEG and FLV videos."
SOUNDS = "accepted: MP3, AAC, M4A, WAV, FLAC, Ogg and AIFF sounds, or a video with sound."
TEXTS = "accepted: SRT subtitles as plain text."
STILL = {"id": "a", "image_url": f"{PUBLIC}a.jpg", "duracao": 1}
CAPTION = {"url_video": f"{PUBLIC}v.mp4", "url_srt": f"{PUBLIC}s.srt", "path": "p/", "output_filename": "o.mp4"}
ADDAUDIO = {"url_video": f"{PUBLIC}v.mp4", "url_audio": f"{PUBLIC}a.mp3", "path": "p/", "output_filename": "o.mp4"}


def one_still(**changes: Any) -> dict[str, Any]:
    return {"images": [{**STILL, **changes}], "path": "p/"}


def refusal(details: dict[str, str], sentence: str | None = None) -> dict[str, Any]:
    """The 400 that names each of these fields."""
    named = [{"path": path, "message": message} for path, message in details.items()]
    message = sentence or "; ".join(f"{d['path']}: {d['message']}" for d in named)
    return {"error": "Bad Request", "message": message, "details": named}


def bare(error: str, message: str) -> dict[str, Any]:
    return {"error": error, "message": message}


@dataclass(frozen=True)
class Case:
    """A request body for an operation and the reply it must get, whole."""

    operation: str
    body: Any
    reply: dict[str, Any]


AT_ONCE = {
    "no fields for img2vid": Case(
        "img2vid", {}, refusal({"images": "is required", "path": "is required"}, REQUIRED["img2vid"])
    ),
    "no fields for caption": Case("caption", {}, refusal(dict.fromkeys(CAPTION, "is required"), REQUIRED["caption"])),
    "no fields for addaudio": Case(
        "addaudio", {}, refusal(dict.fromkeys(ADDAUDIO, "is required"), REQUIRED["addaudio"])
    ),
    "no path": Case("img2vid", {"images": [STILL]}, refusal({"path": "is required"}, "path is required")),
    "null": Case("caption", {**CAPTION, "url_srt": None}, refusal({"url_srt": "is required"}, REQUIRED["caption"])),
    "empty images": Case(
        "img2vid", {"images": [], "path": "p/"}, refusal({"images": "is required"}, REQUIRED["img2vid"])
    ),
    "images is an object": Case(
        "img2vid",
        {"images": {"id": "a"}, "path": "p/"},
        refusal({"images": "Input should be a valid list (got {'id': 'a'})"}, REQUIRED["img2vid"]),
    ),
    "an image is a text": Case(
        "img2vid",
        {"images": ["a.jpg"], "path": "p/"},
        refusal({"images.0": "Input should be an object (got 'a.jpg')"}),
    ),
    "wrong types for img2vid": Case(
        "img2vid",
        {"images": [{"id": True, "image_url": 7, "duracao": "long"}], "path": 3},
        refusal(
            {
                "images.0.id": "Input should be a valid string (got True)",
                "images.0.image_url": "Input should be a valid string (got 7)",
                "images.0.duracao": "Input should be a valid number, unable to parse string as a number (got 'long')",
                "path": "Input should be a valid string (got 3)",
            }
        ),
    ),
    "wrong types for caption": Case(
        "caption",
        {**CAPTION, "url_video": ["x"], "output_filename": 5},
        refusal(
            {
                "url_video": "Input should be a valid string (got ['x'])",
                "output_filename": "Input should be a valid string (got 5)",
            }
        ),
    ),
    "wrong types for addaudio": Case(
        "addaudio",
        {**ADDAUDIO, "url_audio": {}, "path": False},
        refusal(
            {
                "url_audio": "Input should be a valid string (got {})",
                "path": "Input should be a valid string (got False)",
            }
        ),
    ),
    **{
        f"duracao {value}": Case("img2vid", one_still(duracao=value), refusal({"images.0.duracao": says}))
        for value, says in (
            (0, "Input should be greater than 0 (got 0)"),
            (-1, "Input should be greater than 0 (got -1)"),
            (float("nan"), "must be a finite number (got nan)"),
            (float("-inf"), "must be a finite number (got -inf)"),
            ("NaN", "Input should be a finite number (got 'NaN')"),
            (1e9, "must be at most 600 seconds (got 1e+09)"),
            (None, "Input should be a valid number (got None)"),
        )
    },
    **{
        url: Case("img2vid", one_still(image_url=url), refusal({"images.0.image_url": f"{host} {NOT_PUBLIC}"}))
        for url, host in (
            ("http://127.0.0.1/a.jpg", "127.0.0.1"),
            ("http://localhost:8000/a.jpg", "localhost"),
            ("http://[::1]/a.jpg", "::1"),
            ("http://2130706433/a.jpg", "2130706433"),
            ("http://169.254.169.254/latest/meta-data/", "169.254.169.254"),
            ("http://10.0.0.1/a.jpg", "10.0.0.1"),
        )
    },
    "link-local subtitles": Case(
        "caption",
        {**CAPTION, "url_srt": "http://169.254.169.254/s.srt"},
        refusal({"url_srt": f"169.254.169.254 {NOT_PUBLIC}"}),
    ),
    "loopback sound": Case(
        "addaudio", {**ADDAUDIO, "url_audio": "http://[::1]/a.mp3"}, refusal({"url_audio": f"::1 {NOT_PUBLIC}"})
    ),
    "a file: URL": Case(
        "img2vid",
        one_still(image_url="file:///etc/passwd"),
        refusal(
            {
                "images.0.image_url": "'file:///etc/passwd' names no stored file; accepted: what POST /v1/files "
                "returned, file:uploads/..."
            }
        ),
    ),
    "a local path": Case(
        "caption",
        {**CAPTION, "url_srt": "/etc/passwd"},
        refusal({"url_srt": f"is no usable reference (got '/etc/passwd'); {REFERENCES}"}),
    ),
    "another scheme": Case(
        "addaudio",
        {**ADDAUDIO, "url_video": "ftp://example.com/v.mp4"},
        refusal({"url_video": f"has the scheme 'ftp:'; {REFERENCES}"}),
    ),
    **{
        f"path {path}": Case(
            operation,
            {**body, "path": path},
            refusal({"path": f"must be plain folder names joined by '/', without '.' or '..' (got {path!r})"}),
        )
        for operation, body, path in (
            ("img2vid", one_still(), "a/../b/"),
            ("caption", CAPTION, "../x/"),
            ("addaudio", ADDAUDIO, "x/.."),
        )
    },
    "a line feed in path": Case(
        "caption",
        {**CAPTION, "path": "a\n/"},
        refusal({"path": "must not hold control characters or backslashes (got 'a\\n/')"}),
    ),
    **{
        f"name {name}": Case(
            operation, {**body, "output_filename": name}, refusal({"output_filename": f"{says} (got {name!r})"})
        )
        for operation, body, name, says in (
            ("caption", CAPTION, "../c.mp4", "must be a file name without folders and control characters"),
            ("addaudio", ADDAUDIO, "a/c.mp4", "must be a file name without folders and control characters"),
            ("addaudio", ADDAUDIO, "..", "must be a file name that ends in .mp4"),
            ("caption", CAPTION, "clip", "must be a file name that ends in .mp4"),
        )
    },
}
"""What is refused before anything is queued, all with 400."""


async def test_a_bad_request_gets_its_exact_reply_and_queues_nothing(service: Service) -> None:
    wrong = {}
    for name, case in AT_ONCE.items():
        answer = await service.call(
            "POST", f"/video/{case.operation}", data=json.dumps(case.body), headers={"Content-Type": "application/json"}
        )
        if (answer.status, answer.body) != (400, case.reply):
            wrong[name] = (answer.status, answer.body)
    assert not wrong, json.dumps(wrong, indent=1, ensure_ascii=False)
    assert (await service.get("/v1/jobs")).body["data"] == []


@pytest.mark.parametrize("path", ["/video/img2vid", "/video/caption", "/video/addaudio", "/job/x/cancel"])
async def test_a_wrong_key_gets_401_before_anything_else(start: Any, path: str) -> None:
    async with start(x_api_key="right") as service:
        answer = await service.post(path, {}, x_api_key="wrong")
        assert (answer.status, answer.body) == (401, bare("Unauthorized", "The API key is not valid."))
        answer = await service.post(path, {})
        assert (answer.status, answer.body["error"]) == (401, "Unauthorized")


async def test_an_unknown_id_is_404(service: Service) -> None:
    missing = "01a21830-8c40-7d13-a023-9f057fdc488c"
    for job_id in ("nonsense", missing, "../etc"):
        for method, path in (("GET", f"/job/{job_id}"), ("POST", f"/job/{job_id}/cancel")):
            answer = await service.call(method, path.replace("..", "%2E%2E"))
            sentence = f"There is no job {job_id!r}." if "/" not in job_id else "There is no such path."
            assert (answer.status, answer.body) == (404, bare("Not Found", sentence)), path


@dataclass(frozen=True)
class Media:
    """Files for an operation (names of samples), and the reply they get without the job's id."""

    files: tuple[str, ...]
    message: str
    status: int = 422
    error: str = "Unprocessable Entity"


IMAGE = "image 'a': images.0.image_url:"
MEDIA = [
    Media(("cut.jpg",), f"{IMAGE} the file is damaged: it is image/jpeg and ends too early; {PICTURES}"),
    Media(("bomb.png",), "image 'a': The picture is too large: at most 50000000 pixels are accepted."),
    Media(("empty",), f"{IMAGE} the file is empty (0 bytes); {PICTURES}"),
    Media(("drawing.svg",), f"{IMAGE} the file is an SVG drawing; {PICTURES}"),
    Media(("page.html",), f"{IMAGE} the file is an HTML page; {PICTURES}"),
    Media(("clip.mp4",), f"{IMAGE} the file is video/mp4; {PICTURES}"),
    Media(("gone",), f"{IMAGE} 127.0.0.1 answered HTTP 404."),
    Media(("to loopback",), f"{IMAGE} 127.0.0.1 leads to 127.0.0.2, which {NOT_PUBLIC}."),
    Media(("to link-local",), f"{IMAGE} 127.0.0.1 leads to 169.254.169.254, which {NOT_PUBLIC}."),
    Media(("to a file",), f"{IMAGE} 127.0.0.1 leads to something that is not an http(s) URL."),
    Media(("rebound",), f"{IMAGE} rebind.example {NOT_PUBLIC}."),
    Media(
        ("clip.mp4", "times.srt"),
        "url_srt: Line 6 of the subtitles has a time that cannot be read: '00:xx:01,000 --> 00:00:02,000'.",
    ),
    Media(
        ("clip.mp4", "back.srt"),
        "url_srt: Line 2 of the subtitles ends before it starts: '00:00:02,000 --> 00:00:01,000'.",
    ),
    Media(("clip.mp4", "cut in UTF-16.srt"), "url_srt: The subtitles are not valid utf-16 at byte 72."),
    Media(
        ("clip.mp4", "100 MB.srt"),
        "url_srt: 127.0.0.1 has a file of more than 4194304 bytes; at most that is accepted.",
        413,
        "Payload Too Large",
    ),
    Media(
        ("clip.mp4", "glyph.srt"),
        "url_srt: No font has a glyph for U+1F9FF NAZAR AMULET. Put one that has into the folder MEDIAMILL_FONTS_DIR.",
    ),
    Media(("clip.mp4", "page.html"), f"url_srt: the file is an HTML page; {TEXTS}"),
    Media(("clip.mp4", "clip.mp4", "srt"), f"url_srt: the file is not text; {TEXTS}"),
    Media(("clip.mp4", "empty", "srt"), f"url_srt: the file is empty (0 bytes); {TEXTS}"),
    Media(("list.mp4", "ok.srt"), f"url_video: the file is a playlist; {VIDEOS}"),
    Media(("tone.wav", "ok.srt"), f"url_video: the file is audio/wav; {VIDEOS}"),
    Media(("empty", "ok.srt"), f"url_video: the file is empty (0 bytes); {VIDEOS}"),
    Media(("cut.mp4", "ok.srt"), f"url_video: the file is damaged: it is video/mp4 and ends too early; {VIDEOS}"),
    Media(("to link-local", "ok.srt"), f"url_video: 127.0.0.1 leads to 169.254.169.254, which {NOT_PUBLIC}."),
    Media(("clip.mp4", "mute.mp4"), "url_audio: the file has no audio stream."),
    Media(("tone.wav", "tone.wav"), f"url_video: the file is audio/wav; {VIDEOS}"),
    Media(("sound.mp4", "tone.wav"), "url_video: the file has no video stream."),
    Media(("clip.mp4", "a.jpg"), f"url_audio: the file is image/jpeg; {SOUNDS}"),
    Media(("clip.mp4", "list.mp4"), f"url_audio: the file is a playlist; {SOUNDS}"),
    Media(("clip.mp4", "rebound"), f"url_audio: rebind.example {NOT_PUBLIC}."),
]


def samples(folder: Path) -> dict[str, bytes]:
    """Bytes by file name, most of them bad."""
    clip = video(folder / "clip.mp4", frames=12, sound=sine(0.5)).read_bytes()
    ffmpeg("-i", folder / "clip.mp4", "-an", "-c", "copy", folder / "mute.mp4")
    ffmpeg("-i", folder / "clip.mp4", "-vn", "-c", "copy", folder / "sound.mp4")
    jpeg = still(folder / "a.jpg").read_bytes()
    return {
        "clip.mp4": clip,
        "mute.mp4": (folder / "mute.mp4").read_bytes(),
        "sound.mp4": (folder / "sound.mp4").read_bytes(),
        "cut.mp4": clip[:3000],
        "list.mp4": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n",
        "tone.wav": wav(folder / "tone.wav", sine(0.5)).read_bytes(),
        "a.jpg": jpeg,
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "bomb.png": png_bomb(folder / "bomb.png").read_bytes(),
        "empty": b"",
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "page.html": b"<!doctype html><title>404</title>",
        "ok.srt": SRT.encode(),
        "in UTF-16.srt": SRT.encode("utf-16"),
        "times.srt": b"1\n00:00:00,000 --> 00:00:01,000\nx\n\n2\n00:xx:01,000 --> 00:00:02,000\ny\n",
        "back.srt": b"1\n00:00:02,000 --> 00:00:01,000\nx\n",
        "cut in UTF-16.srt": b"\xff\xfe" + SRT.encode("utf-16-le")[:-1],
        "100 MB.srt": b" " * 100_000_000,
        "glyph.srt": "1\n00:00:00,000 --> 00:00:01,000\n\U0001f9ff\n".encode(),
    }


def addresses(web_server: WebServer, folder: Path) -> dict[str, str]:
    """URLs by name: of the samples, and some that lead astray."""
    found = {name: web_server.url(f"/{name}", Page(content)) for name, content in samples(folder).items()}
    found["gone"] = web_server.url("/gone", Page(status=404))
    for name, target in (
        ("to loopback", "http://127.0.0.2:1/x"),
        ("to link-local", "http://169.254.169.254/latest/"),
        ("to a file", "file:///etc/passwd"),
    ):
        found[name] = web_server.url(f"/{name}", Page(status=302, headers={"Location": target}))
    found["rebound"] = f"http://rebind.example:{web_server.port}/a.jpg"
    return found


@pytest.fixture
def rebinding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that nothing speaks against until it is connected to: then it means another address of this machine."""
    real = socket.getaddrinfo

    def lookup(host: Any, *rest: Any, **named: Any) -> Any:
        return real("127.0.0.2" if host in {"rebind.example", b"rebind.example"} else host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


async def test_media_that_cannot_be_used_gets_its_exact_reply(
    store: Any, database_url: str, tmp_path: Path, web_server: WebServer, rebinding: None
) -> None:
    wrong = {}
    async with working(store, database_url, tmp_path, slots=2, fetch_allow=("127.0.0.1/32",)) as service:
        urls = addresses(web_server, tmp_path)
        for case in MEDIA:
            operation, body = asked_for(case.files, urls)
            answer = await service.post(f"/video/{operation}", body)
            job_id = answer.body.pop("jobId", None)
            if (answer.status, answer.body) != (case.status, bare(case.error, case.message)):
                wrong[case.files] = (answer.status, answer.body)
                continue
            state = (await service.get(f"/job/{job_id}")).body
            assert (state["status"], state["error"]) == ("FAILED", case.message), case
        assert not wrong, "\n".join(f"{files}: {reply}" for files, reply in wrong.items())

        operation, body = asked_for(("clip.mp4", "in UTF-16.srt"), urls)
        good = await service.post(f"/video/{operation}", body)
        assert (good.status, good.body["code"]) == (200, 200), "and UTF-16 itself is fine"
        outputs = [key async for key, _ in service.deps.storage.list("p")]
        assert outputs == ["p/o.mp4"], "what failed left nothing"


def asked_for(files: tuple[str, ...], urls: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """The operation and body for these files: one is a still, text or a third name means subtitles."""
    first, *rest = files
    if not rest:
        return "img2vid", {"images": [{"id": "a", "image_url": urls[first], "duracao": 0.1}], "path": "p/"}
    if len(rest) > 1 or rest[0].endswith((".srt", ".html")):
        return "caption", {**CAPTION, "url_video": urls[first], "url_srt": urls[rest[0]]}
    return "addaudio", {**ADDAUDIO, "url_video": urls[first], "url_audio": urls[rest[0]]}


@contextlib.asynccontextmanager
async def broken_bucket(answers: asyncio.Event) -> AsyncIterator[str]:
    """An S3 server that answers nothing until the event is set, and then refuses everything; its address."""
    callers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        callers.add(task)
        try:
            await answers.wait()
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in callers:
            task.cancel()
        await asyncio.gather(*callers, return_exceptions=True)


@pytest.mark.parametrize(
    ("stalls", "status", "error", "message"),
    [
        (False, 500, "Internal Server Error", "The storage refused the operation."),
        (True, 504, "Gateway Timeout", "The job took longer than 15 s; it was then uploading."),
    ],
    ids=["refuses", "stalls"],
)
async def test_a_storage_that_does_not_take_the_result_is_told(
    store: Any,
    database_url: str,
    tmp_path: Path,
    web_server: WebServer,
    stalls: bool,
    status: int,
    error: str,
    message: str,
) -> None:
    url = web_server.url("/a.jpg", Page(still(tmp_path / "a.jpg").read_bytes()))
    answers = asyncio.Event()
    if not stalls:
        answers.set()
    async with broken_bucket(answers) as place:
        bucket: dict[str, Any] = {"storage_mode": "s3", "s3_endpoint": f"http://{place}", "s3_bucket": "b"}
        keys: dict[str, Any] = {"s3_access_key_id": "key", "s3_secret_access_key": "open sesame"}
        # time enough to come to the upload on a busy machine; what refuses does so at once
        limits: dict[str, Any] = {"fetch_allow": ("127.0.0.1/32",), "run_timeout_s": 15 if stalls else None}
        async with working(store, database_url, tmp_path, **bucket, **keys, **limits) as service:
            answer = await service.post("/video/img2vid", one_still(image_url=url, duracao=0.1))
            job_id = answer.body.pop("jobId")
            assert (answer.status, answer.body) == (status, bare(error, message))
            assert "sesame" not in json.dumps((await service.get(f"/v1/jobs/{job_id}")).body)


async def test_a_full_disk_takes_no_job(start: Any) -> None:
    async with start(storage_mode="file", reserve_bytes=2**62) as service:
        for operation, body in (("img2vid", one_still()), ("caption", CAPTION), ("addaudio", ADDAUDIO)):
            answer = await service.post(f"/video/{operation}", body)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "60")
            sentence = f"Less than {2**62} bytes of disk are free; new jobs are taken when there is room."
            assert answer.body == bare("Service Unavailable", sentence)
        assert (await service.get("/v1/jobs")).body["data"] == []

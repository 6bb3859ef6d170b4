"""Files in and out: who may read what, ranges, and nothing that a browser would run."""

from __future__ import annotations

from pathlib import Path

import aiohttp

from mediamill.storage import LocalUrls

MP4 = b"\0\0\0\x18ftypisom" + bytes(12) + b"\0\0\0\x08moov" + bytes(range(200))
KEY = "outputs/01a21830-8c40-7d13-a023-9f057fdc488c/clip.mp4"


async def put(service, key: str, content: bytes, media_type: str) -> str:
    """The path under which the API serves it."""
    path = Path(service.deps.settings.data_dir)
    path.mkdir(parents=True, exist_ok=True)
    source = path / "source"
    source.write_bytes(content)
    await service.deps.storage.put(key, source, media_type=media_type)
    return (await service.deps.storage.url(key)).removeprefix(service.base_url)


def form(name: str, content: bytes, field: str = "file") -> aiohttp.FormData:
    data = aiohttp.FormData(quote_fields=False)
    data.add_field(field, content, filename=name)
    return data


RANGES = [
    ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
    ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
    ("bytes=-3", 206, b"789", "bytes 7-9/10"),
    ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
    ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
    ("bytes=0-", 206, b"0123456789", "bytes 0-9/10"),
    ("bytes=10-", 416, b"", "bytes */10"),
    ("bytes=-0", 416, b"", "bytes */10"),
    ("bytes=5-2", 200, b"0123456789", None),
    ("bytes=0-1,4-5", 200, b"0123456789", None),
    ("bytes=-", 200, b"0123456789", None),
    ("items=0-3", 200, b"0123456789", None),
    ("bytes=x-y", 200, b"0123456789", None),
]


async def test_ranges(service):
    path = await put(service, KEY, b"0123456789", "video/mp4")
    for asked, status, content, about in RANGES:
        answer = await service.get(path, range=asked)
        got = (asked, answer.status, answer.body, answer.headers.get("Content-Range"))
        assert got == (asked, status, content, about)
        assert answer.headers["Content-Length"] == str(len(content))


async def test_a_range_of_another_version_gives_the_whole(service):
    path = await put(service, KEY, b"0123456789", "video/mp4")
    etag = (await service.get(path)).headers["ETag"]
    assert (await service.get(path, range="bytes=0-1", if_range=etag)).status == 206
    assert (await service.get(path, range="bytes=0-1", if_range='"other"')).status == 200


async def test_head_and_revalidation_send_no_body(service):
    path = await put(service, KEY, b"0123456789", "video/mp4")
    head = await service.call("HEAD", path)
    assert (head.status, head.body, head.headers["Content-Length"], head.headers["Content-Type"]) == (
        200,
        b"",
        "10",
        "video/mp4",
    )
    known = await service.get(path, if_none_match=head.headers["ETag"])
    assert (known.status, known.body) == (304, b"")
    assert (await service.get(path, if_none_match='"x"')).status == 200


SHOWN = [
    ("a.mp4", "video/mp4", "inline"),
    ("a.png", "image/png", "inline"),
    ("a.json", "application/json", "inline"),
    ("a.html", "text/html", "attachment"),
    ("a.svg", "image/svg+xml", "attachment"),
    ("a.xml", "application/xml", "attachment"),
    ("vídeo ção.mp4", "video/mp4", "inline"),
]


async def test_a_browser_never_runs_a_stored_file(service):
    for name, media_type, how in SHOWN:
        path = await put(service, f"{KEY.rpartition('/')[0]}/{name}", b'"<script>"', media_type)
        headers = (await service.get(path)).headers
        assert headers["Content-Disposition"].startswith(f"{how}; filename*=UTF-8''"), name
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in headers["Content-Security-Policy"]


async def test_unguessable_keys_need_no_api_key_and_guessable_ones_a_signature(start):
    async with start(x_api_key="k") as service:
        assert (await service.get(await put(service, KEY, b"x", "video/mp4"))).status == 200
        signed = await put(service, "Project/videos/video_1.mp4", b"y", "video/mp4")
        plain = signed.partition("?")[0]
        assert (await service.get(signed)).body == b"y"
        for path in (plain, f"{plain}?s=0", f"{plain}?e=1&s=0", plain.replace("video_1", "video_2")):
            answer = await service.get(path)
            assert (answer.status, answer.body["code"]) == (401, "unauthorized")
        assert (await service.get(plain, x_api_key="k")).body == b"y"
        assert (await service.get(plain.replace("video_1", "video_2"), x_api_key="k")).status == 404


async def test_with_a_time_limit_every_url_expires(start):
    async with start(url_ttl_s=60, x_api_key="k") as service:
        signed = await put(service, KEY, b"x", "video/mp4")
        assert "e=" in signed
        assert (await service.get(signed)).status == 200
        assert (await service.get(signed.partition("?")[0])).status == 401
        past = LocalUrls(service.base_url, b"test secret", 60, clock=lambda: 1000.0).url(KEY)
        assert (await service.get(past.removeprefix(service.base_url))).status == 401


ADDRESSES = [
    ("attempts/x/1/clip.mp4", 404),
    (".mediamill/identity", 400),
    ("outputs/%2e%2e/secret", 400),
    ("a//b", 400),
    ("a/%00b", 400),
    ("outputs/" + "x" * 2000, 400),
]


async def test_only_finished_files_have_an_address(start):
    async with start(x_api_key="k") as service:
        await put(service, "attempts/x/1/clip.mp4", b"x", "video/mp4")
        for key, status in ADDRESSES:
            assert (key, (await service.get(f"/files/{key}", x_api_key="k")).status) == (key, status)


async def test_an_upload_is_stored_sniffed_and_usable_as_an_input(service):
    answer = await service.call("POST", "/v1/files", data=form("../my clip.png", MP4))
    assert answer.status == 201
    body = answer.body
    assert (body["name"], body["media_type"], body["size_bytes"]) == ("my_clip.png", "video/mp4", len(MP4))
    assert body["file"].startswith("file:uploads/")
    assert (await service.get(body["url"].removeprefix(service.base_url))).body == MP4
    task = {"url_video": body["file"], "url_srt": "https://example.com/a.srt", "path": "p/", "output_filename": "a.mp4"}
    queued = await service.post("/v1/jobs", {"model": "caption", "input": task})
    assert (queued.status, queued.body["input"]["url_video"]) == (202, body["file"])
    unknown = {**task, "url_video": "file:uploads/nope/clip.mp4"}
    refused = await service.post("/v1/jobs", {"model": "caption", "input": unknown})
    assert (refused.status, refused.body["errors"][0]["pointer"]) == (400, "/input/url_video")


async def test_an_upload_with_a_key_is_stored_once(service):
    async def send(content: bytes):
        return await service.call("POST", "/v1/files", data=form("a.mp4", content), headers={"Idempotency-Key": "k"})

    first, again, other = await send(MP4), await send(MP4), await send(MP4 + b"more")
    assert (again.status, again.body, again.headers["Idempotency-Replayed"]) == (201, first.body, "true")
    assert (other.status, other.body["code"]) == (409, "conflict")
    assert len([key async for key, _ in service.deps.storage.list("uploads/")]) == 1


async def test_refused_uploads_leave_nothing_behind(start):
    async with start(max_upload_bytes=1000) as service:
        for data, status in (
            (form("a.mp4", MP4 + bytes(2000)), 413),
            (form("a.mp4", b"<html>"), 422),
            (form("a.mp4", b""), 422),
            (form("a.mp4", MP4, field="photo"), 400),
        ):
            answer = await service.call("POST", "/v1/files", data=data)
            assert answer.status == status, answer.body
        assert (await service.post("/v1/files", {})).status == 415
        assert [key async for key, _ in service.deps.storage.list("")] == []
        assert list(service.deps.settings.scratch_root.iterdir()) == []

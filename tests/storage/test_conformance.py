"""What every storage promises, run over each of them: the shipped fake, the folder, and a real S3 server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import urllib.request
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mediamill import plugins
from mediamill.config import Settings
from mediamill.errors import InvalidRequest, NotFound
from mediamill.model import Storage
from mediamill.storage import open_storage
from tests.fixtures_s3 import S3Server

PUBLIC_URL = "http://127.0.0.1:8123"
KEYS = (
    "outputs/0123456789abcdef0123456789abcdef/output.mp4",
    "Project Name/Vídeo Title/videos/video_1.mp4",
    "a/100% #1 ?x=1&y=2 +~[z].mp4",
    "日本/" + "é" * 127,
    "single",
)
UNSAFE_KEYS = (
    *("", "/etc/passwd", "../x", "a/../b", "a/./b", "a//b", "a/", "a\x00b", "a\nb", "a\x7fb", "a\\b"),
    *("x" * 256, "/".join(["x" * 200] * 6), ".mediamill/identity", "a/\ud800"),
)


@pytest.fixture(params=["file", "memory", "s3"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    if request.param == "s3":
        settings = request.getfixturevalue("s3_settings")
    else:
        settings = Settings(_env_file=None, storage_mode=request.param, data_dir=tmp_path / "data")
    opened = open_storage(settings, public_url=PUBLIC_URL, secret=b"secret")
    yield opened
    await opened.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"0123456789")
    return path


async def content(storage: Storage, key: str, *, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in storage.open(key, start=start, end=end)])


async def keys(storage: Storage, prefix: str) -> list[str]:
    return sorted([key async for key, _ in storage.list(prefix)])


def test_every_storage_is_in_this_suite() -> None:
    assert plugins.names("storage") == ["file", "memory", "s3"]


@pytest.mark.parametrize("key", KEYS)
async def test_what_was_put_comes_back_with_its_facts(storage: Storage, source: Path, key: str) -> None:
    stored = await storage.put(key, source, media_type="video/mp4")
    assert stored == await storage.stat(key)
    assert (stored.key, stored.size_bytes, stored.media_type) == (key, 10, "video/mp4")
    assert stored.sha256 == hashlib.sha256(b"0123456789").hexdigest()
    assert await content(storage, key) == b"0123456789"
    assert await keys(storage, "") == [key]
    assert storage.key_of(await storage.url(key)) == key


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (3, 5, b"34"),
        (3, 3, b""),
        (0, 99, b"0123456789"),
        (10, None, b""),
    ],
)
async def test_a_range_is_read(storage: Storage, source: Path, start: int, end: int | None, expected: bytes) -> None:
    await storage.put("k", source, media_type="text/plain")
    assert await content(storage, "k", start=start, end=end) == expected


async def test_a_large_file_survives_the_way_in_parts(storage: Storage, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1024) * (20 * 1024))
    stored = await storage.put("large.bin", large, media_type="application/octet-stream")
    assert stored.size_bytes == 20 * 1024**2
    digest = hashlib.sha256(await content(storage, "large.bin")).hexdigest()
    assert digest == stored.sha256 == hashlib.sha256(large.read_bytes()).hexdigest()
    tail = await content(storage, "large.bin", start=stored.size_bytes - 9 * 1024**2)
    assert tail == large.read_bytes()[-9 * 1024**2 :]


async def test_an_empty_file_is_an_object(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert (await storage.put("e", tmp_path / "empty", media_type="text/plain")).size_bytes == 0
    assert await content(storage, "e") == b""


async def test_a_put_replaces_bytes_and_media_type(storage: Storage, source: Path) -> None:
    await storage.put("k", source, media_type="video/mp4")
    source.write_bytes(b"other")
    stored = await storage.put("k", source, media_type="image/png")
    assert await storage.stat(stored.key) == stored
    assert (stored.size_bytes, stored.media_type) == (5, "image/png")
    assert await content(storage, "k") == b"other"


async def test_a_copy_keeps_the_facts_and_outlives_its_source(storage: Storage, source: Path) -> None:
    staged = await storage.put("attempts/j/1/x.mp4", source, media_type="video/mp4")
    for _ in range(2):
        await storage.copy("attempts/j/1/x.mp4", "outputs/j/x.mp4")
    await storage.delete("attempts/j/1/x.mp4")
    published = await storage.stat("outputs/j/x.mp4")
    assert (published.size_bytes, published.sha256, published.media_type) == (10, staged.sha256, "video/mp4")
    assert await content(storage, "outputs/j/x.mp4") == b"0123456789"
    assert await keys(storage, "attempts/") == []


async def test_a_copy_replaces_its_target_and_later_puts_leave_it_alone(storage: Storage, source: Path) -> None:
    await storage.put("final", source, media_type="image/png")
    source.write_bytes(b"second")
    await storage.put("attempt", source, media_type="video/mp4")
    await storage.copy("attempt", "final")
    source.write_bytes(b"third, longer")
    await storage.put("attempt", source, media_type="audio/wav")
    assert await content(storage, "final") == b"second"
    assert (await storage.stat("final")).media_type == "video/mp4"


async def test_what_is_not_there_is_not_found(storage: Storage) -> None:
    with pytest.raises(NotFound, match="nothing"):
        await storage.stat("a/nothing")
    with pytest.raises(NotFound, match="nothing"):
        await content(storage, "a/nothing")
    with pytest.raises(NotFound, match="nothing"):
        await storage.copy("a/nothing", "b")
    await storage.delete("a/nothing")
    assert await keys(storage, "a/") == []


async def test_a_listing_is_of_a_folder_and_dated(storage: Storage, source: Path) -> None:
    for key in ("a/b/1", "a/b/c/2", "a/bc/3", "a/b.4"):
        await storage.put(key, source, media_type="text/plain")
    assert await keys(storage, "a/b/") == await keys(storage, "a/b") == ["a/b/1", "a/b/c/2"]
    assert len(await keys(storage, "")) == 4
    assert await keys(storage, "nowhere/") == []
    async for _, modified_at in storage.list("a/"):
        assert abs(modified_at - datetime.now(UTC)) < timedelta(minutes=5)


async def test_deleted_is_gone_and_its_neighbours_stay(storage: Storage, source: Path) -> None:
    for key in ("a/1", "a/2"):
        await storage.put(key, source, media_type="text/plain")
    await storage.delete("a/1")
    await storage.delete("a/1")
    assert await keys(storage, "") == ["a/2"]
    with pytest.raises(NotFound):
        await storage.stat("a/1")


async def test_an_unsafe_key_is_refused_everywhere(storage: Storage, source: Path) -> None:
    await storage.put("safe", source, media_type="text/plain")
    for key in UNSAFE_KEYS:
        for attempt in (
            storage.put(key, source, media_type="text/plain"),
            storage.stat(key),
            storage.delete(key),
            storage.copy("safe", key),
            storage.copy(key, "safe"),
            storage.url(key),
            content(storage, key),
        ):
            with pytest.raises(InvalidRequest, match="key"):
                await attempt
    assert await keys(storage, "") == ["safe"]
    assert await content(storage, "safe") == b"0123456789"


async def test_readers_see_one_whole_version_while_writers_replace_it(storage: Storage, tmp_path: Path) -> None:
    versions = []
    for letter in b"abc":
        path = tmp_path / chr(letter)
        path.write_bytes(bytes([letter]) * 300_000)
        versions.append(path)
    await storage.put("k", versions[0], media_type="text/plain")

    async def write(path: Path) -> None:
        for _ in range(5):
            await storage.put("k", path, media_type="text/plain")

    async def read() -> None:
        for _ in range(10):
            seen = await content(storage, "k")
            assert len(seen) == 300_000
            assert len(set(seen)) == 1

    await asyncio.gather(*(write(path) for path in versions), read(), read())


async def test_it_says_whether_it_works_who_it_is_and_leaves_nothing(storage: Storage) -> None:
    await storage.check()
    assert await keys(storage, "") == []
    assert await storage.identity() == await storage.identity()
    free_bytes = await storage.free_bytes()
    assert free_bytes is None or free_bytes > 0


async def test_urls_of_others_are_not_ours(storage: Storage) -> None:
    url = await storage.url("a/b.mp4")
    origin = url.partition("/a/b.mp4")[0]
    for other in (
        "https://example.com/a/b.mp4",
        f"{origin}.example.com/a/b.mp4",
        f"{origin}/a/../../x",
        f"{origin}/%2e%2e/x",
        "",
    ):
        assert storage.key_of(other) is None


def test_a_presigned_url_works_as_printed(s3_server: S3Server, s3_settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"hello")
    signing = s3_settings.model_copy(update={"url_ttl_s": 60})

    async def put(key: str) -> str:
        storage = open_storage(signing, public_url="", secret=b"")
        await storage.put(key, path, media_type="video/mp4")
        url = await storage.url(key)
        assert storage.key_of(url) == key
        return url

    for key in KEYS:
        with urllib.request.urlopen(asyncio.run(put(key))) as reply:
            assert reply.read() == b"hello"
            assert reply.headers["Content-Type"] == "video/mp4"
    assert s3_server.endpoint in asyncio.run(put("k"))

"""What goes wrong between here and a bucket, and what the operator is told about it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import obstore
import pytest
from pydantic import SecretStr

from mediamill.config import Settings, StorageMode
from mediamill.errors import Misconfigured, StorageError, StorageRefused, StorageUnavailable
from mediamill.storage import mode_of, open_storage
from mediamill.storage.s3 import S3Storage, bucket_of
from tests.fixtures_s3 import S3Server

KEYS = {"s3_access_key_id": SecretStr("id"), "s3_secret_access_key": SecretStr("hunter2")}


def settings(**given: object) -> Settings:
    return Settings(_env_file=None, **given)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"s3_bucket": "no-such-bucket"},
            StorageRefused,
            "'no-such-bucket' at 127.0.0.1:.* does not exist: create it, or correct S3_BUCKET",
        ),
        (
            {"s3_access_key_id": SecretStr("unknown")},
            StorageRefused,
            "does not know this access key: correct S3_ACCESS_KEY_ID",
        ),
        (
            {"s3_secret_access_key": SecretStr("hunter2")},
            StorageRefused,
            "refused the signature: correct S3_SECRET_ACCESS_KEY or S3_REGION",
        ),
        (
            {"s3_endpoint": "http://127.0.0.1:1"},
            StorageUnavailable,
            "at 127.0.0.1:1 does not answer: check S3_ENDPOINT and the network",
        ),
        ({"s3_endpoint": "http://storage.invalid"}, StorageUnavailable, "at storage.invalid does not answer"),
    ],
)
async def test_a_check_says_what_to_mend_and_no_secret(
    s3_settings: Settings,
    change: dict[str, object],
    error: type[StorageError],
    said: str,
) -> None:
    storage = open_storage(s3_settings.model_copy(update=change), public_url="", secret=b"")
    with pytest.raises(error, match=said) as failed:
        await storage.check()
    assert "hunter2" not in str(failed.value)
    assert failed.value.retryable is (error is StorageUnavailable)


async def test_variables_of_other_tools_are_not_obeyed(
    s3_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_BUCKET"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    await open_storage(s3_settings, public_url="", secret=b"").check()


async def test_media_type_and_digest_are_what_the_store_itself_keeps(
    s3_server: S3Server,
    s3_settings: Settings,
    tmp_path: Path,
) -> None:
    (tmp_path / "x").write_bytes(b"hello")
    storage = open_storage(s3_settings, public_url="", secret=b"")
    stored = await storage.put("Projeto/ação.mp4", tmp_path / "x", media_type="video/mp4")
    bare = s3_server.store(str(s3_settings.s3_bucket))
    found = await obstore.get_async(bare, "Projeto/ação.mp4")
    assert found.attributes["Content-Type"] == "video/mp4"
    assert found.attributes["sha256"] == stored.sha256
    await obstore.put_async(bare, "by/others.bin", b"12345")
    foreign = await storage.stat("by/others.bin")
    assert (foreign.size_bytes, foreign.sha256) == (5, "")


async def test_two_versions_are_never_mixed_in_one_read(s3_settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "x"
    storage = open_storage(s3_settings, public_url="", secret=b"")
    path.write_bytes(b"a" * 9 * 1024**2)
    await storage.put("k", path, media_type="text/plain")
    reading = storage.open("k")
    assert set(await anext(reading)) == set(b"a")
    path.write_bytes(b"b" * 9 * 1024**2)
    await storage.put("k", path, media_type="text/plain")
    with pytest.raises(StorageUnavailable, match="another version"):
        await anext(reading)


@contextlib.asynccontextmanager
async def in_front(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server whose connections are served so; its URL."""
    serving: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(_closed, writer)
            stack.enter_context(contextlib.suppress(ConnectionError, asyncio.IncompleteReadError))
            await serve(reader, writer)

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def test_a_server_that_never_answers_is_given_up_after_its_silence(s3_settings: Settings, tmp_path: Path) -> None:
    async def swallow(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass

    async with in_front(swallow) as url, asyncio.timeout(60):
        given = s3_settings.model_copy(update={"s3_endpoint": url})
        storage = S3Storage(bucket_of(given), retries=0, silence_s=0.2)
        for call in (storage.stat("k"), storage.delete("k"), anext(storage.open("k")), anext(storage.list("k"))):
            with pytest.raises(StorageUnavailable, match="does not answer"):
                await call


async def test_a_slow_line_is_no_silence(s3_settings: Settings, tmp_path: Path) -> None:
    """Neither the sending nor the reading of a file that takes long is cut off."""
    host, port = str(s3_settings.s3_endpoint).removeprefix("http://").split(":")
    passed: list[int] = []

    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
            passed.append(len(chunk))
            if len(chunk) > 8192:
                await asyncio.sleep(0.1)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(dripping(reader, up_writer), dripping(up_reader, writer))
        finally:
            await _closed(up_writer)

    content = secrets.token_bytes(1_500_000)
    (tmp_path / "x").write_bytes(content)
    async with in_front(serve) as url:
        given = s3_settings.model_copy(update={"s3_endpoint": url})
        storage = S3Storage(bucket_of(given), retries=0, silence_s=0.5)
        await storage.put("k", tmp_path / "x", media_type="text/plain")
        assert b"".join([chunk async for chunk in storage.open("k")]) == content
    assert sum(passed) > 2 * len(content)


@pytest.fixture
async def moody(s3_settings: Settings) -> AsyncIterator[tuple[Settings, list[int]]]:
    """A server before the real one: answers the statuses of the list first, then passes bytes through."""
    moods: list[int] = []
    host, port = str(s3_settings.s3_endpoint).removeprefix("http://").split(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if moods:
            status = moods.pop(0)
            await reader.readuntil(b"\r\n\r\n")
            if status:  # 0: hang up
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
            return
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(_pump(reader, up_writer), _pump(up_reader, writer))
        finally:
            await _closed(up_writer)

    async with in_front(serve) as front:
        yield s3_settings.model_copy(update={"s3_endpoint": front}), moods


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    writer.close()


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.parametrize("mood", [503, 500, 429, 0])
async def test_passing_trouble_is_outlasted(moody: tuple[Settings, list[int]], tmp_path: Path, mood: int) -> None:
    given, moods = moody
    (tmp_path / "x").write_bytes(b"hello")
    storage = S3Storage(bucket_of(given))
    moods.extend([mood, mood])
    await storage.put("k", tmp_path / "x", media_type="text/plain")
    assert moods == []
    assert b"".join([c async for c in storage.open("k")]) == b"hello"


@pytest.mark.parametrize(
    ("mood", "error", "said"),
    [
        (503, StorageUnavailable, r"failed to write \(HTTP 503\)"),
        (0, StorageUnavailable, "does not answer"),
        (403, StorageRefused, "does not let this key write: check the key's permissions"),
        (507, StorageRefused, "has no room left"),
    ],
)
async def test_trouble_that_stays_is_told(
    moody: tuple[Settings, list[int]], tmp_path: Path, mood: int, error: type[StorageError], said: str
) -> None:
    given, moods = moody
    (tmp_path / "x").write_bytes(b"hello")
    moods.extend([mood] * 50)
    with pytest.raises(error, match=said):
        await S3Storage(bucket_of(given), retries=2).put("k", tmp_path / "x", media_type="text/plain")
    assert 45 <= len(moods) < 50
    moods.clear()


@pytest.mark.parametrize(
    ("given", "endpoint", "region", "public_url"),
    [
        (
            {"s3_bucket": "b", **KEYS},
            "https://s3.us-east-1.amazonaws.com",
            "us-east-1",
            "https://s3.us-east-1.amazonaws.com/b",
        ),
        (
            {"s3_bucket": "b", "s3_endpoint": "https://minio.example:9000/", **KEYS},
            "https://minio.example:9000",
            "us-east-1",
            "https://minio.example:9000/b",
        ),
        (
            {"s3_bucket": "b", "s3_endpoint": "https://x", "s3_public_url": "https://cdn.example/v/", **KEYS},
            "https://x",
            "us-east-1",
            "https://cdn.example/v",
        ),
        (
            {
                "r2_bucket": "b",
                "r2_account_id": "acc",
                "r2_public_url": "https://pub.r2.dev",
                "r2_access_key_id": SecretStr("i"),
                "r2_secret_access_key": SecretStr("s"),
            },
            "https://acc.r2.cloudflarestorage.com",
            "auto",
            "https://pub.r2.dev",
        ),
        (
            {"r2_bucket": "b", "r2_endpoint": "https://acc.r2.example", **KEYS},
            "https://acc.r2.example",
            "auto",
            "https://acc.r2.example/b",
        ),
    ],
)
async def test_the_variables_of_s3_and_r2_lead_to_a_bucket(
    given: dict[str, object], endpoint: str, region: str, public_url: str
) -> None:
    bucket = bucket_of(settings(**given))
    assert (bucket.endpoint, bucket.region, bucket.public_url) == (endpoint, region, public_url)
    storage = open_storage(settings(**given), public_url="", secret=b"")
    url = await storage.url("Project Name/vídeo.mp4")
    assert url == f"{public_url}/Project%20Name/v%C3%ADdeo.mp4"
    for shape in (
        url,
        f"{endpoint}/b/Project%20Name/v%C3%ADdeo.mp4?X-Amz-Expires=1",
        endpoint.replace("://", "://b.") + "/Project%20Name/v%C3%ADdeo.mp4",
    ):
        assert storage.key_of(shape) == "Project Name/vídeo.mp4"
    assert storage.key_of(f"{endpoint}/bucket/x") is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"s3_presign": True}, "X-Amz-Expires=604800"),
        ({"url_ttl_s": 90}, "X-Amz-Expires=90"),
        ({"url_ttl_s": 90, "s3_presign": True}, "X-Amz-Expires=90"),
    ],
)
async def test_urls_are_presigned_when_asked(given: dict[str, object], expected: str) -> None:
    storage = open_storage(
        settings(s3_bucket="b", s3_endpoint="https://x.example", **KEYS, **given), public_url="", secret=b""
    )
    url = await storage.url("a b.mp4")
    assert url.startswith("https://x.example/b/a%20b.mp4?X-Amz-Algorithm=")
    assert expected in url
    assert "hunter2" not in url


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"storage_mode": "s3"},
            "S3 storage needs S3_BUCKET, S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY; or set STORAGE_MODE=file",
        ),
        ({"s3_bucket": "b"}, "needs S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY"),
        ({"s3_bucket": "b", "s3_endpoint": "minio:9000", **KEYS}, "S3_ENDPOINT is 'minio:9000'; accepted: a URL"),
        ({"s3_bucket": "b", "s3_public_url": "cdn.example", **KEYS}, "S3_PUBLIC_URL is 'cdn.example'; accepted: a URL"),
        ({"storage_mode": "gcs"}, "STORAGE_MODE=gcs is not available yet; use file or s3"),
        ({"storage_mode": "supabase"}, "STORAGE_MODE=supabase is not available yet"),
        ({"storage_mode": "stateless"}, "STORAGE_MODE=stateless is not available yet"),
    ],
)
def test_what_is_missing_stops_the_start_with_its_name(given: dict[str, object], said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        open_storage(settings(**given), public_url="", secret=b"")


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, "file"),
        ({"s3_bucket": "b"}, "s3"),
        ({"s3_endpoint": "https://x"}, "s3"),
        ({"r2_bucket": "b"}, "s3"),
        ({"r2_account_id": "a"}, "s3"),
        ({"s3_bucket": "b", "storage_mode": "file"}, "file"),
        ({"storage_mode": "memory"}, "memory"),
    ],
)
def test_the_mode_follows_the_variables_that_are_there(given: dict[str, object], mode: StorageMode) -> None:
    assert mode_of(settings(**given)) == mode

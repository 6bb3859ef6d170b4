"""References become local files: once each, of the right kind, from wherever they lead."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from mediamill.catalog import InputRef, MediaKind, Source
from mediamill.config import Settings
from mediamill.errors import InputUnreachable, InvalidRequest, StorageRefused, TooLarge, UnsupportedMedia
from mediamill.inputs import Inputs, UrlGuard
from mediamill.storage import LocalUrls, open_storage
from mediamill.storage.file import FileStorage
from mediamill.storage.memory import MemoryStorage
from tests.fixtures_web import Page, WebServer
from tests.inputs import samples

PNG = samples.picture("PNG")
PNG_SHA256 = hashlib.sha256(PNG).hexdigest()
DATA_URI = "data:image/png;base64," + base64.b64encode(PNG).decode()


def ref(value: str, field: str = "image_url", *, kind: MediaKind = "image", max_bytes: int = 10**6) -> InputRef:
    return InputRef(field, value, Source(kind, max_bytes))


def kept(cache: Path, kind: str) -> list[Path]:
    return [path for path in (cache / kind).rglob("*") if path.is_file()]


async def test_a_url_becomes_a_file_with_its_facts(inputs: Inputs, web_server: WebServer, into: Path) -> None:
    found, errors = await inputs.resolve([ref(web_server.url("/x.jpg", Page(PNG)))], into=into, partial=False)
    file = found["image_url"]
    assert errors == {}
    assert file.path.read_bytes() == PNG
    assert (file.media_type, file.size_bytes, file.sha256) == ("image/png", len(PNG), PNG_SHA256)
    assert file.path.parent == into
    assert file.path.suffix == ".png"
    assert [path.name for path in into.iterdir()] == [file.path.name]


async def test_a_reference_held_by_many_fields_is_fetched_once(
    inputs: Inputs, web_server: WebServer, into: Path
) -> None:
    page = Page(PNG)
    url = web_server.url("/x", page)
    refs = [ref(url, f"images.{i}.image_url") for i in range(20)]
    found, _ = await inputs.resolve(refs, into=into, partial=False)
    assert len(page.requests) == 1
    assert list(found) == [r.field for r in refs]
    assert len({file.path for file in found.values()}) == 20
    assert all(file.path.read_bytes() == PNG for file in found.values())


async def test_a_later_job_asks_whether_the_file_changed(inputs: Inputs, web_server: WebServer, tmp_path: Path) -> None:
    page = Page(PNG, etag='"1"')
    url = web_server.url("/x", page)
    contents = []
    for number, content in enumerate((PNG, PNG, samples.picture("GIF"))):
        if content != page.content:
            page.content, page.etag = content, '"2"'
        folder = tmp_path / str(number)
        folder.mkdir()
        found, _ = await inputs.resolve([ref(url)], into=folder, partial=False)
        contents.append(found["image_url"].path.read_bytes())
    assert contents == [PNG, PNG, samples.picture("GIF")]
    assert [r.get("If-None-Match") for r in page.requests] == [None, '"1"', '"1"']


async def test_without_versions_a_url_is_read_again(inputs: Inputs, web_server: WebServer, tmp_path: Path) -> None:
    page = Page(PNG)
    url = web_server.url("/x", page)
    for number, content in enumerate((PNG, samples.picture("GIF"))):
        page.content = content
        folder = tmp_path / str(number)
        folder.mkdir()
        found, _ = await inputs.resolve([ref(url)], into=folder, partial=False)
        assert found["image_url"].path.read_bytes() == content


async def test_stored_files_and_our_own_urls_lead_to_the_object(
    inputs: Inputs, storage: FileStorage, into: Path, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(PNG)
    await storage.put("uploads/1/Ação 1.png", tmp_path / "x", media_type="image/png")
    refs = [ref("file:uploads/1/Ação 1.png", "a"), ref(await storage.url("uploads/1/Ação 1.png"), "b")]
    inputs.check(refs)
    assert await inputs.stage(refs, "job") == {"b": "file:uploads/1/Ação 1.png"}
    found, _ = await inputs.resolve(refs, into=into, partial=False)
    assert found["a"].path.read_bytes() == found["b"].path.read_bytes() == PNG
    assert found["a"].sha256 == PNG_SHA256
    await storage.delete("uploads/1/Ação 1.png")
    assert found["a"].path.read_bytes() == PNG


async def test_objects_of_a_remote_storage_are_cached_by_content(
    guard: UrlGuard, tmp_path: Path, s3_settings: Settings
) -> None:
    storage = open_storage(s3_settings, public_url="", secret=b"")
    inputs = Inputs(cache_dir=tmp_path / "c", storage=storage, guard=guard, cache_bytes=10**7, timeout_s=5)
    staged = await inputs.stage([ref(DATA_URI)], "job")
    reference = staged["image_url"]
    assert (await storage.stat(reference.removeprefix("file:"))).sha256 == PNG_SHA256
    for number, value in enumerate((reference, await storage.url(reference.removeprefix("file:")))):
        inputs.check([ref(value)])
        folder = tmp_path / str(number)
        folder.mkdir()
        found, _ = await inputs.resolve([ref(value)], into=folder, partial=False)
        assert found["image_url"].path.read_bytes() == PNG
        for blob in kept(tmp_path / "c", "blobs"):
            blob.unlink()  # the second time it must come from the bucket
    await storage.close()


@pytest.mark.parametrize(
    "value",
    [
        DATA_URI,
        DATA_URI.replace("image/png;", "IMAGE/PNG;charset=x;"),
        base64.b64encode(PNG).decode(),
        base64.b64encode(PNG).decode().rstrip("="),
        base64.urlsafe_b64encode(PNG).decode(),
        base64.encodebytes(PNG).decode(),
        "data:application/octet-stream," + "".join(f"%{byte:02x}" for byte in PNG),
    ],
)
async def test_inline_values_are_staged_so_that_no_row_holds_them(
    inputs: Inputs, storage: FileStorage, into: Path, value: str
) -> None:
    inputs.check([ref(value)])
    staged = await inputs.stage([ref(value)], "job-1")
    assert staged == {"image_url": f"file:uploads/job-1/{PNG_SHA256}.png"}
    assert (await storage.stat(f"uploads/job-1/{PNG_SHA256}.png")).media_type == "image/png"
    found, _ = await inputs.resolve([ref(staged["image_url"])], into=into, partial=False)
    assert found["image_url"].path.read_bytes() == PNG


async def test_inline_values_resolve_without_a_stage_too(guard: UrlGuard, tmp_path: Path, into: Path) -> None:
    memory = open_storage(Settings(_env_file=None, storage_mode="memory"), public_url="", secret=b"")
    inputs = Inputs(cache_dir=tmp_path / "c", storage=memory, guard=guard, cache_bytes=0, timeout_s=5)
    found, _ = await inputs.resolve([ref(DATA_URI)], into=into, partial=False)
    assert found["image_url"].sha256 == PNG_SHA256


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        ("data:image/png;base64,!!!!", InvalidRequest, "image_url: is not valid base64"),
        ("data:image/png;base64", InvalidRequest, "image_url: is a data: URI without a comma"),
        ("A" * 5000 + "!" + "A" * 100, InvalidRequest, "image_url: is not valid base64"),
        (
            "data:image/svg+xml;base64," + base64.b64encode(b"<svg xmlns='x'></svg>").decode(),
            UnsupportedMedia,
            "image_url: the file is an SVG drawing",
        ),
        ("data:text/html,<html>", UnsupportedMedia, "image_url: the file is an HTML page"),
        ("data:,", UnsupportedMedia, "image_url: the file is empty"),
        (
            "data:image/png;base64," + base64.b64encode(PNG * 20_000).decode(),
            TooLarge,
            "image_url: has more than 1000000 bytes",
        ),
        ("file:uploads/1/nothing.png", InvalidRequest, "image_url: there is no stored file 'uploads/1/nothing.png'"),
        ("http://127.0.0.1:8123/files/uploads/1/nothing.png", InvalidRequest, "image_url: there is no stored file"),
    ],
)
async def test_what_cannot_be_staged_is_named_and_nothing_stays(
    inputs: Inputs, storage: FileStorage, value: str, error: type[Exception], said: str
) -> None:
    good = ref("data:image/gif;base64," + base64.b64encode(samples.picture("GIF")).decode(), "first")
    with pytest.raises(error) as refused:
        await inputs.stage([good, ref(value)], "job-1")
    assert said in str(refused.value)
    assert [key async for key, _ in storage.list("")] == []


def test_every_bad_field_is_named_before_anything_is_queued(inputs: Inputs) -> None:
    refs = [
        ref("http://10.0.0.1/x", "a"),
        ref("https://example.com/x", "b"),
        ref("ftp://x", "c"),
        ref("http://127.0.0.1:8123/files/uploads/1/x", "d"),
    ]
    with pytest.raises(InvalidRequest) as refused:
        inputs.check(refs)
    assert [d.path for d in refused.value.details] == ["a", "c"]
    for traversal in ("http://127.0.0.9:8123/files/%2e%2e/x", "http://127.0.0.9:8123/files/../../etc/passwd"):
        with pytest.raises(InvalidRequest):
            inputs.check([ref(traversal, "e")])


async def test_the_first_bad_input_fails_the_request(inputs: Inputs, web_server: WebServer, into: Path) -> None:
    refs = [
        ref(web_server.url("/good", Page(PNG)), "images.0.image_url"),
        ref(web_server.url("/bad", Page(b"<html>")), "images.1.image_url"),
    ]
    with pytest.raises(UnsupportedMedia, match=r"images.1.image_url: the file is an HTML page; accepted: JPEG"):
        await inputs.resolve(refs, into=into, partial=False)


async def test_with_partial_the_others_are_had(inputs: Inputs, web_server: WebServer, into: Path) -> None:
    missing = web_server.url("/missing", Page(status=404))
    good = web_server.url("/good", Page(PNG))
    refs = [
        ref(missing, "images.0.image_url"),
        ref(good, "images.1.image_url"),
        ref(missing, "images.2.image_url"),
        ref(good, "images.3.image_url", max_bytes=10),
        ref(good, "images.4.image_url", kind="video"),
        ref("file:uploads/1/x", "images.5.image_url"),
        ref(web_server.url("/empty", Page(b"")), "images.6.image_url"),
        ref("http://10.0.0.1/x", "images.7.image_url"),
    ]
    found, errors = await inputs.resolve(refs, into=into, partial=True)
    assert list(found) == ["images.1.image_url"]
    assert [(field, error.code) for field, error in errors.items()] == [
        ("images.0.image_url", "input_unreachable"),
        ("images.2.image_url", "input_unreachable"),
        ("images.3.image_url", "too_large"),
        ("images.4.image_url", "unsupported_media"),
        ("images.5.image_url", "invalid_request"),
        ("images.6.image_url", "unsupported_media"),
        ("images.7.image_url", "invalid_request"),
    ]
    assert all(error.message.startswith(f"{field}: ") for field, error in errors.items())


async def test_a_host_that_resolves_to_a_private_address_is_unreachable_media(
    storage: FileStorage, tmp_path: Path, into: Path
) -> None:
    guard = UrlGuard([])
    inputs = Inputs(cache_dir=tmp_path / "c", storage=storage, guard=guard, cache_bytes=0, timeout_s=5)
    # No name server is asked for it, and every machine knows it.
    hosts = Path("/etc/hosts").read_text(encoding="utf-8")
    name = next(
        (
            w
            for line in hosts.splitlines()
            if line.startswith(("127.", "::1"))
            for w in line.split()[1:]
            if w != "localhost"
        ),
        None,
    )
    if name is None:
        pytest.skip("no second name for loopback here")
    with pytest.raises(InputUnreachable, match=f"image_url: {name} may not be used: its address is not public"):
        await inputs.resolve([ref(f"http://{name}/x")], into=into, partial=False)
    await guard.close()


async def test_a_cancelled_fetch_leaves_nothing(
    inputs: Inputs, web_server: WebServer, into: Path, tmp_path: Path
) -> None:
    page = Page(PNG, drip_s=0.01)
    task = asyncio.create_task(inputs.resolve([ref(web_server.url("/x", page))], into=into, partial=False))
    await page.asked.wait()
    await asyncio.sleep(0.05)
    assert kept(tmp_path / "cache", "parts")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert kept(tmp_path / "cache", "parts") == kept(tmp_path / "cache", "blobs") == []


async def test_the_cache_keeps_to_its_size_and_drops_the_least_recently_used(
    storage: FileStorage, guard: UrlGuard, web_server: WebServer, tmp_path: Path
) -> None:
    cache = tmp_path / "c"
    inputs = Inputs(cache_dir=cache, storage=storage, guard=guard, cache_bytes=25_000, timeout_s=5)
    pictures = [samples.picture("BMP", size=(60, 60 + i)) for i in range(4)]
    urls = [web_server.url(f"/{i}", Page(p, etag=f'"{i}"')) for i, p in enumerate(pictures)]
    for number, which in enumerate((0, 1, 0, 2)):
        folder = tmp_path / f"job{number}"
        folder.mkdir()
        await inputs.resolve([ref(urls[which])], into=folder, partial=False)
        for path in folder.iterdir():
            path.unlink()
    await inputs.resolve([ref(urls[3])], into=tmp_path / "job0", partial=False)
    (held,) = (tmp_path / "job0").iterdir()
    names = {path.name for path in kept(cache, "blobs")}
    digests = [hashlib.sha256(p).hexdigest() for p in pictures]
    assert digests[1] not in names  # the longest unused
    assert {digests[0], digests[3]} <= names
    assert held.read_bytes() == pictures[3]
    assert sum(p.stat().st_size for p in kept(cache, "blobs") if p.stat().st_nlink == 1) <= 25_000


async def test_a_cache_of_nothing_still_works(
    storage: FileStorage, guard: UrlGuard, web_server: WebServer, tmp_path: Path, into: Path
) -> None:
    inputs = Inputs(cache_dir=tmp_path / "c", storage=storage, guard=guard, cache_bytes=0, timeout_s=5)
    found, _ = await inputs.resolve([ref(web_server.url("/x", Page(PNG)))], into=into, partial=False)
    assert found["image_url"].path.read_bytes() == PNG
    found["image_url"].path.unlink()
    await inputs.resolve([ref(DATA_URI)], into=into, partial=False)
    assert kept(tmp_path / "c", "blobs") == []


async def test_two_processes_share_one_cache(
    storage: FileStorage, guard: UrlGuard, web_server: WebServer, tmp_path: Path
) -> None:
    """Both fetch, trim and link in one folder that is far too small for what they do."""
    pages = [samples.picture("BMP", size=(40, 30 + i)) for i in range(6)]
    urls = [web_server.url(f"/{i}", Page(p, etag=f'"{i}"')) for i, p in enumerate(pages)]
    both = [
        Inputs(cache_dir=tmp_path / "c", storage=storage, guard=guard, cache_bytes=8_000, timeout_s=5) for _ in range(2)
    ]

    async def work(inputs: Inputs, name: str) -> None:
        for turn in range(5):
            folder = tmp_path / f"{name}{turn}"
            folder.mkdir()
            found, _ = await inputs.resolve([ref(u, f"f{i}") for i, u in enumerate(urls)], into=folder, partial=False)
            assert [found[f"f{i}"].path.read_bytes() for i in range(6)] == pages

    await asyncio.gather(*(work(inputs, name) for inputs, name in zip(both, "ab", strict=True)))
    assert kept(tmp_path / "c", "parts") == []


def test_what_a_killed_process_left_is_swept_and_a_living_one_is_spared(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from mediamill.inputs.cache import Cache\n"
        "cache = Cache(pathlib.Path(sys.argv[1]), max_bytes=1)\n"
        "with cache.part() as (part, file):\n"
        "    file.write(b'x'); file.flush(); print(part, flush=True); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            part = Path(process.stdout.readline().strip())
            Inputs(
                cache_dir=tmp_path,
                storage=MemoryStorage(LocalUrls("", b"")),
                guard=UrlGuard([]),
                cache_bytes=1,
                timeout_s=1,
            )
            assert part.exists()
        finally:
            process.kill()
    Inputs(
        cache_dir=tmp_path, storage=MemoryStorage(LocalUrls("", b"")), guard=UrlGuard([]), cache_bytes=1, timeout_s=1
    )
    assert not part.exists()


def test_a_full_disk_is_not_the_callers_fault(tmp_path: Path) -> None:
    """With a limit on file sizes, as a child process."""
    program = (
        "import asyncio, pathlib, resource, sys\n"
        "from mediamill.catalog import InputRef, Source\n"
        "from mediamill.inputs import Inputs, UrlGuard\n"
        "from mediamill.storage import LocalUrls\n"
        "from mediamill.storage.memory import MemoryStorage\n"
        "inputs = Inputs(cache_dir=pathlib.Path(sys.argv[1]), storage=MemoryStorage(LocalUrls('', b'')),\n"
        "                guard=UrlGuard([]), cache_bytes=1, timeout_s=1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    asyncio.run(inputs.stage([InputRef('f', sys.stdin.read(), Source('image'))], 'j'))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    value = "data:image/bmp;base64," + base64.b64encode(samples.picture("BMP", size=(99, 99))).decode()
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        input=value,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (
        run.stdout.strip()
        == f"{StorageRefused.__name__} The disk of the input files has no room left: free some space."
    )
    assert kept(tmp_path, "parts") == []

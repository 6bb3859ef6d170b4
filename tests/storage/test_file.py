"""What only the folder promises: killed writers, full disks, identity, and URLs of our own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mediamill.config import Settings
from mediamill.errors import StorageRefused
from mediamill.storage import LocalUrls, open_storage
from mediamill.storage.file import FileStorage

URLS = LocalUrls("https://mill.example/base/", b"secret")
UNGUESSABLE = "outputs/0123456789abcdef0123456789abcdef/output.mp4"
GUESSABLE = "Project Name/vídeos/100% #1.mp4"


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path / "outputs", URLS)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"0123456789")
    return path


def files_of(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


async def test_a_copy_shares_the_bytes_and_leaves_no_second_name(storage: FileStorage, source: Path) -> None:
    await storage.put("attempts/j/1/x", source, media_type="text/plain")
    for _ in range(3):
        await storage.copy("attempts/j/1/x", "outputs/j/x")
    assert storage.path_of("outputs/j/x").stat().st_nlink == 2
    assert not [name for name in files_of(storage.root) if name.endswith(".part")]


async def test_empty_folders_and_sidecars_go_with_the_last_object(storage: FileStorage, source: Path) -> None:
    await storage.put("a/b/c/x", source, media_type="text/plain")
    await storage.put("a/y", source, media_type="text/plain")
    await storage.delete("a/b/c/x")
    assert sorted(p.name for p in (storage.root / "a").iterdir()) == ["y"]
    await storage.delete("a/y")
    assert files_of(storage.root) == [".mediamill/identity"]
    assert [p.name for p in storage.root.iterdir()] == [".mediamill"]


async def test_a_sidecar_of_other_bytes_is_not_believed(storage: FileStorage, source: Path) -> None:
    """As when a writer is killed between the sidecar and the bytes, or somebody drops a file in."""
    first = await storage.put("k.png", source, media_type="image/png")
    path = storage.path_of("k.png")
    path.unlink()
    path.write_bytes(b"other bytes")
    found = await storage.stat("k.png")
    assert (found.size_bytes, found.media_type) == (11, "image/png")
    assert found.sha256 != first.sha256
    assert len(found.sha256) == 64


def test_what_a_killed_writer_left_is_swept_at_the_next_start(storage: FileStorage, tmp_path: Path) -> None:
    program = (
        "import asyncio, os, pathlib, sys\n"
        "from mediamill.storage import LocalUrls\n"
        "from mediamill.storage.file import FileStorage\n"
        "storage = FileStorage(pathlib.Path(sys.argv[1]), LocalUrls('', b''))\n"
        "asyncio.run(storage.put('k', pathlib.Path(sys.argv[2]), media_type='text/plain'))\n"
    )
    pipe = tmp_path / "pipe"  # a source that never ends holds the writer in the middle of its put
    os.mkfifo(pipe)
    command = [sys.executable, "-c", program, str(storage.root), str(pipe)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process, pipe.open("wb") as feed:
        feed.write(b"x" * 2 * 1024**2)
        feed.flush()
        while not (parts := list((storage.root / ".mediamill/parts").iterdir())):
            time.sleep(0.01)
        FileStorage(storage.root, URLS)
        assert parts[0].exists()
        process.kill()
        process.wait()
    FileStorage(storage.root, URLS)
    assert files_of(storage.root) == [".mediamill/identity"]


def test_a_full_disk_is_refused_and_leaves_the_old_object(tmp_path: Path, source: Path) -> None:
    """With a limit on file sizes, as a child process: the same errors as a full disk."""
    program = (
        "import asyncio, pathlib, resource, sys\n"
        "from mediamill.storage import LocalUrls\n"
        "from mediamill.storage.file import FileStorage\n"
        "async def main():\n"
        "    storage = FileStorage(pathlib.Path(sys.argv[1]), LocalUrls('', b''))\n"
        "    source = pathlib.Path(sys.argv[2])\n"
        "    await storage.put('k', source, media_type='text/plain')\n"
        "    source.write_bytes(b'x' * 5000)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "    try:\n"
        "        await storage.put('k', source, media_type='text/plain')\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
        "    print(b''.join([c async for c in storage.open('k')]))\n"
        "asyncio.run(main())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "o"), str(source)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    said, kept = run.stdout.splitlines()
    assert said.startswith("StorageRefused The storage folder ")
    assert said.endswith("has no room left: free some space, or set MEDIAMILL_RETENTION_SECONDS.")
    assert kept == "b'0123456789'"
    assert files_of(tmp_path / "o")[0] == ".mediamill/identity"
    assert not [name for name in files_of(tmp_path / "o") if name.endswith(".part")]


async def test_a_key_below_another_object_is_refused(storage: FileStorage, source: Path) -> None:
    await storage.put("a", source, media_type="text/plain")
    with pytest.raises(StorageRefused, match="cannot hold this key"):
        await storage.put("a/b", source, media_type="text/plain")
    await storage.put("f/x", source, media_type="text/plain")
    with pytest.raises(StorageRefused, match="cannot hold this key"):
        await storage.put("f", source, media_type="text/plain")


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageRefused, match="The storage folder"):
        FileStorage(tmp_path / "file" / "outputs", URLS)


async def test_the_same_folder_has_one_identity_by_any_path(storage: FileStorage, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(storage.root)
    again, elsewhere = FileStorage(tmp_path / "link", URLS), FileStorage(tmp_path / "elsewhere", URLS)
    assert await again.identity() == await storage.identity()
    assert await elsewhere.identity() != await storage.identity()


async def test_urls_say_as_little_as_they_need(storage: FileStorage) -> None:
    assert await storage.url(UNGUESSABLE) == f"https://mill.example/base/files/{UNGUESSABLE}"
    guessable = await storage.url(GUESSABLE)
    assert guessable.startswith("https://mill.example/base/files/Project%20Name/v%C3%ADdeos/100%25%20%231.mp4?s=")
    assert storage.key_of(guessable) == GUESSABLE


def test_a_guessable_key_needs_its_signature() -> None:
    signature = URLS.url(GUESSABLE).partition("?s=")[2]
    assert URLS.allows(UNGUESSABLE)
    assert not URLS.allows(GUESSABLE)
    assert URLS.allows(GUESSABLE, signature=signature)
    assert not URLS.allows(GUESSABLE + "x", signature=signature)
    assert not URLS.allows(GUESSABLE, signature=signature[:-1] + "é")
    assert not LocalUrls("", b"another secret").allows(GUESSABLE, signature=signature)
    assert not URLS.allows("attempts/0123456789abcdef0123456789abcdef/1/x.mp4")
    assert not URLS.allows("outputs/123/x.mp4")


def test_an_expiring_url_ends_and_cannot_be_prolonged() -> None:
    now_s = 1000.0
    urls = LocalUrls("http://h", b"secret", ttl_s=60, clock=lambda: now_s)
    query = dict(part.split("=") for part in urls.url(UNGUESSABLE).partition("?")[2].split("&"))
    assert query["e"] == "1060"
    assert urls.allows(UNGUESSABLE, expires="1060", signature=query["s"])
    assert not urls.allows(UNGUESSABLE)
    assert not urls.allows(UNGUESSABLE, expires="9999", signature=query["s"])
    assert not urls.allows(UNGUESSABLE, signature=URLS.url(GUESSABLE).partition("?s=")[2])
    now_s = 1060.0
    assert not urls.allows(UNGUESSABLE, expires="1060", signature=query["s"])
    assert urls.key_of(f"http://h/files/{UNGUESSABLE}?e=1&s=2") == UNGUESSABLE


async def test_the_documented_folder_is_used(tmp_path: Path, source: Path) -> None:
    storage = open_storage(
        Settings(_env_file=None, output_dir=tmp_path / "out", storage_mode="file"), public_url="http://h", secret=b"s"
    )
    await storage.put("a/b.txt", source, media_type="text/plain")
    assert (tmp_path / "out/a/b.txt").read_bytes() == b"0123456789"

"""The embedded server as a child process: it is ready when it says so, dies with us, and heals what a kill leaves."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from mediamill.errors import Conflict, StoreUnavailable
from mediamill.serve.postgres import EmbeddedPostgres

QUICK = {"fsync": "off"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A folder with a cluster that was made once and stopped."""
    top = Path(tempfile.mkdtemp(prefix="mediamill-test-"))
    top.chmod(0o755)
    server = EmbeddedPostgres(top / "made", settings=QUICK)
    asyncio.run(server.start())
    asyncio.run(server.stop())
    yield top / "made"
    shutil.rmtree(top)


@pytest.fixture
def folder(cluster: Path) -> Iterator[Path]:
    """A copy of it for one test, owner included."""
    target = cluster.parent / f"copy-{os.urandom(4).hex()}"
    subprocess.run(["cp", "-a", str(cluster), str(target)], check=True)
    yield target
    shutil.rmtree(target)


@pytest.fixture
async def server(folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    started = EmbeddedPostgres(folder, settings=QUICK)
    try:
        await started.start()
        yield started
    finally:
        await started.stop()


async def ask(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def gone(pid: int) -> None:
    """Until that process is dead, reaped or not."""
    async with asyncio.timeout(30):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.02)


async def test_it_answers_once_started_keeps_its_data_and_leaves_nothing_running(folder: Path) -> None:
    server = EmbeddedPostgres(folder, settings=QUICK)
    dsn = await server.start()
    assert await server.start() == dsn
    pid = server.pid
    assert pid is not None
    await ask(dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    children = psutil.Process(pid).children(recursive=True)
    await server.stop()
    await server.stop()
    assert server.pid is None
    assert not psutil.pid_exists(pid)
    assert not any(child.is_running() for child in children)
    async with EmbeddedPostgres(folder, settings=QUICK) as dsn:
        assert await ask(dsn, "SELECT n FROM kept") == 7


async def test_only_its_user_gets_in_and_it_is_never_root(server: EmbeddedPostgres, folder: Path) -> None:
    assert server.pid is not None
    uid = psutil.Process(server.pid).uids().real
    assert uid != 0
    for name in ("data", "socket"):
        facts = (folder / name).stat()
        assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (0o700, uid), name
    assert await ask(server.dsn, "SHOW listen_addresses") == ""
    assert [c for c in psutil.Process(server.pid).net_connections("inet") if c.status == "LISTEN"] == []


async def test_it_inherits_no_pipe_of_its_starter(server: EmbeddedPostgres, folder: Path) -> None:
    """A pipe kept open by a daemon keeps whoever reads its other end waiting."""
    links = {fd: str(Path(f"/proc/{server.pid}/fd/{fd}").readlink()) for fd in ("0", "1", "2")}
    assert links == {"0": "/dev/null", "1": str(folder / "server.log"), "2": str(folder / "server.log")}


async def test_a_second_one_in_the_same_folder_is_refused_until_the_first_ends(
    server: EmbeddedPostgres, folder: Path
) -> None:
    second = EmbeddedPostgres(folder, settings=QUICK)
    with pytest.raises(Conflict, match="in use by another running mediamill"):
        await second.start()
    assert await ask(server.dsn, "SELECT 1") == 1
    await server.stop()
    async with second as dsn:
        assert await ask(dsn, "SELECT 1") == 1


STARTER = """
import asyncio, sys, time
from pathlib import Path
from mediamill.serve.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]), settings={"fsync": "off"})
asyncio.run(server.start())
print(server.pid, flush=True)
time.sleep(600)
"""


async def test_it_dies_with_a_starter_that_is_killed_and_starts_again_at_once(folder: Path) -> None:
    starter = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARTER, str(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert starter.stdout is not None
    try:
        pid = int(await starter.stdout.readline())
        probe = EmbeddedPostgres(folder, settings=QUICK)
        await ask(probe.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    finally:
        starter.kill()
        await starter.wait()
    async with probe as dsn:  # waits for the dying one
        assert probe.pid != pid
        assert await ask(dsn, "SELECT n FROM kept") == 7
    await gone(pid)


async def test_a_killed_server_is_noticed_and_started_again(server: EmbeddedPostgres) -> None:
    await ask(server.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert await server.wait() == -signal.SIGKILL
    await server.start()
    assert await ask(server.dsn, "SELECT n FROM kept") == 7


@pytest.mark.parametrize("first_line", ["alive", "1", "999999", "nonsense", ""])
async def test_a_stale_pid_file_heals_even_when_its_number_lives_again(folder: Path, first_line: str) -> None:
    file = folder / "data" / "postmaster.pid"
    number = str(os.getpid()) if first_line == "alive" else first_line
    file.write_text(f"{number}\n{folder / 'data'}\n1700000000\n5432\n{folder / 'socket'}\n\n  0 0\nready\n")
    shutil.copystat(folder / "data" / "PG_VERSION", file)
    async with EmbeddedPostgres(folder, settings=QUICK) as dsn:
        assert await ask(dsn, "SELECT 1") == 1


async def test_a_cluster_that_was_half_made_is_made_anew(cluster: Path) -> None:
    folder = cluster.parent / "half"
    (folder / "data.new" / "base").mkdir(parents=True)
    (folder / "data.new" / "PG_VERSION").write_text("18\n")
    try:
        async with EmbeddedPostgres(folder, settings=QUICK) as dsn:
            assert await ask(dsn, "SELECT current_database()") == "postgres"
        assert not (folder / "data.new").exists()
    finally:
        shutil.rmtree(folder)


async def test_another_major_version_is_refused_with_the_way_out(folder: Path) -> None:
    (folder / "data" / "PG_VERSION").write_text("13\n")
    with pytest.raises(Conflict, match="pg_dumpall") as caught:
        await EmbeddedPostgres(folder, settings=QUICK).start()
    assert "PostgreSQL 13" in caught.value.message
    assert "psql" in caught.value.message


async def test_a_long_path_gets_a_short_socket_that_goes_with_the_server(folder: Path) -> None:
    deep = folder.parent / ("d" * 90) / "postgres"
    deep.parent.mkdir()
    folder.rename(deep)
    try:
        server = EmbeddedPostgres(deep, settings=QUICK)
        async with server as dsn:
            socket = Path(dsn.split("host=")[1])
            assert len(os.fsencode(socket)) < 60
            assert stat.S_IMODE(socket.stat().st_mode) == 0o700
            assert await ask(dsn, "SELECT 1") == 1
        assert not socket.exists()
    finally:
        deep.rename(folder)
        deep.parent.rmdir()


async def test_a_server_that_does_not_start_says_why_and_lets_go_of_its_folder(folder: Path) -> None:
    with pytest.raises(StoreUnavailable, match="no_such_setting"):
        await EmbeddedPostgres(folder, settings={"no_such_setting": "1"}).start()
    async with EmbeddedPostgres(folder, settings=QUICK) as dsn:
        assert await ask(dsn, "SELECT 1") == 1


async def test_a_large_log_is_put_aside_at_the_start(folder: Path) -> None:
    log = folder / "server.log"
    with log.open("wb") as file:
        file.truncate(17 * 1024**2)
    async with EmbeddedPostgres(folder, settings=QUICK):
        assert log.stat().st_size < 1024**2
    assert (folder / "server.log.1").stat().st_size >= 17 * 1024**2

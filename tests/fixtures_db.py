"""Databases for tests: one server a test process, one database a test, copied from a template with the schema."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
import pytest

from mediamill.jobs.database import Database
from mediamill.jobs.schema import migrate
from mediamill.jobs.store import JobStore
from mediamill.serve.postgres import EmbeddedPostgres

T = TypeVar("T")
_FAST = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB", "autovacuum": "off"}
"""Safe against the death of every process; not against that of the machine."""
_TEMPLATE = "mediamill_template"
_DISCONNECT = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
_SHAPE = """
    SELECT md5(coalesce((
        SELECT string_agg(format('%s %s %s', attrelid::regclass, attname, atttypid), ',' ORDER BY attrelid::regclass::text, attnum)
        FROM pg_attribute WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
    ), '')
    || (SELECT count(*) FROM pg_constraint)
    || (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())))
"""


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code, whatever loop this thread may have."""
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(asyncio.run, work).result()


class TestServer:
    """A running server that hands out databases."""

    __test__ = False

    def __init__(self, binaries: Path | None = None) -> None:
        # not pytest's folder: as root the server becomes another user, and everything above must let it pass
        self.folder = Path(tempfile.mkdtemp(prefix="mediamill-test-"))
        self.folder.chmod(0o755)
        self.server = EmbeddedPostgres(self.folder / "postgres", binaries=binaries, settings=_FAST)
        self._free: list[str] = []
        self._shape = ""

    def start(self) -> None:
        asyncio.run(self.server.start())  # in this thread: the server dies with the thread that started it
        run_apart(self._make_template())

    def stop(self) -> None:
        asyncio.run(self.server.stop())
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _make_template(self) -> None:
        await self._execute(f"CREATE DATABASE {_TEMPLATE}")
        await migrate(Database(self.server.url(_TEMPLATE)))
        connection = await asyncpg.connect(self.server.url(_TEMPLATE))
        self._shape = await connection.fetchval(_SHAPE)
        await connection.close()

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.server.dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def lend_database(self) -> str:
        """The name of a database with the schema and nothing in it."""
        if self._free:
            return self._free.pop()
        name = f"test_{uuid4().hex[:12]}"
        run_apart(self._execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}"))
        return name

    def take_back(self, name: str) -> None:
        """Break off who is still connected and empty it for the next test (creating one anew takes ten times as long)."""
        if run_apart(self._emptied(name)):
            self._free.append(name)
        else:
            run_apart(self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))

    async def _emptied(self, name: str) -> bool:
        """Whether the database is as new; False when a test changed its schema."""
        connection = await asyncpg.connect(self.server.url(name))
        try:
            await connection.execute(_DISCONNECT)
            if await connection.fetchval(_SHAPE) != self._shape:
                return False
            tables = await connection.fetch("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'")
            deletes = [f'DELETE FROM "{t["name"]}"' for t in tables if t["name"] != "schema_version"]
            await connection.execute("SET session_replication_role = replica; " + "; ".join(deletes))
        finally:
            await connection.close()
        return True


def system_binaries() -> Path | None:
    """The newest PostgreSQL of the machine itself, where there is one."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(found, key=lambda folder: int(folder.parent.name), default=None)


@pytest.fixture(scope="session")
def embedded_server() -> Iterator[TestServer]:
    """The wheel's PostgreSQL, started when the first test wants it."""
    server = TestServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def system_server() -> Iterator[TestServer]:
    """The machine's own PostgreSQL, or a skip."""
    binaries = system_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL of its own on this machine")
    server = TestServer(binaries)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def database_server(embedded_server: TestServer) -> TestServer:
    """The server of `database_url`; tests/jobs overrides it to run on both."""
    return embedded_server


@pytest.fixture
def database_url(database_server: TestServer) -> Iterator[str]:
    """URL of a fresh database with the schema and nothing in it."""
    name = database_server.lend_database()
    yield database_server.server.url(name)
    database_server.take_back(name)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[JobStore]:
    """An open store on a fresh database."""
    async with await JobStore.open(database_url) as opened:
        yield opened

"""Numbered migrations, applied by whichever process comes first, under one lock.

A file `migrations/NNNN_name.sql` runs once, in one transaction, and is never changed afterwards. Within a major number
(its first line) migrations only add: columns with defaults, tables, indexes. So a worker of an older release goes on
on a newer schema. What cannot be done by adding raises the major, and then old and new processes do not mix.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version

from mediamill.errors import SchemaMismatch
from mediamill.jobs import queue
from mediamill.jobs.database import Connection, Database

_log = logging.getLogger(__name__)

MAJOR = 1
"""The compatibility number of this code: it works with exactly the schemas of this major."""
_OLDEST_POSTGRES = 14
_LOCK_KEY = 7_305_522_401
"""Of the advisory lock, one for each database."""
_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_MAJOR_LINE = re.compile(r"-- major: (\d+)\n")


@dataclass(frozen=True)
class Migration:
    """One numbered step."""

    number: int
    name: str
    major: int
    sql: str


def parse(file_name: str, text: str) -> Migration:
    """A migration from its file. Raises ValueError for a name or first line that is not one."""
    file, first = _FILE.fullmatch(file_name), _MAJOR_LINE.match(text)
    if file is None or first is None:
        raise ValueError(f"{file_name!r} is not a migration: NNNN_name.sql, first line `-- major: N`.")
    return Migration(int(file[1]), file[2], int(first[1]), text)


def load() -> list[Migration]:
    """Every migration that comes with this release, in order."""
    folder = resources.files("mediamill.jobs").joinpath("migrations")
    files = (f for f in folder.iterdir() if f.name.endswith(".sql"))
    return sorted((parse(f.name, f.read_text(encoding="utf-8")) for f in files), key=lambda m: m.number)


async def migrate(
    database: Database, *, migrations: Sequence[Migration] | None = None, cross_major: bool = False
) -> None:
    """Bring the database's schema up to this release; does nothing when it is there already.

    `migrations` are those to apply; None takes this release's. `cross_major` also applies those that raise the major,
    to be set only while no older process runs.

    Raises:
        SchemaMismatch: the schema's major is newer than this code, or older and `cross_major` is not set.
        StoreUnavailable: the database is away.
    """
    steps = load() if migrations is None else migrations
    connection = await database.connect()
    try:
        with database.translated():
            # others may be migrating for longer than a statement of theirs usually takes
            await connection.execute("SET lock_timeout = 0; SET statement_timeout = 0")
            await connection.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY, timeout=600)
            await _migrate_locked(connection, steps, cross_major=cross_major)
    finally:
        connection.terminate()  # which gives up the lock


async def _migrate_locked(connection: Connection, steps: Sequence[Migration], *, cross_major: bool) -> None:
    release = connection.get_server_version().major
    if release < _OLDEST_POSTGRES:
        raise SchemaMismatch(f"The database is PostgreSQL {release}; {_OLDEST_POSTGRES} or newer is needed.")
    if await connection.fetchval("SELECT to_regclass('schema_version')") is None:
        await connection.execute(
            "CREATE TABLE schema_version (number int PRIMARY KEY, name text NOT NULL, major int NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
        )
    rows = await connection.fetch("SELECT number, major FROM schema_version")
    done = {row["number"] for row in rows}
    found = max((row["major"] for row in rows), default=None)
    ours = max(MAJOR, *(step.major for step in steps))
    if found is not None and found > ours:
        raise SchemaMismatch(
            f"The database's schema has major {found}; this mediamill {version('mediamill')} knows {ours}. "
            "Run the newer release on this host too."
        )
    if found is not None and found < ours and not cross_major:
        raise SchemaMismatch(
            f"The database's schema has major {found}; this mediamill {version('mediamill')} needs {ours}, which older "
            "processes cannot use. Stop all of them, back the database up, and migrate it once, across majors."
        )
    await queue.install(connection)
    for step in steps:
        if step.number in done:
            continue
        async with connection.transaction():
            await connection.execute(step.sql, timeout=3600)
            await connection.execute(
                "INSERT INTO schema_version (number, name, major) VALUES ($1, $2, $3)",
                step.number,
                step.name,
                step.major,
            )
        _log.info("database schema migrated", extra={"number": step.number, "migration": step.name})

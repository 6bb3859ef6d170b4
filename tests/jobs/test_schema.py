"""Migrations: applied once, by one process, and forward compatible."""

from __future__ import annotations

import asyncio

import pytest

from mediamill.errors import SchemaMismatch
from mediamill.jobs import schema
from mediamill.jobs.database import Database
from mediamill.jobs.schema import Migration, load, migrate, parse
from mediamill.jobs.store import JobStore
from mediamill.model import Status
from tests.store_steps import artifact, make, opened, sql, succeed, take

ADDITIVE = Migration(
    9001,
    "later",
    schema.MAJOR,
    """
    ALTER TABLE job ADD COLUMN tenant text NOT NULL DEFAULT 'all';
    ALTER TABLE artifact ADD COLUMN colour text NOT NULL DEFAULT 'bt709';
    ALTER TABLE batch ADD COLUMN extra jsonb;
    ALTER TABLE webhook ADD COLUMN secret_name text DEFAULT 'default';
    CREATE TABLE later (id int);
    CREATE INDEX job_tenant_idx ON job (tenant);
    """,
)


async def test_an_old_worker_goes_on_with_what_it_runs_on_a_newer_schema(store: JobStore) -> None:
    """The statements it has prepared on the old schema are used again on the new one."""
    for _ in range(2):
        await make(store, webhook_url="https://example.com")
    await succeed(store, await take(store), artifacts=[artifact()])
    running = await take(store)
    await migrate(store.database, migrations=[*load(), ADDITIVE])
    assert (await store.beat(running.job.id, running.attempt, progress=0.5)).owned
    assert await succeed(store, running, artifacts=[artifact()])
    assert (await store.get(running.job.id)).artifacts == (artifact(),)
    parent = await make(store, "none", parts=[{}, {}])
    await succeed(store, await take(store))
    handed = await take(store)
    assert await store.hand_back(handed.job.id, handed.attempt)
    await succeed(store, await take(store))
    assert (await store.get(parent.id)).status is Status.FAILED  # there is no such model; it was merged all the same
    assert len((await store.list()).jobs) == 3


async def test_an_old_process_starts_on_a_newer_schema(database_url: str, store: JobStore) -> None:
    await migrate(store.database, migrations=[*load(), ADDITIVE])
    async with opened(database_url) as old:
        await make(old)
        assert await succeed(old, await take(old))
    assert await sql(store, "SELECT max(number) FROM schema_version") == 9001


async def test_a_schema_of_a_newer_major_is_refused(database_url: str, store: JobStore) -> None:
    major = Migration(9002, "breaking", schema.MAJOR + 1, "CREATE TABLE breaking ()")
    with pytest.raises(SchemaMismatch, match="Stop all of them"):
        await migrate(store.database, migrations=[*load(), major])
    assert await sql(store, "SELECT to_regclass('breaking')") is None
    await migrate(store.database, migrations=[*load(), major], cross_major=True)
    with pytest.raises(SchemaMismatch, match="newer release"):
        await JobStore.open(database_url)


async def test_a_migration_that_fails_leaves_the_schema_as_it_was(store: JobStore) -> None:
    broken = Migration(9003, "broken", schema.MAJOR, "CREATE TABLE half (); SELECT 1 / 0")
    with pytest.raises(Exception, match="division by zero"):
        await migrate(store.database, migrations=[*load(), broken])
    assert await sql(store, "SELECT to_regclass('half')") is None
    assert await sql(store, "SELECT count(*) FROM schema_version WHERE number = 9003") == 0


async def test_processes_that_start_together_migrate_once(store: JobStore, database_url: str) -> None:
    await sql(store, "DROP SCHEMA public CASCADE")
    await sql(store, "CREATE SCHEMA public")
    databases = [Database(database_url) for _ in range(6)]
    await asyncio.gather(*(migrate(database) for database in databases))
    assert await sql(store, "SELECT count(*) FROM schema_version") == len(load())
    await make(store)
    assert await succeed(store, await take(store))


def test_each_migration_has_a_number_of_its_own_and_stays_within_the_major() -> None:
    steps = load()
    assert len({step.number for step in steps}) == len(steps)
    assert max(step.major for step in steps) == schema.MAJOR


@pytest.mark.parametrize(
    ("name", "text"), [("1_a.sql", "-- major: 1\n"), ("0001_a.sql", "SELECT 1"), ("0001-a.sql", "-- major: 1\n")]
)
def test_a_file_that_is_no_migration_is_refused(name: str, text: str) -> None:
    with pytest.raises(ValueError, match="not a migration"):
        parse(name, text)

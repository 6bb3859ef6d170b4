"""The database goes away and comes back: what callers see, and who keeps which job."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mediamill.errors import MediamillError, StoreError, StoreUnavailable
from mediamill.jobs.database import Database, Limits
from mediamill.jobs.store import JobStore
from mediamill.model import Status
from tests.fixtures_db import TestServer
from tests.store_steps import make, opened, silence, submission, succeed, take, try_take


@pytest.fixture
def own_server() -> Iterator[TestServer]:
    """A server for this test alone, which it may stop."""
    server = TestServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
async def own_store(own_server: TestServer) -> AsyncIterator[JobStore]:
    async with opened(own_server.server.url(own_server.lend_database()), lease_s=60) as store:
        yield store


async def answered(store: JobStore) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await store.list(limit=1)
            except StoreUnavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def test_the_store_comes_back_by_itself_and_the_living_keep_their_jobs(
    own_server: TestServer, own_store: JobStore
) -> None:
    job = await make(own_store)
    taken = await take(own_store)
    await make(own_store)
    async with opened(own_store.database._dsn, lease_s=60) as other, own_store.events.work(["cpu"]) as wake:
        await wake.wait(20)
        await own_server.server.stop()
        for call in (
            own_store.get(job.id),
            own_store.beat(job.id, 1),
            own_store.submit(submission()),
            succeed(own_store, taken),
        ):
            with pytest.raises(StoreUnavailable) as caught:
                await call
            assert caught.value.retryable
        await own_server.server.start()
        await answered(own_store)
        assert await wake.wait(20)  # whatever was notified meanwhile, everybody looks again
        await silence(own_store, job.id, 600)  # as after an outage longer than the lease
        waiting = await take(other)
        assert waiting.job.id != job.id
        assert await try_take(other) is None  # patient: the living beat first
        assert await other.next_wake_s(["cpu"]) == 5
        assert await own_store.publishing(job.id, taken.attempt, [])
        assert await succeed(own_store, taken)
        assert (await own_store.get(job.id)).attempt == 1


async def test_a_process_that_was_cut_off_is_patient_too(own_store: JobStore) -> None:
    """The server ran on; only this process did not reach it. It cannot know who else did not."""
    job = await make(own_store)
    await take(own_store)
    await silence(own_store, job.id, 60)
    async with opened(own_store.database._dsn, lease_s=0.05) as cut_off:
        with pytest.raises(StoreUnavailable), cut_off.database.translated():
            raise ConnectionResetError
        cut_off.database._last_outage_at += 1000  # as if it went on for a while yet
        assert await try_take(cut_off) is None
        cut_off.database._last_outage_at = None
        await asyncio.sleep(0.1)
        assert (await take(cut_off)).attempt == 2


async def test_a_killed_server_is_started_again_and_has_what_was_committed(
    own_server: TestServer, own_store: JobStore
) -> None:
    ids = [(await make(own_store)).id for _ in range(5)]
    process = own_server.server._process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    assert await own_server.server.wait() == -signal.SIGKILL
    assert own_server.server.pid is None
    await own_server.server.start()
    await answered(own_store)
    assert [job.id for job in (await own_store.list(order="asc")).jobs] == ids


async def test_a_read_only_database_is_an_outage_for_writers(store: JobStore, database_url: str) -> None:
    job = await make(store)
    async with store.database.connection() as connection:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        read_only = JobStore(Database(database_url))
        with pytest.raises(StoreUnavailable, match="read-only"):
            await read_only.submit(submission())
        assert (await read_only.get(job.id)).status is Status.QUEUED
        await read_only.close()
    finally:
        async with store.database.connection() as connection:
            await connection.execute("SET default_transaction_read_only = off")
            await connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")


@pytest.mark.parametrize(
    ("sqlstate", "transient"),
    [
        ("53100", True),  # disk full
        ("53300", True),  # too many connections
        ("57P01", True),  # the administrator shut it down
        ("57P03", True),  # it is starting
        ("57014", True),  # statement time-out
        ("25006", True),  # read-only
        ("55P03", True),  # lock time-out
        ("58030", True),  # input/output error
        ("40P01", True),  # deadlock
        ("23505", False),  # unique violation
        ("42P01", False),  # no such table
        ("22P02", False),  # bad text
    ],
)
async def test_what_passes_by_itself_is_one_error(store: JobStore, sqlstate: str, *, transient: bool) -> None:
    async def fail() -> None:
        async with store.database.connection() as connection:
            await connection.execute(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{sqlstate}'; END $$")

    with pytest.raises(Exception, match="x") as caught:
        await fail()
    assert isinstance(caught.value, StoreUnavailable) is transient
    assert isinstance(caught.value, MediamillError) is transient


async def test_a_statement_that_takes_too_long_and_a_lock_that_does_not_come_are_outages(store: JobStore) -> None:
    database = Database(store.database._dsn, limits=Limits(statement_s=0.1))

    async def sleep() -> None:
        async with database.connection() as connection:
            await connection.execute("SELECT pg_sleep(5)")

    with pytest.raises(StoreUnavailable):
        await sleep()
    await database.close()


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("postgresql://postgres@/x?host=/nowhere", StoreUnavailable),
        ("postgresql://postgres@127.0.0.1:1/x", StoreUnavailable),
        ("mysql://a:sesame@b/c", StoreError),
        ("{server}/no_such_database", StoreError),
    ],
)
async def test_a_database_that_cannot_be_had_is_said_so(
    embedded_server: TestServer, tmp_path: Path, url: str, kind: type[StoreError]
) -> None:
    url = embedded_server.server.url("no_such_database") if url.startswith("{") else url
    with pytest.raises(StoreError) as caught:
        await JobStore.open(url, limits=Limits(connect_s=2))
    assert type(caught.value) is kind
    assert "sesame" not in str(caught.value)

"""The tickets: what the library does that the store has to live with, and that it is alone in knowing the library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import pytest

import mediamill
from mediamill.jobs import queue
from mediamill.jobs.ending import SQL
from mediamill.jobs.store import JobStore
from tests.store_steps import make, sql, submission, succeed, take, try_take

LANES = ["cpu/fake"]


async def put(store: JobStore, *, lane: str = "cpu/fake", priority: int = 0) -> tuple[int, UUID]:
    job_id = uuid4()
    async with store.database.transaction() as connection:
        (ticket,) = await queue.put(connection, [queue.Place(job_id, lane, priority)])
    return ticket, job_id


async def claim(store: JobStore, lanes: list[str] = LANES, *, lease_s: float = 60) -> queue.Ticket | None:
    async with store.database.connection() as connection:
        return await queue.take(connection, lanes, slot=uuid4(), lease_s=lease_s)


async def test_tickets_come_back_by_priority_then_in_order(store: JobStore) -> None:
    ids = [await put(store, priority=priority) for priority in (0, 1, 0)]
    claimed = [await claim(store) for _ in range(4)]
    assert claimed == [*(queue.Ticket(*ids[n]) for n in (1, 0, 2)), None]


async def test_a_ticket_put_in_a_transaction_that_fails_was_never_there(store: JobStore) -> None:
    async def fail() -> None:
        async with store.database.transaction() as connection:
            await queue.put(connection, [queue.Place(uuid4(), "cpu/fake", 0)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await claim(store) is None


async def test_a_lease_that_ran_out_gives_the_ticket_to_the_next_and_a_beat_keeps_it(store: JobStore) -> None:
    silent = "UPDATE pgqueuer SET heartbeat = now() - interval '61 s'"
    ticket, _ = await put(store)
    await claim(store)
    assert await claim(store, lease_s=60) is None
    await sql(store, silent)
    async with store.database.connection() as connection:
        await connection.execute(queue.renewing("SELECT $1::bigint AS queue_id"), ticket)
    assert await claim(store, lease_s=60) is None
    await sql(store, silent)
    again = await claim(store, lease_s=60)
    assert again is not None
    assert again.id == ticket


async def test_dropping_a_ticket_that_is_gone_is_no_error(store: JobStore) -> None:
    ticket, _ = await put(store)
    for _ in range(2):
        async with store.database.connection() as connection:
            await queue.drop(connection, ticket, "successful")
    assert await sql(store, "SELECT string_agg(status::text, ',' ORDER BY id) FROM pgqueuer_log") == "queued,successful"


async def test_a_take_may_find_nothing_while_another_one_looks_and_has_work_tells(store: JobStore) -> None:
    """A claim locks one row of each lane and takes one: for a moment the others are hidden from everybody else."""
    for lane in ("cpu/a", "cpu/b"):
        await put(store, lane=lane)
    lanes = ["cpu/a", "cpu/b"]
    async with store.database.transaction() as connection:
        assert await queue.take(connection, lanes, slot=uuid4(), lease_s=60) is not None
        assert await claim(store, lanes) is None
        async with store.database.connection() as other:
            assert await queue.has_work(other, lanes)
    assert await claim(store, lanes) is not None
    async with store.database.connection() as connection:
        assert not await queue.has_work(connection, lanes)


async def test_a_slot_that_found_nothing_because_of_another_taker_looks_again_at_once(store: JobStore) -> None:
    await make(store, "a")
    await make(store, "b")
    async with store.database.transaction() as connection:
        assert await queue.take(connection, ["cpu/a", "cpu/b"], slot=uuid4(), lease_s=60) is not None
        assert await try_take(store) is None
        assert await store.next_wake_s(["cpu"]) == pytest.approx(0.1)
    assert (await take(store)).job.model == "b"


async def test_released_tickets_keep_their_place_and_wait_for_their_time(store: JobStore) -> None:
    first, _ = await put(store)
    await put(store)
    await claim(store)
    async with store.database.connection() as connection:
        await queue.release(connection, first, delay_s=0)
    again = await claim(store)
    assert again is not None
    assert again.id == first
    async with store.database.connection() as connection:
        assert await queue.eta_s(connection, LANES) is None
        await queue.release(connection, first, delay_s=30)
        eta_s = await queue.eta_s(connection, LANES)
    assert eta_s is not None
    assert 20 < eta_s <= 30


async def test_missing_names_what_is_no_ticket(store: JobStore) -> None:
    ticket, _ = await put(store)
    async with store.database.connection() as connection:
        assert await queue.missing(connection, [ticket, ticket + 1000]) == {ticket + 1000}
        assert await queue.missing(connection, []) == set()


async def test_installing_again_changes_nothing(store: JobStore) -> None:
    await put(store)
    async with store.database.connection() as connection:
        await queue.install(connection)
        assert (await connection.fetchval("SELECT obj_description('pgqueuer'::regclass)")).startswith("pgqueuer 1.")
    assert await claim(store) is not None


async def test_a_queue_schema_of_an_older_library_is_brought_up_and_of_a_newer_one_left_alone(store: JobStore) -> None:
    async with store.database.connection() as connection:
        await connection.execute("COMMENT ON TABLE pgqueuer IS 'pgqueuer 99.0.0'; DROP INDEX pgqueuer_ep_ea_idx")
        await queue.install(connection)
        assert await connection.fetchval("SELECT to_regclass('pgqueuer_ep_ea_idx')") is None
        await connection.execute("COMMENT ON TABLE pgqueuer IS 'pgqueuer 1.0.0'")
        await queue.install(connection)
        assert await connection.fetchval("SELECT to_regclass('pgqueuer_ep_ea_idx')") is not None
        await connection.execute("COMMENT ON TABLE pgqueuer IS 'changed by a test'")


async def rows_read(store: JobStore, statement: str) -> int:
    """Rows of the job table that a statement makes the database read."""
    count = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'job'"
    async with store.database.transaction() as connection:
        before = await connection.fetchval(count)
        await connection.fetch(statement)
        return int(await connection.fetchval(count) - before)


async def test_choosing_a_lane_reads_a_few_rows_of_a_long_queue(store: JobStore) -> None:
    for model in ("a", "b"):
        await store.submit_batch([submission(model) for _ in range(1000)])
    await sql(store, "ANALYZE job")
    values = ("ARRAY['cpu/a', 'cpu/b']", "ARRAY['cpu/b']", "30.0", "12.0")
    statement = SQL["choose_lane"]
    for number, value in enumerate(values, start=1):
        statement = statement.replace(f"${number}", value)
    assert await rows_read(store, statement) < 20
    await succeed(store, await take(store, held=["b"]))


def test_only_one_file_knows_the_library() -> None:
    root = Path(mediamill.__file__).parent
    knowing = set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "pgqueuer" for name in names):
                knowing.add(file.relative_to(root).as_posix())
    assert knowing == {"jobs/queue.py"}


def test_the_librarys_own_environment_variables_change_nothing() -> None:
    code = "from mediamill.jobs import queue; s = queue._SETTINGS; print(s.queue_table, s.queue_table_log, s.durability.value)"
    names = ("PGQUEUER_QUEUE_TABLE", "QUEUE_TABLE", "PGQUEUER_PREFIX", "PGQUEUER_SCHEMA")
    environment = {**dict.fromkeys(names, "other"), "PGQUEUER_DURABILITY": "volatile"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pgqueuer", "pgqueuer_log", "durable"]

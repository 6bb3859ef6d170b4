"""What the job core costs, beside bare PgQueuer, a bare SELECT, a bare INSERT and a bare FastAPI around them.

    python benchmarks/core.py [--quick] [--rounds 3] [--queued 20000]

One embedded PostgreSQL with its default durability (fsync on), `mediamill api`, two `mediamill worker` (one slot, two
slots; each with a database of its own on that server) and the bare web application, as processes. A no-op job is a
16x16 picture: made in a child, probed, stored with a sync, published. Each round measures ours and the one beside it
in turn; the table shows medians of the rounds, percentiles inside a round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _core_bare import CONNECTIONS, INPUT, BareQueue, PlainTable

from mediamill.jobs.store import JobStore, Submission
from mediamill.model import Artifact, MediaFacts
from mediamill.serve.postgres import EmbeddedPostgres
from tests.service import a_folder, environment

BARE = Path(__file__).with_name("_core_bare.py")
BODY = {"model": "fake", "input": {"kind": "image", "width": 16, "height": 16}}
ELSEWHERE = {"model": "zimage", "input": {"prompt": "nobody here does this"}}
"""A job of a pool that has no worker here."""
QUEUED_AT_ONCE = 2000

Measure = Callable[["Bench", int], Awaitable[list[float]]]
"""Runs a count of operations; returns one rate (a second) or the milliseconds of each."""


@dataclass
class Bench:
    """Everything that is open."""

    one: JobStore
    """Its worker has one slot; the API's database."""
    two: JobStore
    queues: Sequence[BareQueue]
    table: PlainTable
    http: aiohttp.ClientSession
    api_url: str
    bare_url: str
    processes: dict[str, psutil.Process]
    ended_id: str = ""
    row_id: Any = None
    taken_at: asyncio.Queue[float] = field(default_factory=asyncio.Queue)


@dataclass(frozen=True)
class Row:
    """One line (or two, for latencies) of the table."""

    name: str
    ours: Measure
    beside_name: str
    beside: Measure
    count: int
    beside_count: int
    is_rate: bool = True


# what is measured: jobs


async def drained(store: JobStore, count: int) -> list[float]:
    """Jobs a second from the first start to the last end, all of them queued in one commit."""
    batch_id, _ = await store.submit_batch([noop()] * count)
    while True:
        await asyncio.sleep(0.1)
        async with store.database.connection() as connection:
            row = await connection.fetchrow(
                "SELECT count(*) FILTER (WHERE status = 'succeeded') AS ended, "
                "extract(epoch FROM max(finished_at) - min(started_at))::float8 AS took_s FROM job WHERE batch_id = $1::text::uuid",
                batch_id,
            )
        if row["ended"] == count:
            return [count / row["took_s"]]


def noop(*, pool: str = "cpu", model: str = "fake", priority: int = 0) -> Submission:
    return Submission(model=model, input=INPUT, pool=pool, priority=priority)


async def drained_one(bench: Bench, count: int) -> list[float]:
    return await drained(bench.one, count)


async def drained_two(bench: Bench, count: int) -> list[float]:
    return await drained(bench.two, count)


async def store_alone(bench: Bench, count: int) -> list[float]:
    """Take and succeed with one artifact: the store without worker, child and storage."""
    pool = f"bench-{uuid4().hex[:8]}"
    await bench.one.submit_batch([noop(pool=pool)] * count)
    slot, artifact = uuid4(), Artifact("output.png", "outputs/x/output.png", "image/png", 100, "0" * 64, MediaFacts())
    started_s = time.perf_counter()
    while (taken := await bench.one.take(slot=slot, worker="bench", pools=[pool])) is not None:
        await bench.one.succeed(taken.job.id, taken.attempt, artifacts=[artifact], output=None, timings={})
    return [count / (time.perf_counter() - started_s)]


def bare_drained(takers: int) -> Measure:
    async def measure(bench: Bench, count: int) -> list[float]:
        await bench.queues[0].put(count)
        started_s = time.perf_counter()
        done = await asyncio.gather(*(queue.drain() for queue in bench.queues[:takers]))
        assert sum(done) == count
        return [count / (time.perf_counter() - started_s)]

    return measure


async def started(bench: Bench, count: int) -> list[float]:
    """From the call of submit to the row's `started_at`, one after the other."""
    samples = []
    for _ in range(count):
        asked_at = time.time()
        job, _ = await bench.one.submit(noop())
        job = await bench.one.wait(job.id, 60)
        assert job.started_at is not None
        samples.append(1000 * (job.started_at.timestamp() - asked_at))
        await asyncio.sleep(0.02)
    return samples


async def bare_started(bench: Bench, count: int) -> list[float]:
    taking = asyncio.create_task(bench.queues[1].serve(bench.taken_at))
    samples = []
    for _ in range(count):
        asked_at = time.time()
        await bench.queues[0].put(1)
        samples.append(1000 * (await bench.taken_at.get() - asked_at))
        await asyncio.sleep(0.02)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    return samples


# what is measured: submits and status reads


async def rate(call: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """Calls a second of 8 callers."""
    left = iter(range(count))

    async def caller() -> None:
        for _ in left:
            await call()

    started_s = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))
    return [count / (time.perf_counter() - started_s)]


async def submits(bench: Bench, count: int) -> list[float]:
    return await rate(lambda: bench.one.submit(noop(pool="gpu", model="zimage")), count)


async def inserts(bench: Bench, count: int) -> list[float]:
    return await rate(lambda: bench.table.insert(INPUT), count)


async def http_submits(bench: Bench, count: int) -> list[float]:
    return await rate(lambda: asked(bench, "POST", f"{bench.api_url}/v1/jobs", ELSEWHERE), count)


async def http_inserts(bench: Bench, count: int) -> list[float]:
    return await rate(lambda: asked(bench, "POST", f"{bench.bare_url}/jobs", INPUT), count)


async def reads(bench: Bench, count: int) -> list[float]:
    return await rate(lambda: bench.one.get(bench.ended_id), count)


async def reads_of_queued(bench: Bench, count: int) -> list[float]:
    """The last in the queue, with its place there."""
    job, _ = await bench.one.submit(noop(pool="gpu", model="zimage"))
    return await rate(lambda: bench.one.get(job.id, position=True), count)


async def selects(bench: Bench, count: int) -> list[float]:
    return await rate(lambda: bench.table.select(bench.row_id), count)


async def http_reads(bench: Bench, count: int) -> list[float]:
    return await rate(lambda: asked(bench, "GET", f"{bench.api_url}/v1/jobs/{bench.ended_id}"), count)


async def http_selects(bench: Bench, count: int) -> list[float]:
    return await rate(lambda: asked(bench, "GET", f"{bench.bare_url}/jobs/{bench.row_id}"), count)


async def asked(bench: Bench, method: str, url: str, body: Any = None) -> dict[str, Any]:
    async with bench.http.request(method, url, json=body) as reply:
        said: dict[str, Any] = await reply.json()
        assert reply.status < 300, said
        return said


# what is measured: the whole walk


async def walks(bench: Bench, count: int) -> list[float]:
    """POST, then one GET that waits for the end."""
    samples = []
    for _ in range(count):
        started_s = time.perf_counter()
        job = await asked(bench, "POST", f"{bench.api_url}/v1/jobs", {**BODY, "priority": 10})
        job = await asked(bench, "GET", f"{bench.api_url}/v1/jobs/{job['id']}?wait=60")
        samples.append(1000 * (time.perf_counter() - started_s))
        assert job["status"] == "succeeded", job
        bench.ended_id = job["id"]
        await asyncio.sleep(0.02)
    return samples


async def bare_walks(bench: Bench, count: int) -> list[float]:
    """The same steps with nothing in them: POST and row, ticket, taken, done, GET. One process, no work, no file."""
    samples = []
    for _ in range(count):
        started_s = time.perf_counter()
        row = await asked(bench, "POST", f"{bench.bare_url}/jobs", INPUT)
        await bench.queues[0].put(1)
        await bench.queues[0].drain()
        await asked(bench, "GET", f"{bench.bare_url}/jobs/{row['id']}")
        samples.append(1000 * (time.perf_counter() - started_s))
    return samples


def rows(*, quick: bool) -> list[Row]:
    def some(count: int) -> int:
        return max(10, count // 5) if quick else count

    return [
        Row("no-op jobs/s, one slot", drained_one, "PgQueuer, one taker", bare_drained(1), some(150), some(500)),
        Row("no-op jobs/s, two slots", drained_two, "PgQueuer, two takers", bare_drained(2), some(150), some(500)),
        Row(
            "take + succeed /s, store alone", store_alone, "PgQueuer, one taker", bare_drained(1), some(300), some(500)
        ),
        Row("submit to start", started, "PgQueuer", bare_started, some(50), some(50), is_rate=False),
        Row("submits/s", submits, "INSERT", inserts, some(400), some(1000)),
        Row("submits/s over HTTP", http_submits, "FastAPI + INSERT", http_inserts, some(300), some(500)),
        Row("status reads/s", reads, "SELECT", selects, some(2000), some(4000)),
        Row("status reads/s, last in the queue", reads_of_queued, "SELECT", selects, some(2000), some(4000)),
        Row("status reads/s over HTTP", http_reads, "FastAPI + SELECT", http_selects, some(500), some(1000)),
        Row("whole walk over HTTP", walks, "its bare steps", bare_walks, some(50), some(50), is_rate=False),
    ]


# running


async def measured(bench: Bench, wanted: Sequence[Row], rounds: int, tidy: Callable[[], Awaitable[None]]) -> list[str]:
    """The lines of the table; one unmeasured warm-up of each."""
    found: dict[str, tuple[list[list[float]], list[list[float]]]] = {row.name: ([], []) for row in wanted}
    for number in range(-1, rounds):
        for row in wanted:
            sides = [(row.ours, row.count, found[row.name][0]), (row.beside, row.beside_count, found[row.name][1])]
            for measure, count, kept in sides if number % 2 else reversed(sides):
                samples = await measure(bench, 10 if number < 0 else count)
                if number >= 0:
                    kept.append(samples)
                await tidy()
        note(f"round {number + 1} of {rounds}")
    return [line for row in wanted for line in lines(row, *found[row.name])]


def lines(row: Row, ours: list[list[float]], beside: list[list[float]]) -> list[str]:
    if row.is_rate:
        a, b = (statistics.median(s[0] for s in side) for side in (ours, beside))
        return [line(row.name, f"{a:.0f}", row.beside_name, f"{b:.0f}", f"{a / b:.2f}")]
    found = []
    for percent in (50, 95):
        a, b = (statistics.median(percentile(s, percent) for s in side) for side in (ours, beside))
        name = f"{row.name}, p{percent} ms"
        found.append(line(name, f"{a:.1f}", row.beside_name, f"{b:.1f}", f"{a / b:.2f}"))
    return found


def line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def percentile(samples: Sequence[float], percent: int) -> float:
    return sorted(samples)[min(len(samples) - 1, round(len(samples) * percent / 100))]


def note(text: str) -> None:
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{text} (load {load})", file=sys.stderr, flush=True)


async def queue_up(store: JobStore, count: int, **wish: Any) -> None:
    for at in range(0, count, QUEUED_AT_ONCE):
        await store.submit_batch([noop(**wish)] * min(QUEUED_AT_ONCE, count - at))


async def forget_queued(store: JobStore, keep: int = 0) -> None:
    """Take the newest queued jobs but `keep` away, by hand; jobs that run are left."""
    async with store.database.transaction() as connection:
        rows = await connection.fetch(
            "DELETE FROM job WHERE id IN (SELECT id FROM job WHERE status = 'queued' ORDER BY id OFFSET $1 "
            "FOR UPDATE SKIP LOCKED) RETURNING queue_id",
            keep,
        )
        await connection.execute(
            "DELETE FROM pgqueuer WHERE status = 'queued' AND id = ANY($1::bigint[])", [row["queue_id"] for row in rows]
        )


async def run(bench: Bench, given: argparse.Namespace) -> list[str]:
    wanted, rounds = rows(quick=given.quick), given.rounds
    before = resident_mb(bench)
    bench.ended_id = (await asked(bench, "POST", f"{bench.api_url}/v1/jobs?wait=60", BODY))["id"]
    bench.row_id = (await bench.table.insert(INPUT))["id"]
    found = await measured(bench, wanted, rounds, lambda: forget_queued(bench.one))
    found += await cpu_of_a_walk(bench, 100)
    title = f"**{given.queued} queued for another pool** (ours and PgQueuer)"
    note(f"queueing {given.queued}")
    for store in (bench.one, bench.two):
        await queue_up(store, given.queued, pool="gpu", model="zimage")
    await bench.queues[0].put(given.queued, lane="elsewhere")
    found += [line(title, "", "", "", "")]
    found += await measured(bench, wanted, rounds, lambda: forget_queued(bench.one, keep=given.queued))
    await forget_queued(bench.one)
    found += [line("**below queued jobs of the same lane, worker busy**", "", "", "", "")]
    found += await below(bench, given)
    after = resident_mb(bench)
    for when, sizes in (("at start", before), ("at the end", after)):
        a, b = sizes["api"], sizes["bare"]
        found.append(line(f"API process {when}, MB", f"{a:.0f}", "FastAPI + asyncpg", f"{b:.0f}", f"{a / b:.2f}"))
    return found


async def below(bench: Bench, given: argparse.Namespace) -> list[str]:
    """The walk of an urgent job while the only slot works through a queue: is it longer when the queue is?"""
    count = 10 if given.quick else 50
    await queue_up(bench.one, given.queued)
    long = [await walks(bench, count) for _ in range(given.rounds)]
    few = given.queued // 20
    await forget_queued(bench.one, keep=few)
    short = [await walks(bench, count) for _ in range(given.rounds)]
    await forget_queued(bench.one)
    row = Row(f"urgent walk, {given.queued} below it", walks, f"{few} below it", walks, count, count, is_rate=False)
    return lines(row, long, short)


async def cpu_of_a_walk(bench: Bench, count: int) -> list[str]:
    """Processor time, which says more than the clock where the machine is busy with other things."""
    before = cpu_ms(bench)
    await walks(bench, count)
    after = cpu_ms(bench)
    spent = {name: (after[name] - before[name]) / count for name in ("api", "worker", "child", "database")}
    whole = sum(spent.values())
    return [line("CPU of a walk, ms", f"{whole:.1f}", ", ".join(f"{n} {ms:.1f}" for n, ms in spent.items()), "", "")]


def cpu_ms(bench: Bench) -> dict[str, float]:
    """Spent until now, by kind of process; the database's with its servers of single connections."""
    trees = {"api": [bench.processes["api"]], "worker": [bench.processes["worker"]]}
    trees["child"] = bench.processes["worker"].children(recursive=True)
    trees["database"] = [bench.processes["database"], *bench.processes["database"].children()]
    return {name: 1000 * sum(sum(p.cpu_times()[:2]) for p in tree) for name, tree in trees.items()}


def resident_mb(bench: Bench) -> dict[str, float]:
    return {name: process.memory_info().rss / 1e6 for name, process in bench.processes.items()}


# opening


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Bench]:
    async with contextlib.AsyncExitStack() as stack:
        server = EmbeddedPostgres(folder / "postgres")
        await stack.enter_async_context(server)
        await databases(server, "one", "two", "bare")
        stores = [await stack.enter_async_context(await JobStore.open(server.url(name))) for name in ("one", "two")]
        queues = [await BareQueue.open(server.url("bare")) for _ in range(2)]
        for queue in queues:
            stack.push_async_callback(queue.close)
        table = await PlainTable.open(server.url("bare"))
        stack.push_async_callback(table.close)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        processes, urls = {}, {}
        for name, database in (("api", "one"), ("bare", "bare")):
            sock = socket.create_server(("127.0.0.1", 0), backlog=128)
            fd, url = sock.fileno(), f"http://127.0.0.1:{sock.getsockname()[1]}"
            command = {
                "api": ["-m", "mediamill", "api", "--fd", str(fd)],
                "bare": [str(BARE), str(fd), server.url("bare")],
            }
            process = stack.enter_context(running(folder, command[name], server.url(database), fd))
            processes[name], urls[name] = psutil.Process(process.pid), url
            sock.close()
        for slots, database in ((1, "one"), (2, "two")):
            command_line = ["-m", "mediamill", "worker", "--pool", "cpu", "--slots", str(slots)]
            worker = stack.enter_context(running(folder, command_line, server.url(database)))
            if slots == 1:
                processes["worker"] = psutil.Process(worker.pid)
        assert server.pid is not None
        processes["database"] = psutil.Process(server.pid)
        bench = Bench(stores[0], stores[1], queues, table, http, urls["api"], urls["bare"], processes)
        for store in stores:  # until each worker has its child
            job, _ = await store.submit(noop())
            assert (await store.wait(job.id, 60)).finished_at is not None
        yield bench


async def databases(server: EmbeddedPostgres, *names: str) -> None:
    connection = await asyncpg.connect(server.dsn)
    for name in names:
        await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()


@contextlib.contextmanager
def running(folder: Path, arguments: Sequence[str], dsn: str, *fds: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its log in the folder; ended, or else killed, at the end of the block."""
    extra = {"DATABASE_URL": dsn, "MEDIAMILL_DATA_DIR": str(folder / "data"), "LOG_LEVEL": "warning"}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment(extra),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=fds,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the operations")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queued", type=int, default=20_000)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with a_folder() as folder:
        folder.chmod(0o755)  # as root the database becomes another user
        async with opened(folder) as bench:
            async with bench.one.database.connection() as connection:
                settings = await connection.fetchrow(
                    "SELECT current_setting('server_version') AS version, current_setting('fsync') AS fsync, "
                    "current_setting('synchronous_commit') AS synchronous"
                )
            found = await run(bench, given)
    print(
        f"{datetime.now(UTC):%Y-%m-%d}: PostgreSQL {settings['version']} (fsync {settings['fsync']}, "
        f"synchronous_commit {settings['synchronous']}), PgQueuer {version('pgqueuer')}, Python {sys.version.split()[0]}, "
        f"{os.cpu_count()} cores, load {load:.1f} before and {os.getloadavg()[0]:.1f} after, {given.rounds} rounds\n"
    )
    print(line("what", "mediamill", "beside it", "", "ratio"))
    print(line("---", "---:", "---", "---:", "---:"))
    print("\n".join(found))


if __name__ == "__main__":
    asyncio.run(main())

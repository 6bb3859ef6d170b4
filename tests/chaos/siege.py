"""A siege: customers order without pause while one fault after another hits the service; then the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import aiohttp
import cv2
import numpy as np
from aiohttp import web

from tests.chaos import verdict
from tests.chaos.ledger import Customer, Ledger, Order, ended_as, insist, order
from tests.chaos.processes import LEASE_S, Service, free_port, orphans, reaping, service

FAULTS = (
    "claimed.kill",
    "running.kill",
    "running.kill-child",
    "put.kill",
    "stored.kill",
    "published.kill",
    "cleaning.kill",
    "running.stop",
    "publishing.stop",
    "published.stop",
    "webhook.kill",
    "api.kill",
    "database.kill",
)
"""POINT.DEED: where in the walk, and what is done to the process that is there."""
CUSTOMERS = 3
_REACHED_WITHIN_S = 40.0
FREEZE_S = LEASE_S * 2.5


@dataclass
class Report:
    """What a siege found, and its figures."""

    violations: list[str] = field(default_factory=list)
    accepted: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    webhooks: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def table(self) -> str:
        """The figures for a person."""
        rows = [
            f"{self.accepted} jobs accepted, ended as {dict(self.ended)}; {self.webhooks} told; {self.seconds:.0f} s"
        ]
        for fault, count in sorted(self.faults.items()):
            times = self.recovery_s.get(fault, [])
            median = f"{statistics.median(times):.1f} s" if times else "-"
            rows.append(f"{fault:20} x{count}  until the next job succeeded: median {median}")
        return "\n".join((*rows, *(f"VIOLATION {v}" for v in self.violations)))


async def siege(folder: Path, *, source: Path, faults: Sequence[str], seed: int) -> Report:
    """Run one and judge it."""
    rng = random.Random(seed)
    ledger, report = Ledger(), Report()
    started_s = time.monotonic()
    with reaping() as before:
        async with receiver(ledger) as hook, service(folder, source=source) as running:
            photo = await upload_photo(running.url)
            async with aiohttp.ClientSession() as session:
                shop = [
                    Customer(running.url, hook, ledger, own, partial(order, own, photo))
                    for own in (random.Random(rng.random()) for _ in range(CUSTOMERS))
                ]
                ordering = [asyncio.create_task(customer.run(session)) for customer in shop]
                try:
                    for fault in faults:
                        await strike(running, ledger, fault)
                        report.faults[fault] += 1
                        report.recovery_s.setdefault(fault, []).append(await until_next_success(running, session))
                finally:
                    for customer in shop:
                        customer.stop.set()
                    await asyncio.gather(*ordering)
            await judge(running, ledger, report)
        report.violations += [f"orphan process: {line}" for line in orphans(before)]
    report.seconds = time.monotonic() - started_s
    return report


async def comes_back(folder: Path, *, source: Path) -> Report:
    """One job, whose worker freezes, loses it to another, and wakes up with its result while the other still works."""
    ledger, report = Ledger(), Report()
    wanted = Order("fake", {"kind": "image", "width": 32, "height": 32, "seed": 1, "work_s": 2 * LEASE_S})
    with reaping() as before:
        async with (
            receiver(ledger) as hook,
            service(folder, source=source, workers=2) as running,
            aiohttp.ClientSession() as session,
        ):
            body = {"model": wanted.model, "input": wanted.input, "webhook_url": hook}
            job = await insist(session, f"{running.url}/v1/jobs", body, key="one")
            ledger.accepted[job["id"]] = wanted
            frozen = await bomb(running, "running.stop")
            async with asyncio.timeout(_REACHED_WITHIN_S):
                while (job["status"], job["attempt"]) != ("running", 2):
                    await asyncio.sleep(0.05)
                    async with session.get(f"{running.url}/v1/jobs/{job['id']}") as reply:
                        job = await reply.json()
            os.kill(frozen, signal.SIGCONT)  # its child worked on: the result is there, or will be before the other's
            await judge(running, ledger, report)
        report.violations += [f"orphan process: {line}" for line in orphans(before)]
    return report


async def judge(running: Service, ledger: Ledger, report: Report) -> None:
    """Wait for every end and every webhook, drain, and look at everything that is left."""
    jobs = await verdict.all_ended(running.url, ledger, patience_s=90.0)
    await verdict.all_told(ledger, patience_s=60.0)
    report.accepted, report.ended, report.webhooks = len(jobs), ended_as(jobs), len(ledger.webhooks)
    report.violations += verdict.ledger_violations(ledger, jobs)
    report.violations += await verdict.byte_violations(running.url, jobs, running.folder)
    report.violations += [f"a process ended with status {status}" for status in await running.drain() if status]
    report.violations += await verdict.row_violations(running.database.dsn)
    report.violations += await verdict.leaked_files(running)


async def strike(running: Service, ledger: Ledger, fault: str) -> None:
    """Do one fault, and bring back what it took."""
    point, _, deed = fault.partition(".")
    if point == "api":
        await running.kill_api()
    elif point == "database":
        await running.kill_database(away_s=1.0)
    elif point == "webhook":
        reached = asyncio.Event()

        def kill_every_worker() -> None:
            for worker in running.workers:
                worker.kill()
            reached.set()

        ledger.disturb = kill_every_worker
        async with asyncio.timeout(_REACHED_WITHIN_S):
            await reached.wait()
        await asyncio.gather(*(asyncio.to_thread(worker.wait, 10) for worker in running.workers))
    else:
        pid = await bomb(running, fault)
        if deed == "stop":
            await asyncio.sleep(FREEZE_S)
            os.kill(pid, signal.SIGCONT)
        elif deed == "kill":
            await asyncio.gather(*(asyncio.to_thread(w.wait, 10) for w in running.workers if w.pid == pid))
    running.refill()


async def bomb(running: Service, fault: str) -> int:
    """Lay it and wait until a process has come to its point; returns the process."""
    (running.bombs / fault).touch()
    until = time.monotonic() + _REACHED_WITHIN_S
    while time.monotonic() < until:
        gone = list(running.bombs.glob(f"{fault}.*.gone"))
        if gone:
            gone[0].unlink()
            return int(gone[0].name.split(".")[-2])
        await asyncio.sleep(0.02)
    raise AssertionError(f"no worker came to {fault}\n{running.log_tail()}")


async def until_next_success(running: Service, session: aiohttp.ClientSession) -> float:
    """Seconds until a job that was made after now has succeeded."""
    started_s = time.monotonic()
    body = {"model": "fake", "input": {"kind": "image", "width": 32, "height": 32}, "priority": 100}
    while time.monotonic() < started_s + 60:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.post(f"{running.url}/v1/jobs", json=body) as reply:
                made = await reply.json(content_type=None)
            if reply.status == 202:
                async with session.get(f"{running.url}/v1/jobs/{made['id']}?wait=20") as reply:
                    if reply.status == 200 and (await reply.json())["status"] == "succeeded":
                        return time.monotonic() - started_s
        await asyncio.sleep(0.1)
    raise AssertionError(f"no job succeeded within a minute after a fault\n{running.log_tail()}")


@contextlib.asynccontextmanager
async def receiver(ledger: Ledger) -> AsyncIterator[str]:
    """A receiver of webhooks on loopback; yields its URL."""
    app = web.Application()
    app.router.add_post("/hook", ledger.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}/hook"
    finally:
        await runner.cleanup()


async def upload_photo(url: str) -> str:
    """A small photo as a `file:` reference."""
    picture = np.linspace(0, 255, 96 * 54 * 3, dtype=np.uint8).reshape(54, 96, 3)
    encoded = cv2.imencode(".png", picture)[1].tobytes()
    form = aiohttp.FormData()
    form.add_field("file", encoded, filename="photo.png", content_type="image/png")
    async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/files", data=form) as reply:
        answer = await reply.json()
        assert reply.status in {200, 201}, answer
        return str(answer.get("file") or answer.get("url"))

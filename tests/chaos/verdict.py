"""What must be true at the end, looked at from outside: the API, the bucket, the database's tables, the process list."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from mediamill import keys
from mediamill.jobs.store import JobStore
from mediamill.jobs.sweep import Sweeper, remove_abandoned
from mediamill.media.probe import probe
from mediamill.storage.file import create as file_storage
from tests.chaos.ledger import Ledger
from tests.chaos.processes import Service

_LIVE = {"queued", "running"}


async def all_ended(url: str, ledger: Ledger, *, patience_s: float) -> dict[str, dict[str, Any]]:
    """Every accepted job, once each has ended; what still lives after `patience_s` is returned as it is."""
    until = time.monotonic() + patience_s
    jobs: dict[str, dict[str, Any]] = {}
    async with aiohttp.ClientSession() as session:
        while True:
            for job_id in ledger.accepted.keys() - {i for i, job in jobs.items() if job["status"] not in _LIVE}:
                async with session.get(f"{url}/v1/jobs/{job_id}") as reply:
                    jobs[job_id] = await reply.json() if reply.status == 200 else {"status": f"HTTP {reply.status}"}
            if not any(job["status"] in _LIVE for job in jobs.values()) or time.monotonic() > until:
                return jobs
            await asyncio.sleep(0.3)


async def all_told(ledger: Ledger, *, patience_s: float) -> None:
    """Wait until a webhook came for every accepted job, at most `patience_s`."""
    until = time.monotonic() + patience_s
    while ledger.accepted.keys() - ledger.webhooks.keys() and time.monotonic() < until:
        await asyncio.sleep(0.2)


def ledger_violations(ledger: Ledger, jobs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Jobs that did not end, or not as they may, or by the wrong attempt; webhooks that did not come."""
    found = []
    for job_id, wanted in ledger.accepted.items():
        job = jobs[job_id]
        if job["status"] not in wanted.ends:
            found.append(
                f"{wanted.model} job {job_id} is {job['status']}, not {sorted(wanted.ends)}: {job.get('error')}"
            )
        made_by = (job.get("output") or {}).get("made_by_attempt")
        if wanted.model == "fake" and job["status"] == "succeeded" and made_by != job["attempt"]:
            found.append(f"job {job_id} has the result of attempt {made_by}, and is at attempt {job['attempt']}")
        told = ledger.webhooks.get(job_id, [])
        if not told:
            found.append(f"job {job_id} ({job['status']}): no webhook came")
        elif len(set(told)) > 1:
            found.append(f"job {job_id}: webhooks under several ids {set(told)}")
    found += [f"a webhook for {job_id}, which nobody ordered" for job_id in ledger.webhooks.keys() - ledger.accepted]
    return found


async def byte_violations(url: str, jobs: Mapping[str, Mapping[str, Any]], scratch: Path) -> list[str]:
    """Artifacts that are not there, not whole, or not playable."""
    found = []
    async with aiohttp.ClientSession() as session:
        for job_id, job in jobs.items():
            if job["status"] != "succeeded":
                continue
            if not job["artifacts"]:
                found.append(f"job {job_id} succeeded without a file")
            for artifact in job["artifacts"]:
                async with session.get(artifact["url"]) as reply:
                    content = await reply.read()
                if reply.status != 200 or hashlib.sha256(content).hexdigest() != artifact["sha256"]:
                    found.append(f"job {job_id}: {artifact['name']} is not whole (HTTP {reply.status})")
                    continue
                path = scratch / artifact["name"]
                path.write_bytes(content)
                await asyncio.to_thread(probe, path, media_type=artifact["media_type"])
    return found


async def row_violations(database_url: str) -> list[str]:
    """Rows that contradict each other."""
    checks = {
        "tickets of jobs that have ended": "SELECT count(*) FROM pgqueuer",
        "jobs that have not ended": "SELECT count(*) FROM job WHERE finished_at IS NULL",
        "jobs without exactly one webhook": """
            SELECT count(*) FROM job WHERE webhook_url IS NOT NULL
            AND (SELECT count(*) FROM webhook w WHERE w.job_id = job.id) <> 1
        """,
        "webhooks that were not delivered": "SELECT count(*) FROM webhook WHERE delivered_at IS NULL",
        "files of jobs that did not succeed": """
            SELECT count(*) FROM artifact JOIN job ON job.id = job_id WHERE status <> 'succeeded'
        """,
    }
    connection = await asyncpg.connect(database_url)
    try:
        counts = {what: await connection.fetchval(query) for what, query in checks.items()}
    finally:
        await connection.close()
    return [f"{count} {what}" for what, count in counts.items() if count]


async def leaked_files(running: Service) -> list[str]:
    """What is left on disk that no job names, after the sweep that every worker does from time to time."""
    from mediamill.config import Settings

    settings = Settings(data_dir=running.folder / "host0", output_dir=running.outputs, _env_file=None)
    storage = file_storage(settings, public_url=running.url, secret=b"x" * 32)
    left: list[str] = []
    async with await JobStore.open(running.database.dsn) as store:
        for host in (0, 1):
            root = running.folder / f"host{host}" / "work"
            remove_abandoned(root)
            left += [str(path) for path in root.rglob("*")] if root.exists() else []
        sweeper = Sweeper(store, storage, running.folder / "host0" / "work", stray_after_s=0.0)
        connection = await asyncpg.connect(running.database.dsn)
        try:
            await connection.execute("UPDATE publication SET deleting_until = NULL")  # as if a minute had gone by
            await sweeper.sweep()
            await sweeper.sweep_strays()
            named = {row["key"] for row in await connection.fetch("SELECT key FROM artifact")}
            left += [row["key"] for row in await connection.fetch("SELECT key FROM publication")]
        finally:
            await connection.close()
        kept = (f"{keys.UPLOADS}/", f"{keys.PREVIEWS}/")
        left += [key async for key, _ in storage.list("") if key not in named and not key.startswith(kept)]
    await storage.close()
    left += [str(path) for host in (0, 1) for path in (running.folder / f"host{host}").rglob("*.part")]
    return [f"leaked file {name}" for name in left]

"""Webhooks arrive: signed, once accepted never again, tried again when not, and a dead receiver slows nobody."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import standardwebhooks
from aiohttp import web

from mediamill.config import Settings
from mediamill.errors import Misconfigured
from mediamill.inputs import UrlGuard
from mediamill.jobs.store import JobStore, Submission
from mediamill.jobs.webhooks import Deliveries, Delivery, Webhooks, signers
from mediamill.model import Job, JobError
from mediamill.storage import LocalUrls
from mediamill.storage.memory import MemoryStorage
from tests.fixtures_db import TestServer
from tests.store_steps import artifact, make, sql, succeed, take

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
OTHER = "whsec_" + base64.b64encode(b"fedcba9876543210fedcba9876543210").decode()
LOOPBACK = ("127.0.0.0/8",)


@pytest.fixture
def database_server(embedded_server: TestServer) -> TestServer:
    """One server is enough: what differs between servers is in the store's tests."""
    return embedded_server


Answer = Callable[[web.Request], web.Response]


@dataclass
class Receiver:
    """A loopback HTTP server that remembers calls and answers each with the next of its answers."""

    answers: list[Answer] = field(default_factory=list)
    calls: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    hold: asyncio.Event | None = None
    url: str = ""

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        async with self.arrived:
            self.calls.append(({k.lower(): v for k, v in request.headers.items()}, body))
            self.arrived.notify_all()
        if self.hold is not None:
            await self.hold.wait()
        return self.answers.pop(0)(request) if self.answers else web.Response()

    async def until_called(self, times: int = 1) -> None:
        async with asyncio.timeout(30), self.arrived:
            await self.arrived.wait_for(lambda: len(self.calls) >= times)


@contextlib.asynccontextmanager
async def receiving(*answers: Answer, hold: bool = False) -> AsyncIterator[Receiver]:
    receiver = Receiver(list(answers), hold=asyncio.Event() if hold else None)
    app = web.Application()
    app.router.add_post("/{tail:.*}", receiver.receive)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook?token=hunter2"
    try:
        yield receiver
    finally:
        if receiver.hold is not None:
            receiver.hold.set()
        await runner.cleanup()


def status(code: int, **headers: str) -> Answer:
    return lambda _: web.Response(status=code, headers={k.replace("_", "-"): v for k, v in headers.items()})


@contextlib.asynccontextmanager
async def delivering(
    store: JobStore,
    *,
    secret: str | None = SECRET,
    allow: Sequence[str] = LOOPBACK,
    retries_s: Sequence[float] = (0.05, 0.05, 0.05),
    timeout_s: float = 5.0,
) -> AsyncIterator[Webhooks]:
    settings = Settings(webhook_secret=secret)
    guard = UrlGuard(allow)
    webhooks = Webhooks(
        store,
        storage=MemoryStorage(LocalUrls("http://files", b"secret")),
        guard=guard,
        signers=await signers(settings, store),
        timeout_s=timeout_s,
        retries_s=retries_s,
    )
    stop = asyncio.Event()
    task = asyncio.create_task(webhooks.run(stop))
    try:
        yield webhooks
    finally:
        stop.set()
        if timeout_s > 10:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await guard.close()


async def ended(store: JobStore, url: str, **rest: object) -> Job:
    """A job that succeeded and whose webhook row is there."""
    job = await make(store, webhook_url=url, **rest)
    taken = await take(store)
    await succeed(store, taken, artifacts=[artifact(key=f"outputs/{job.id}/output.mp4")])
    return await store.get(job.id)


async def state(store: JobStore, job: Job, what: Callable[[Delivery], bool]) -> Delivery:
    """The job's delivery as soon as it satisfies `what`."""
    log = Deliveries(store.database)
    async with asyncio.timeout(30):
        while not what(found := (await log.log(job.id))[0]):
            await asyncio.sleep(0.02)
    return found


async def test_the_receiver_can_verify_it_and_reads_the_final_reply(store: JobStore) -> None:
    async with receiving() as receiver, delivering(store):
        job = await ended(store, receiver.url)
        delivery = await state(store, job, lambda d: d.delivered_at is not None)
    ((headers, body),) = receiver.calls
    payload = standardwebhooks.Webhook(SECRET).verify(body, headers)
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == delivery.id
    assert payload["type"] == "job.succeeded"
    assert payload["data"]["id"] == job.id
    assert payload["data"]["artifacts"][0]["url"] == f"http://files/files/outputs/{job.id}/output.mp4"
    assert [(t.status, t.error) for t in delivery.tries] == [(200, None)]


async def test_the_documented_check_accepts_ours_and_nothing_else(store: JobStore) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/webhooks.md").read_text()
    block = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert block is not None
    documented: dict[str, Any] = {}
    exec(block[1], documented)
    async with receiving() as receiver, delivering(store):
        job = await ended(store, receiver.url)
        await receiver.until_called()
    ((headers, body),) = receiver.calls
    assert documented["verified"](SECRET, headers, body)["data"]["id"] == job.id
    assert documented["verified"](SECRET, headers, body.replace(b"succeeded", b"cancelled")) is None
    assert documented["verified"](OTHER, headers, body) is None


async def test_failed_and_cancelled_jobs_are_told_too(store: JobStore) -> None:
    async with receiving() as receiver, delivering(store):
        await make(store, webhook_url=receiver.url)
        taken = await take(store)
        await store.fail(taken.job.id, taken.attempt, JobError("engine_failed", "It broke."), timings={})
        await store.cancel((await make(store, webhook_url=receiver.url)).id)
        await receiver.until_called(2)
    told = {json.loads(body)["type"]: json.loads(body)["data"]["error"] for _, body in receiver.calls}
    assert told["job.failed"] == {"code": "engine_failed", "message": "It broke."}
    assert set(told) == {"job.failed", "job.cancelled"}


async def test_it_is_tried_again_with_the_same_id_and_body_until_it_is_accepted(store: JobStore) -> None:
    async with receiving(status(500), status(404), status(302, Location="/elsewhere")) as receiver, delivering(store):
        job = await ended(store, receiver.url)
        delivery = await state(store, job, lambda d: d.delivered_at is not None)
    assert [t.status for t in delivery.tries] == [500, 404, 302, 200]
    assert len({headers["webhook-id"] for headers, _ in receiver.calls}) == 1
    assert len({body for _, body in receiver.calls}) == 1
    assert len(receiver.calls) == 4, "the redirect was not followed"
    assert delivery.attempts == 4


async def test_it_is_given_up_after_the_last_retry(store: JobStore) -> None:
    async with receiving(*[status(503)] * 9) as receiver, delivering(store, retries_s=(0.01, 0.01)):
        job = await ended(store, receiver.url)
        delivery = await state(store, job, lambda d: d.gave_up_at is not None)
    assert [t.status for t in delivery.tries] == [503] * 3
    assert delivery.delivered_at is None


async def test_gone_means_gone(store: JobStore) -> None:
    async with receiving(status(410)) as receiver, delivering(store):
        job = await ended(store, receiver.url)
        delivery = await state(store, job, lambda d: d.gave_up_at is not None)
    assert [t.status for t in delivery.tries] == [410]


@pytest.mark.parametrize(
    ("header", "least_s", "most_s"),
    [
        ("3000", 2990, 3010),
        ("<date>", 2900, 3010),
        ("999999999", 86_000, 86_410),
        ("soon", -10, 30),
        ("nan", -10, 30),
    ],
    ids=["seconds", "date", "too-long", "words", "nan"],
)
async def test_retry_after_is_honoured_within_reason(
    store: JobStore, header: str, least_s: float, most_s: float
) -> None:
    if header == "<date>":
        header = format_datetime(datetime.now(UTC) + timedelta(seconds=3000), usegmt=True)
    async with receiving(status(429, Retry_After=header)) as receiver, delivering(store, retries_s=(20,)):
        job = await ended(store, receiver.url)
        delivery = await state(store, job, lambda d: d.attempts == 1)
    assert least_s < (delivery.next_at - datetime.now(UTC)).total_seconds() < most_s


async def test_a_private_target_is_refused_before_a_byte_is_sent(store: JobStore) -> None:
    async with receiving() as receiver, delivering(store, allow=(), retries_s=()):
        job = await ended(store, receiver.url)
        delivery = await state(store, job, lambda d: d.gave_up_at is not None)
    assert receiver.calls == []
    (only,) = delivery.tries
    assert only.status is None
    assert "not public" in (only.error or "")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/hook?token=hunter2", "http://nowhere.invalid/?token=hunter2"])
async def test_why_it_did_not_arrive_is_logged_without_the_url(
    store: JobStore, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with delivering(store, allow=(*LOOPBACK, "nowhere.invalid"), retries_s=()):
        job = await ended(store, url)
        delivery = await state(store, job, lambda d: d.gave_up_at is not None)
    (only,) = delivery.tries
    assert "connect" in (only.error or "")
    assert "hunter2" not in (only.error or "")
    assert "hunter2" not in caplog.text


async def test_a_slow_receiver_is_cut_off(store: JobStore) -> None:
    async with receiving(hold=True) as receiver, delivering(store, retries_s=(), timeout_s=0.2):
        job = await ended(store, receiver.url)
        delivery = await state(store, job, lambda d: d.gave_up_at is not None)
    assert [t.error for t in delivery.tries] == ["no answer within 0.2 s"]


async def test_a_dead_receiver_slows_nobody(store: JobStore) -> None:
    async with receiving(hold=True) as dead, receiving() as alive:
        for _ in range(40):
            await ended(store, dead.url)
        async with delivering(store, timeout_s=60):
            await dead.until_called(4)
            jobs = [await ended(store, alive.url) for _ in range(3)]
            for job in jobs:
                await state(store, job, lambda d: d.delivered_at is not None)
        assert len(dead.calls) == 4, "no more than its share of connections"


async def test_a_deliverer_that_died_keeps_nobody_from_delivering(store: JobStore) -> None:
    async with receiving() as receiver:
        job = await ended(store, receiver.url)
        await sql(store, "UPDATE webhook SET leased_until = clock_timestamp() + interval '1 second'")
        async with delivering(store):
            delivery = await state(store, job, lambda d: d.delivered_at is not None)
    assert len(delivery.tries) == 1


async def test_several_workers_deliver_each_once(store: JobStore) -> None:
    async with receiving() as receiver:
        jobs = [await ended(store, receiver.url) for _ in range(12)]
        async with delivering(store), delivering(store):
            for job in jobs:
                await state(store, job, lambda d: d.delivered_at is not None)
    ids = [headers["webhook-id"] for headers, _ in receiver.calls]
    assert sorted(ids) == sorted(set(ids))
    assert len(ids) == 12


async def test_a_replay_sends_the_same_again(store: JobStore) -> None:
    log = Deliveries(store.database)
    async with receiving() as receiver, delivering(store):
        job = await ended(store, receiver.url)
        await state(store, job, lambda d: d.delivered_at is not None)
        assert await log.replay(job.id) == 1
        await receiver.until_called(2)
        delivery = await state(store, job, lambda d: d.delivered_at is not None)
    (first, again) = receiver.calls
    assert (first[0]["webhook-id"], first[1]) == (again[0]["webhook-id"], again[1])
    assert len(delivery.tries) == 2
    assert await log.replay(str(UUID(int=7))) == 0
    assert await log.log(str(UUID(int=7))) == []


async def test_while_a_secret_is_replaced_both_verify(store: JobStore) -> None:
    async with receiving() as receiver, delivering(store, secret=f"{SECRET} {OTHER}"):
        await ended(store, receiver.url)
        await receiver.until_called()
    ((headers, body),) = receiver.calls
    for secret in (SECRET, OTHER):
        assert standardwebhooks.Webhook(secret).verify(body, headers)


async def test_without_a_configured_secret_the_databases_own_signs(store: JobStore) -> None:
    async with receiving() as receiver, delivering(store, secret=None):
        await ended(store, receiver.url)
        await receiver.until_called()
    ((headers, body),) = receiver.calls
    assert standardwebhooks.Webhook(await store.secret("webhook")).verify(body, headers)


@pytest.mark.parametrize("secret", ["whsec_!!!", "whsec_c2hvcnQ=", "password"])
async def test_a_secret_that_cannot_be_one_stops_the_start_and_is_not_printed(store: JobStore, secret: str) -> None:
    with pytest.raises(Misconfigured, match="MEDIAMILL_WEBHOOK_SECRET") as caught:
        await signers(Settings(webhook_secret=secret), store)
    assert secret not in caught.value.message


async def test_a_batch_is_told_once_when_its_last_job_has_ended(store: JobStore) -> None:
    async with receiving() as receiver, delivering(store):
        given = Submission("fake", {"seed": 1}, "cpu", contract="generation")
        batch_id, _ = await store.submit_batch([given, given], webhook_url=receiver.url)
        for _ in range(2):
            await succeed(store, await take(store), artifacts=[artifact()])
        await receiver.until_called()
        (delivery,) = await Deliveries(store.database).log(batch_id)
    ((_, body),) = receiver.calls
    told = json.loads(body)
    assert (told["batchId"], told["status"], told["completed"]) == (batch_id, "completed", 2)
    assert delivery.url == receiver.url


async def test_a_contract_that_cannot_make_the_body_is_a_failed_try(store: JobStore) -> None:
    async with delivering(store, retries_s=()):
        job = await ended(store, "http://127.0.0.1:1/", contract="unheard_of")
        delivery = await state(store, job, lambda d: d.gave_up_at is not None)
    (only,) = delivery.tries
    assert "no contracts named 'unheard_of'" in (only.error or "")

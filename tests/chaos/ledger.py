"""What the outside world knows: which jobs were accepted, how they may end, and which webhooks came."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

SUCCEEDED = frozenset({"succeeded"})


@dataclass(frozen=True)
class Order:
    """A request and how its job may end."""

    model: str
    input: Mapping[str, Any]
    ends: frozenset[str] = SUCCEEDED
    cancel_after_s: float | None = None


@dataclass
class Ledger:
    """Kept outside of the service, so that nothing that the service forgets is forgotten here."""

    accepted: dict[str, Order] = field(default_factory=dict)
    webhooks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By job id: the `webhook-id` of every delivery that was answered with 2xx."""
    outstanding: int = 24
    """Orders under way at most, so that a slow machine is kept busy and not flooded."""
    disturb: Callable[[], None] | None = None
    """Called once, at the next delivery, in place of an answer."""

    async def receive(self, request: web.Request) -> web.Response:
        """The receiver of webhooks."""
        body = json.loads(await request.read())
        if self.disturb is not None:
            disturb, self.disturb = self.disturb, None
            disturb()
            return web.Response(status=503)
        self.webhooks[body["data"]["id"]].append(request.headers["webhook-id"])
        return web.Response()


def order(rng: random.Random, photo: str) -> Order:
    """One request of the mix: stills, videos, sounds, split jobs, crashes and cancels."""
    seed = rng.randrange(2**31)
    small = {"width": 64, "height": 64, "seed": seed, "fps": 12, "duration_s": 0.25}
    draw = rng.random()
    if draw < 0.5:
        return Order("fake", {"kind": "image", **small, "work_s": round(rng.uniform(0.05, 0.5), 2)})
    if draw < 0.65:
        return Order("fake", {"kind": "video", **small, "work_s": 0.2})
    if draw < 0.75:
        return Order("fake", {"kind": "audio", **small, "work_s": 0.2})
    if draw < 0.78:
        return Order("fake", {"kind": "image", **small, "misbehave": "crash"}, frozenset({"failed"}))
    if draw < 0.88:
        either = frozenset({"cancelled", "succeeded"})
        return Order("fake", {"kind": "image", **small, "work_s": 2.0}, either, cancel_after_s=rng.uniform(0, 1.5))
    stills = [{"id": f"s{n}", "image_url": photo, "duracao": 0.1} for n in range(3)]
    clips = {"images": stills, "path": f"project-{seed % 5}/videos/"}  # folders are named again and again
    if draw < 0.92:
        either = frozenset({"cancelled", "succeeded"})
        return Order("img2vid", clips, either, cancel_after_s=rng.uniform(0, 3))
    return Order("img2vid", clips)


class Customer:
    """Places orders as a careful program does: an idempotency key each, tried again until an answer is there."""

    def __init__(self, url: str, hook: str, ledger: Ledger, rng: random.Random, orders: Callable[[], Order]) -> None:
        """`orders`: makes the next one."""
        self.url, self.hook, self.ledger, self.rng, self.orders = url, hook, ledger, rng, orders
        self.stop = asyncio.Event()

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Order until told to stop."""
        cancels: set[asyncio.Task[None]] = set()
        while not self.stop.is_set():
            wanted = self.orders()
            key = f"{self.rng.getrandbits(64):x}"
            body = {"model": wanted.model, "input": wanted.input, "webhook_url": self.hook}
            job = await insist(session, f"{self.url}/v1/jobs", body, key=key)
            self.ledger.accepted[job["id"]] = wanted
            if wanted.cancel_after_s is not None:
                cancels.add(asyncio.create_task(self._cancel(session, job["id"], wanted.cancel_after_s)))
            await asyncio.sleep(self.rng.uniform(0.1, 0.4))
            while (
                len(self.ledger.accepted) - len(self.ledger.webhooks) >= self.ledger.outstanding
                and not self.stop.is_set()
            ):
                await asyncio.sleep(0.1)
        await asyncio.gather(*cancels)

    async def _cancel(self, session: aiohttp.ClientSession, job_id: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await insist(session, f"{self.url}/v1/jobs/{job_id}/cancel", {}, key=f"cancel-{job_id}")


async def insist(session: aiohttp.ClientSession, url: str, body: Mapping[str, Any], *, key: str) -> dict[str, Any]:
    """POST until there is an answer that is not a 5xx. Any other refusal is a fault of the test."""
    for _ in range(300):
        try:
            async with session.post(url, json=body, headers={"Idempotency-Key": key}) as reply:
                if reply.status < 500:
                    answer = await reply.json(content_type=None)
                    assert reply.status < 300, (reply.status, answer)
                    return dict(answer)
        except (aiohttp.ClientError, TimeoutError):
            pass
        await asyncio.sleep(0.2)
    raise AssertionError(f"{url} gave no answer for a minute")


def ended_as(jobs: Mapping[str, Mapping[str, Any]]) -> Counter[str]:
    """How many jobs ended how."""
    return Counter(str(job["status"]) for job in jobs.values())

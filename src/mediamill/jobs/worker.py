"""A worker process: takes jobs of one pool, never more than it has slots, and carries each to its end.

It never decodes anything and writes no SQL. A SIGTERM sets `stop`: nothing more is taken, running jobs may finish for
`drain_s`, then they are handed back. Cancelling `run` hands them back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from uuid import UUID, uuid4

from mediamill.config import Settings
from mediamill.errors import Misconfigured, StorageError, StoreUnavailable
from mediamill.inputs import UrlGuard
from mediamill.jobs.carry import PAUSES_S, Carry, Interrupt, SlotProvider, Tools
from mediamill.jobs.elsewhere import LeftElsewhere
from mediamill.jobs.events import Wake
from mediamill.jobs.files import opened_files
from mediamill.jobs.fleet import ANNOUNCE_EVERY_S, host_of, name_of
from mediamill.jobs.places import opened_place
from mediamill.jobs.store import JobStore, Rules, Taken
from mediamill.jobs.sweep import Sweeper, scratch_folder
from mediamill.jobs.webhooks import Webhooks, signers
from mediamill.model import Storage
from mediamill.perform import InputSource

_log = logging.getLogger(__name__)

CHORE_PAUSE_S = 10.0
LEAVING_S = 2.0
"""How long a worker that was told to go at once tries to write that."""
AWAY_S = (0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class WorkerDeps:
    """The open parts a worker works with. Whoever made them closes them."""

    settings: Settings
    store: JobStore
    storage: Storage
    inputs: InputSource
    provider: Callable[[], SlotProvider]
    """Called once for each slot."""
    webhooks: Webhooks | None = None
    sweeper: Sweeper | None = None
    left_elsewhere: LeftElsewhere | None = None


@dataclass(eq=False)
class _Slot:
    """A place for one job at a time."""

    provider: SlotProvider
    id: UUID = field(default_factory=uuid4)
    carry: Carry | None = None


class Worker:
    """One pool's slots in this process."""

    def __init__(self, deps: WorkerDeps, *, pool: str, slots: int) -> None:
        """`pool`: "cpu", "gpu", "gpu:1" (the second device; it takes the jobs of "gpu"), "remote"."""
        self.name = name_of(pool)
        self._deps = deps
        self._pool = pool
        self._pools = (pool.partition(":")[0],)
        self._slots = [_Slot(deps.provider()) for _ in range(slots)]
        self._carrying: dict[asyncio.Task[None], _Slot] = {}
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set and running jobs have ended or were handed back; at once when cancelled."""
        deps = self._deps
        helpers = [asyncio.create_task(self._announce())]
        chores = (deps.webhooks, deps.sweeper, deps.left_elsewhere)
        helpers += [asyncio.create_task(self._kept_up(chore.run)) for chore in chores if chore is not None]
        _log.info("worker started", extra={"worker": self.name, "pool": self._pool, "slots": len(self._slots)})
        with scratch_folder(deps.settings.scratch_root, self.name) as scratch:
            tools = Tools(deps.store, deps.storage, deps.inputs, scratch.resolve())
            taking = asyncio.create_task(self._take_jobs(tools))
            try:
                await _first(stop, taking, *helpers)
                self._stop.set()
                await taking
                await self._drain()
                await asyncio.gather(*helpers)
            finally:
                self._stop.set()
                await self._leave([taking, *helpers])

    async def _drain(self) -> None:
        if self._carrying:
            _log.info("draining %d running jobs", len(self._carrying), extra={"worker": self.name})
            await asyncio.wait(self._carrying, timeout=self._deps.settings.drain_s)
        await self._hand_back_all(None)

    async def _hand_back_all(self, limit_s: float | None) -> None:
        for slot in self._carrying.values():
            if slot.carry is not None:
                slot.carry.stop(Interrupt.HAND_BACK)
        if self._carrying:
            await asyncio.wait(self._carrying, timeout=limit_s)

    async def _leave(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """End everything that is left, children first: what cannot be written now, the leases will tell."""
        await self._hand_back_all(LEAVING_S)
        left = [*self._carrying, *tasks]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.gather(*(slot.provider.close() for slot in self._slots))
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(LEAVING_S):
                await self._deps.store.depart(self.name)
        _log.info("worker ended", extra={"worker": self.name})

    async def _take_jobs(self, tools: Tools) -> None:
        """Fill free slots until told to stop."""
        await asyncio.gather(*(slot.provider.prepare() for slot in self._slots))
        failures = 0
        async with self._deps.store.events.work(self._pools) as wake:
            stopping = asyncio.create_task(_wake_at(self._stop, wake))
            try:
                while not self._stop.is_set():
                    try:
                        idle_s = await self._take_one(tools, wake)
                        failures = 0
                    except StoreUnavailable as error:
                        if failures == 0:
                            _log.warning("taking no jobs: %s", error.message, extra={"worker": self.name})
                        idle_s = AWAY_S[min(failures, len(AWAY_S) - 1)]
                        failures += 1
                    if idle_s > 0 and not self._stop.is_set():
                        await wake.wait(idle_s)
            finally:
                stopping.cancel()

    async def _take_one(self, tools: Tools, wake: Wake) -> float:
        """Start a job if there is one and a free slot; returns how long nothing will be there to do, seconds."""
        free = [slot for slot in self._slots if slot.carry is None]
        if not free:
            return ANNOUNCE_EVERY_S
        held = {name for slot in free for name in slot.provider.held()}
        taken = await self._take(free[0].id, held)
        if taken is None:
            return await self._deps.store.next_wake_s(self._pools)
        slot = _best(free, taken)
        free[0].id, slot.id = slot.id, free[0].id
        slot.carry = Carry(tools, taken, slot.provider)
        task = asyncio.create_task(slot.carry.run())
        self._carrying[task] = slot
        task.add_done_callback(lambda done: self._ended(done, wake))
        return 0.0

    async def _take(self, slot_id: UUID, held: set[str]) -> Taken | None:
        """Never broken off half-way: what was claimed would wait for a whole lease."""
        store = self._deps.store
        taking = asyncio.create_task(store.take(slot=slot_id, worker=self.name, pools=self._pools, held=held))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            with contextlib.suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(LEAVING_S):
                    taken = await taking
                    if taken is not None:
                        await store.hand_back(taken.job.id, taken.attempt)
            raise

    def _ended(self, task: asyncio.Task[None], wake: Wake) -> None:
        slot = self._carrying.pop(task)
        slot.carry = None
        wake.set()

    async def _kept_up(self, chore: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        """Start a chore again when it breaks: its fault must not cost the jobs that run beside it."""
        while not self._stop.is_set():
            try:
                await chore(self._stop)
            except Exception:  # noqa: BLE001 - an edge like the job's: nothing above could do better than go on
                _log.exception("a chore of the worker broke and is started again", extra={"worker": self.name})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHORE_PAUSE_S):
                        await self._stop.wait()

    async def _announce(self) -> None:
        """Tell the API that this pool is up, until told to stop."""
        deps = self._deps
        while not self._stop.is_set():
            held = sorted({name for slot in self._slots for name in slot.provider.held()})
            with contextlib.suppress(StoreUnavailable, StorageError):
                facts = {
                    "held": held,
                    "storage": await deps.storage.identity(),
                    "host": host_of(deps.settings),
                }
                await deps.store.announce(
                    self.name, pool=self._pool, slots=len(self._slots), version=version("mediamill"), facts=facts
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANNOUNCE_EVERY_S):
                    await self._stop.wait()


def _best(free: Sequence[_Slot], taken: Taken) -> _Slot:
    """The slot that holds the job's model, else one that holds nothing, else the first."""
    model = taken.job.model
    return min(free, key=lambda slot: (model not in slot.provider.held(), len(slot.provider.held()) > 0))


async def _wake_at(stop: asyncio.Event, wake: Wake) -> None:
    await stop.wait()
    wake.set()


async def _first(stop: asyncio.Event, *tasks: asyncio.Task[None]) -> None:
    """Wait until `stop` is set. A task that ends before that failed: its error is raised."""
    stopping = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        stopping.cancel()


async def run_worker(settings: Settings, *, pool: str, slots: int, stop: asyncio.Event) -> None:
    """Open everything a worker needs, work until `stop` is set, close it. Waits for a database that is not up yet.

    Raises: Misconfigured, SchemaMismatch, StorageRefused.
    """
    async with opened(settings, pool=pool, stop=stop) as deps:
        if deps is not None:
            await Worker(deps, pool=pool, slots=slots).run(stop)


@contextlib.asynccontextmanager
async def opened(settings: Settings, *, pool: str, stop: asyncio.Event) -> AsyncIterator[WorkerDeps | None]:
    """The parts of a worker as the settings ask for; None when told to stop before the database was there."""
    async with contextlib.AsyncExitStack() as stack:
        store = await _open_store(settings, stop)
        if store is None:
            yield None
            return
        await stack.enter_async_context(store)
        public_url = settings.public_url or f"http://{settings.host}:{settings.port}"
        files = await stack.enter_async_context(opened_files(settings, store, public_url=public_url))
        guard = UrlGuard(settings.fetch_allow)
        stack.push_async_callback(guard.close)
        place = await stack.enter_async_context(opened_place(settings, pool, files))
        webhooks = Webhooks(
            store,
            storage=files.storage,
            guard=guard,
            signers=await signers(settings, store),
            timeout_s=settings.webhook_timeout_s,
        )
        sweeper = Sweeper(
            store,
            files.storage,
            settings.scratch_root,
            retention_s=settings.retention_s,
            stray_after_s=10 * settings.lease_s,
        )
        yield WorkerDeps(
            settings=settings,
            store=store,
            storage=files.storage,
            inputs=place.inputs,
            provider=place.slot,
            webhooks=webhooks,
            sweeper=sweeper,
            left_elsewhere=place.end and LeftElsewhere(store, place.end),
        )


async def _open_store(settings: Settings, stop: asyncio.Event) -> JobStore | None:
    if settings.database_url is None:
        raise Misconfigured("DATABASE_URL is not set: `mediamill serve` starts a database, a worker alone needs one.")
    dsn = settings.database_url.get_secret_value()
    tries = 0
    while not stop.is_set():
        try:
            return await JobStore.open(dsn, Rules.of(settings), application="mediamill worker")
        except StoreUnavailable as error:
            if tries == 0:
                _log.warning("waiting for the database: %s", error.message)
        await asyncio.sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
        tries += 1
    return None


__all__ = ["Worker", "WorkerDeps", "opened", "run_worker"]

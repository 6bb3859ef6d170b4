"""Work on RunPod serverless endpoints: sent once, watched, its files fetched. Many at once; no process of its own.

The worker there takes `{"input": {<the catalog's fields>, "model", "job_id"}}` and returns `{"artifacts": [...],
"output"?, "warnings"?}`; other people's workers that return one file in a usual way will do, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mediamill import catalog
from mediamill.config import Settings, variable_part
from mediamill.errors import DeadlineExceeded, EngineFailed, ProviderError, RetryLater, StorageUnavailable
from mediamill.inputs.guard import UrlGuard
from mediamill.model import Elsewhere, Event, Json, OutputData, OutputFile, Progress, Storage, Work
from mediamill.providers.runpod.client import Away, Client, RemoteJob, UnknownJob
from mediamill.providers.runpod.reading import ENDED, Result, end_of, progress_of
from mediamill.providers.runpod.receiving import Receiver
from mediamill.providers.runpod.sending import request_of

__all__ = ["Client", "Pace", "RemoteJob", "RunPod", "create"]

_log = logging.getLogger(__name__)

STORAGE_PAUSE_S = 10.0

Probe = Callable[[Sequence[OutputFile], Path, float], Awaitable[Sequence[OutputFile]]]
"""`probe(files, scratch, deadline_s)`: the files with their facts, found out in another process.

Raises: EngineFailed for one that is damaged or not what it says; Crashed.
"""


@dataclass(frozen=True)
class Pace:
    """How patiently RunPod is asked; seconds."""

    first_s: float = 0.5
    """Before the first look at a job, and after a change."""
    longest_s: float = 5.0
    away_s: float = 30.0
    """Longest pause while it does not answer."""
    submit_s: float = 60.0
    """How long it is asked to take a job before that is handed back."""
    unknown_s: float = 10.0
    """How long a job that it took may be unknown to it."""
    fetch_s: float = 60.0
    """How long a file of a result that cannot be fetched is tried again."""


def create(
    settings: Settings, *, client: Client, storage: Storage, guard: UrlGuard, probe: Probe, pace: Pace | None = None
) -> RunPod:
    """The provider; one serves any number of slots. Client, storage and guard are the caller's to close."""
    pace = pace or Pace()
    receiver = Receiver(storage, guard, timeout_s=settings.fetch_timeout_s, patience_s=pace.fetch_s)
    return RunPod(settings, client, storage, receiver, probe, pace)


@dataclass(frozen=True)
class RunPod:
    """Runs work on the endpoint of its catalog entry."""

    settings: Settings
    client: Client
    storage: Storage
    receiver: Receiver
    probe: Probe
    pace: Pace

    def held(self) -> tuple[str, ...]:
        """Nothing is loaded here."""
        return ()

    async def prepare(self) -> None:
        """Nothing is imported here."""

    async def close(self) -> None:
        """Nothing is held open; what is kept elsewhere goes on there."""

    async def run(self, work: Work, *, scratch: Path, deadline_s: float) -> AsyncIterator[Event]:
        """Send the work, or go on with what an earlier attempt sent; relay its progress; fetch and probe its files.

        Raises:
            What the worker there failed with; DeadlineExceeded; ProviderError, naming the setting where one is wrong;
            RetryLater: RunPod takes no jobs now, or the storage does not answer. TooLarge: inputs that cannot be sent.
        """
        until_s = time.monotonic() + deadline_s
        if work.elsewhere is not None:
            taken = Elsewhere(work.elsewhere, kept=True)
        else:
            taken = Elsewhere(str(await self._submit(work, deadline_s)))
        job, ended = RemoteJob.parse(taken.handle), False
        facts = {"job_id": work.job_id, "attempt": work.attempt, "remote": taken.handle}
        _log.info("job goes on on RunPod" if taken.kept else "job was taken by RunPod", extra=facts)
        try:
            if not taken.kept:
                yield taken
            async with contextlib.aclosing(self._watched(job, until_s)) as statuses:
                async for body in statuses:
                    if body["status"] not in ENDED:
                        yield progress_of(body)
            ended = True
            times = {"queued_ms": body.get("delayTime"), "ran_ms": body.get("executionTime")}
            _log.info("job ended on RunPod: %s", body["status"], extra={**facts, **times})
            result = end_of(body)
        finally:
            if not ended and not taken.kept:
                await self._cancel(job)
        yield Progress(1.0, message="fetching the result")
        for event in await self._received(result, scratch, until_s):
            yield event

    async def _submit(self, work: Work, deadline_s: float) -> RemoteJob:
        """Queue it there. Raises RetryLater when it could not be, for long; ProviderError when it was refused."""
        endpoint, setting = self._endpoint(work)
        with _later():
            body = await request_of(work, self.storage, deadline_s=deadline_s)
        give_up_s = time.monotonic() + self.pace.submit_s
        pause_s = self.pace.first_s
        while True:
            try:
                return await self._submit_once(endpoint, body, setting)
            except Away as away:
                pause_s = max(pause_s, away.pause_s)
                if time.monotonic() + pause_s > give_up_s:
                    raise RetryLater(f"{away}; the job waits.", delay_s=self.pace.away_s) from away
                _log.info("%s; asked again in %.1f s", away, pause_s, extra={"job_id": work.job_id})
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, self.pace.away_s)

    def _endpoint(self, work: Work) -> tuple[str, str]:
        """The endpoint's id, and the setting that it comes from."""
        entry = catalog.get(work.model)
        part, endpoint = variable_part(entry.name), catalog.endpoint_of(entry, self.settings)
        setting = f"RUNPOD_{part}_ENDPOINT_ID"
        if endpoint is None:
            raise ProviderError(f"{work.model} was sent to RunPod, but {setting} is not set here.")
        return endpoint, setting if part in self.settings.runpod_endpoints else "RUNPOD_ENDPOINT_ID"

    async def _submit_once(self, endpoint: str, body: Mapping[str, Json], setting: str) -> RemoteJob:
        """Not broken off half-way: what was taken meanwhile would run for nobody."""
        asking = asyncio.ensure_future(self.client.run(endpoint, body, setting=setting))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            with contextlib.suppress(ProviderError, Away):
                await self._cancel(await asking)
            raise

    async def _watched(self, job: RemoteJob, until_s: float) -> AsyncGenerator[Mapping[str, Any], None]:
        """Each changed status; the last one is final.

        Raises: DeadlineExceeded; ProviderError when RunPod has forgotten the job or refuses to tell.
        """
        known_s = time.monotonic()
        pause_s, seen, status = self.pace.first_s, None, ""
        while time.monotonic() < until_s:
            wanted_s = 0.0
            try:
                body = await self.client.status(job)
            except Away as away:
                _log.info("%s; asked again", away, extra={"remote": str(job)})
                pause_s, wanted_s = min(pause_s * 2, self.pace.away_s), away.pause_s
            except UnknownJob as error:
                if time.monotonic() - known_s > self.pace.unknown_s:
                    message = f"RunPod does not know job {job.id} any more; it keeps results for about half an hour."
                    raise ProviderError(message) from error
            else:
                known_s = time.monotonic()
                told = (body["status"], body.get("output"))
                changed, seen = told != seen, told
                if changed:
                    yield body
                if body["status"] in ENDED:
                    return
                new = body["status"] != status
                status = body["status"]
                pause_s = self.pace.first_s if new else min(pause_s * 1.5, self.pace.longest_s)
            await asyncio.sleep(max(0.0, min(max(pause_s, wanted_s), until_s - time.monotonic())))
        raise DeadlineExceeded

    async def _received(self, result: Result, scratch: Path, until_s: float) -> list[Event]:
        with _later():
            files = await self.receiver.receive(result.files, scratch)
        try:
            probed = await self.probe(files, scratch, max(0.0, until_s - time.monotonic())) if files else []
        except EngineFailed as error:
            raise ProviderError(f"What RunPod delivered cannot be used: {error.message}") from error
        data = {**result.output, **({"warnings": list(result.warnings)} if result.warnings else {})}
        return [*probed, *([OutputData(data)] if data else [])]

    async def end(self, handle: str) -> None:
        """End work that was kept. One that has ended is no error. Raises ProviderError: try again later."""
        try:
            await self.client.cancel(RemoteJob.parse(handle))
        except Away as away:
            raise ProviderError(f"{away}.") from away

    async def _cancel(self, job: RemoteJob) -> None:
        try:
            await self.end(str(job))
        except ProviderError as error:
            _log.warning("job could not be cancelled on RunPod: %s", error.message, extra={"remote": str(job)})


@contextlib.contextmanager
def _later() -> Iterator[None]:
    """A storage that does not answer costs the job nothing but time: what was sent goes on meanwhile."""
    try:
        yield
    except StorageUnavailable as error:
        raise RetryLater(error.message, delay_s=STORAGE_PAUSE_S) from error

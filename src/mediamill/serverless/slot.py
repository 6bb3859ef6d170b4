"""One job at a time inside somebody's container: no database, no queue, and nothing is ever routed out from here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from mediamill import catalog, keys
from mediamill.catalog import Entry
from mediamill.config import Settings
from mediamill.errors import EngineFailed, MediamillError, Misconfigured, StorageError, TooLarge, for_callers
from mediamill.inputs import Inputs, UrlGuard
from mediamill.model import Artifact, Job, Json, Progress, Status, Storage
from mediamill.perform import Assignment, InputSource, Performed, perform, publish
from mediamill.providers import local
from mediamill.storage import mode_of, open_storage

_log = logging.getLogger(__name__)

BUCKET_VARIABLES = "S3_ENDPOINT, S3_BUCKET, S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY (or their R2_ namesakes)"
_ATTEMPT = 1
"""The host counts tries; a second one of the same job writes the same keys."""

T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """A request that was checked. `warnings` are for the reply."""

    entry: Entry
    input: Mapping[str, Json]
    job_id: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """The job as its row would say at the end, and its files by name: each a URL, or the bytes themselves."""

    job: Job
    files: Mapping[str, str | bytes]


def checked(settings: Settings, model: str, raw: Mapping[str, Json], *, job_id: str) -> Order:
    """The request with defaults filled in.

    Raises: NotFound: no such model; InvalidRequest with a detail a field; NotImplementedYet.
    """
    entry = catalog.get(model)
    request, warnings = catalog.validate(entry, raw)
    here = entry.allow(request, settings) or ()
    return Order(entry, request.model_dump(mode="json"), job_id, (*warnings, *here))


def log_to_stderr(level: str) -> None:
    """One line a state change. `level`: debug, info, warning or error."""
    form = "%(levelname)s %(name)s %(message)s"
    logging.basicConfig(level=level.upper(), stream=sys.stderr, format=form, force=True)


async def attempted(work: Awaitable[T], *, job_id: object) -> T:
    """The job edge of a container: whatever goes wrong is logged and raised as an error that the caller may read.

    Raises: MediamillError.
    """
    try:
        return await work
    except MediamillError as error:
        tail = error.log_tail if isinstance(error, EngineFailed) else ""
        _log.warning("job %s failed: %s%s", job_id, error.message, f"\n{tail}" if tail else "")
        shown = for_callers(error)
        if shown is error:
            raise
        raise shown from error
    except Exception as error:
        _log.exception("job %s failed unexpectedly", job_id)
        raise MediamillError(f"The job failed unexpectedly ({type(error).__name__}).") from error


class Slot:
    """Room for one job at a time. Its child stays between jobs, so that weights stay loaded; `close` ends it."""

    def __init__(self, settings: Settings) -> None:
        """Starts nothing: the child comes with the first job and belongs to the event loop of that time.

        Raises: Misconfigured: a setting is missing or wrong, or the storage cannot be used from here.
        """
        self.settings = _inside(settings)
        _open(self.settings)  # a variable that is missing is told now, not with the first result
        catalog.check_fakes(settings.fake_engines)
        self._provider = local.create(self.settings, pool="gpu")
        self._turn = asyncio.Lock()

    @property
    def has_bucket(self) -> bool:
        """Whether results can be given as URLs."""
        return self.settings.storage_mode != "memory"

    @property
    def held(self) -> Sequence[str]:
        """Catalog names whose weights are loaded."""
        return self._provider.held()

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self._turn.locked()

    async def do(
        self,
        order: Order,
        *,
        inline: bool,
        inline_bytes: int | None = None,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
    ) -> Done:
        """Carry it out when its turn has come. Cancelling the caller's task cancels the work.

        Args:
            order: What to do.
            inline: The files come back as bytes and are stored nowhere; else as URLs of the bucket.
            inline_bytes: Most bytes that may come back in all; None: any number.
            on_progress: Called in the event loop; fractions never fall.

        Raises: As `perform`; TooLarge: the files are more than `inline_bytes`.
        """
        async with self._turn, self._opened(inline=inline) as (results, inputs):
            started_at = datetime.now(UTC)
            _log.info("job %s started: %s", order.job_id, order.entry.name)
            running = Job(
                order.job_id,
                order.entry.name,
                Status.RUNNING,
                order.input,
                created_at=started_at,
                started_at=started_at,
                attempt=_ATTEMPT,
                warnings=order.warnings,
            )
            performed, artifacts = await self._carry(running, order.entry, results, inputs, on_progress)
            files = await _contents(results, artifacts, inline_bytes) if inline else await _urls(results, artifacts)
            _log.info("job %s succeeded: %s", order.job_id, performed.timings)
            return Done(_ended(running, performed, artifacts), files)

    async def close(self) -> None:
        """End the child and all it started. Safe to repeat."""
        await self._provider.close()

    @contextlib.asynccontextmanager
    async def _opened(self, *, inline: bool) -> AsyncIterator[tuple[Storage, Inputs]]:
        """For one job: where its results go, and what fetches its inputs. Nothing in memory outlives it."""
        settings = self.settings
        in_memory = settings.model_copy(update={"storage_mode": "memory"})
        async with contextlib.AsyncExitStack() as stack:
            storage = await stack.enter_async_context(opened_storage(settings))
            guard = UrlGuard(settings.fetch_allow)
            stack.push_async_callback(guard.close)
            inputs = Inputs(
                cache_dir=settings.data_dir / "cache",
                storage=storage,
                guard=guard,
                cache_bytes=settings.cache_bytes,
                timeout_s=settings.fetch_timeout_s,
            )
            yield await stack.enter_async_context(opened_storage(in_memory)) if inline else storage, inputs

    async def _carry(
        self, job: Job, entry: Entry, storage: Storage, inputs: InputSource, on_progress: Callable[[Progress], None]
    ) -> tuple[Performed, tuple[Artifact, ...]]:
        """Perform and publish; whatever happens, nothing of the attempt stays behind."""
        root = self.settings.scratch_root.resolve()
        root.mkdir(parents=True, exist_ok=True)
        limit_s = self.settings.run_timeout_s or entry.run_timeout_s
        with tempfile.TemporaryDirectory(prefix=f"{job.id}-", dir=root, ignore_cleanup_errors=True) as scratch:
            try:
                performed = await perform(
                    Assignment(job, _ATTEMPT, limit_s),
                    provider=self._provider,
                    storage=storage,
                    inputs=inputs,
                    scratch=Path(scratch),
                    on_progress=on_progress,
                    on_preview=None,
                )
                return performed, await publish(performed, storage)
            finally:
                await _clean(storage, keys.attempt_folder(job.id, _ATTEMPT))


def _inside(settings: Settings) -> Settings:
    """As they hold in a container that is soon gone: results go to the bucket, else into the reply."""
    if settings.storage_mode == "file":
        raise Misconfigured(
            "STORAGE_MODE=file: nobody could reach the files of a serverless worker. Accepted: unset, for results "
            f"inside the reply; or s3, with {BUCKET_VARIABLES}."
        )
    mode = mode_of(settings)
    found = "memory" if mode in {"file", "stateless"} else mode
    alone = settings.cpu_slots or 1  # nothing else runs beside it
    return settings.unrouted().model_copy(update={"storage_mode": found, "cpu_slots": alone})


@contextlib.asynccontextmanager
async def opened_storage(settings: Settings) -> AsyncIterator[Storage]:
    """The storage that a slot's settings name, closed after the block. Raises Misconfigured."""
    storage = _open(settings)
    try:
        yield storage
    finally:
        await storage.close()


def _open(settings: Settings) -> Storage:
    return open_storage(settings, public_url="http://localhost", secret=b"nobody is served from here")


async def _clean(storage: Storage, folder: str) -> None:
    """Delete what an attempt stored before it ended."""
    try:
        for key in [key async for key, _ in storage.list(folder)]:
            await storage.delete(key)
    except StorageError as error:
        _log.warning("left in the bucket under %s: %s", folder, error.message)


async def _urls(storage: Storage, artifacts: Sequence[Artifact]) -> dict[str, str | bytes]:
    return {artifact.name: await storage.url(artifact.key) for artifact in artifacts}


async def _contents(storage: Storage, artifacts: Sequence[Artifact], most_bytes: int | None) -> dict[str, str | bytes]:
    size_bytes = sum(artifact.size_bytes for artifact in artifacts)
    if most_bytes is not None and size_bytes > most_bytes:
        raise TooLarge(
            f"The result has {size_bytes} bytes, and at most {most_bytes} fit into a reply. Set {BUCKET_VARIABLES} "
            "where this worker runs: then it stores results and answers with their URLs."
        )
    return {a.name: b"".join([chunk async for chunk in storage.open(a.key)]) for a in artifacts}


def _ended(job: Job, performed: Performed, artifacts: tuple[Artifact, ...]) -> Job:
    return replace(
        job,
        status=Status.SUCCEEDED,
        progress=1.0,
        finished_at=datetime.now(UTC),
        artifacts=artifacts,
        output=performed.output or None,
        timings=performed.timings,
        warnings=tuple(dict.fromkeys((*job.warnings, *performed.warnings))),
    )

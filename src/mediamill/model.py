"""The values everything speaks in: Job, Work, Artifact, Progress, OutputFile, and the three protocols."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mediamill.media.facts import MediaFacts as MediaFacts  # noqa: PLC0414 - part of the envelope, made by the probe below

Json = Any
"""A JSON value: None, bool, int, float, str, list or dict of the same."""


class Status(StrEnum):
    """Where a job is in its one lifecycle; only `jobs/store.py` changes it."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether the job will never change again."""
        return self in {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}


class Phase(StrEnum):
    """What a running job is doing."""

    FETCHING = "fetching"
    LOADING = "loading"
    GENERATING = "generating"
    ENCODING = "encoding"
    UPLOADING = "uploading"


@dataclass(frozen=True)
class Artifact:
    """A stored, probed output file. `key` is its storage key; `size_bytes` and `sha256` (hex) were computed at put."""

    name: str
    key: str
    media_type: str
    size_bytes: int
    sha256: str
    facts: MediaFacts = MediaFacts()


@dataclass(frozen=True)
class JobError:
    """Why a job failed: a stable code of `errors.py` and one sentence for the caller, without secrets."""

    code: str
    message: str


@dataclass(frozen=True)
class Job:
    """The one envelope: every answer, webhook, event and CLI line is made from this row."""

    id: str
    model: str
    status: Status
    input: Mapping[str, Json]
    """The validated request with defaults filled in; large values are `file:` references."""
    created_at: datetime
    phase: Phase | None = None
    progress: float = 0.0
    """0 to 1, never falling within an attempt."""
    position: int | None = None
    """Jobs of the same pool ahead of it while queued; capped, None when not asked for or beyond the cap."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    artifacts: tuple[Artifact, ...] = ()
    output: Mapping[str, Json] | None = None
    error: JobError | None = None
    attempt: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase, e.g. {"queued_s": 0.1, "fetching_s": 0.3, "generating_s": 2.0}."""
    warnings: tuple[str, ...] = ()
    metadata: Mapping[str, Json] | None = None
    contract: str = "native"
    """The contract that created it and that shapes its webhook: a file name of `contracts/`."""
    webhook_url: str | None = None
    parent_id: str | None = None
    part: int = 0
    """Index among its parent's parts."""
    batch_id: str | None = None
    cancel_requested: bool = False
    message: str | None = None
    """Last progress message of the engine."""
    eta_s: float | None = None
    """Seconds left of the engine's work while it runs and knows; counted down from when it said so."""
    preview: str | None = None
    """Storage key of the newest look at unfinished work, while it runs."""


@dataclass(frozen=True)
class InputFile:
    """A caller's file on local disk, sniffed and within limits. `field` is its dotted path in the request."""

    field: str
    path: Path
    media_type: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Work:
    """What an engine gets: typed parameters and local files. Never a URL, a bucket, the database or HTTP."""

    job_id: str
    attempt: int
    model: str
    params: Mapping[str, Json]
    inputs: Mapping[str, InputFile] = field(default_factory=dict)
    """By dotted field path, e.g. "images.0.image_url"."""
    input_errors: Mapping[str, JobError] = field(default_factory=dict)
    """Inputs that could not be had, only for entries that declare `partial_inputs`."""
    elsewhere: str | None = None
    """The handle under which an earlier attempt left the work on somebody else's machines: go on with it."""


@dataclass(frozen=True)
class Progress:
    """`fraction` 0 to 1 of the whole attempt's engine work; `eta_s` honest seconds left, or None."""

    fraction: float
    phase: Phase | None = None
    message: str | None = None
    eta_s: float | None = None


@dataclass(frozen=True)
class OutputFile:
    """A finished file in the scratch folder. `name` becomes the last component of its key.

    `preview`: a look at unfinished work; it may be replaced and is not needed for success.
    """

    name: str
    path: Path
    media_type: str
    facts: MediaFacts = MediaFacts()
    preview: bool = False


@dataclass(frozen=True)
class OutputData:
    """Plain JSON result, merged into the job's `output`; at most 256 KiB in all.

    `warnings`, a list of sentences for the caller, joins the job's warnings instead.
    """

    values: Mapping[str, Json]


@dataclass
class Elsewhere:
    """Somebody else's machines have taken the work and know it under `handle`.

    Whoever keeps the handle for the next attempt (`Work.elsewhere`) sets `kept` before asking for the next event. From
    then on closing the iterator leaves the work there, and ending it is the keeper's business.
    """

    handle: str
    kept: bool = False


Event = Progress | OutputFile | OutputData | Elsewhere


@dataclass(frozen=True)
class EngineContext:
    """What surrounds a piece of work in the child process."""

    scratch: Path
    """An empty folder of this attempt; everything in it is deleted afterwards."""
    cancelled: threading.Event
    settings: Mapping[str, str] = field(default_factory=dict)
    """Engine settings passed down by the worker (device, dtype, model locations, fonts folder), by upper-case name."""


class Engine(Protocol):
    """Does one kind of work in a child process. An engine module has `create(settings) -> Engine`."""

    def run(self, work: Work, ctx: EngineContext) -> Iterator[Event]:
        """Do one piece of work in `ctx.scratch`, yielding Progress, OutputFile and OutputData.

        Checks everything it can before loading weights. Never touches storage, the job store or the network
        beyond its own model. Stops at its next safe point once `ctx.cancelled` is set, raising Cancelled.

        Raises:
            OutOfMemory, UnsupportedMedia, ModelUnavailable, EngineFailed, Cancelled.
        """
        ...

    def held(self) -> Sequence[str]:
        """Catalog names whose weights are resident now; used for affinity."""
        ...


@runtime_checkable
class SlowToImport(Protocol):
    """An engine whose libraries take seconds to import."""

    def begin_imports(self) -> bool:
        """Begin to import them, in a thread, if there are weights to use them for; returns whether there are."""
        ...


class Provider(Protocol):
    """A place where a job runs. A provider module has `create(...) -> Provider`."""

    def run(self, work: Work, *, scratch: Path, deadline_s: float) -> AsyncIterator[Event]:
        """Run the work and relay its events; closing the iterator (aclose) cancels the work, but for a kept `Elsewhere`.

        Raises: what the engine raised, by code; Crashed when the process died; DeadlineExceeded.
        """
        ...


@dataclass(frozen=True)
class StoredObject:
    """What a put wrote. `sha256` lower-case hex."""

    key: str
    size_bytes: int
    sha256: str
    media_type: str


class Storage(Protocol):
    """Bytes under keys. Keys are relative POSIX paths; a put replaces the whole object at once."""

    async def put(self, key: str, source: Path, *, media_type: str) -> StoredObject:
        """Write the whole file, or nothing; readers never see part of it. Safe to repeat.

        Raises: StorageUnavailable (retryable), StorageRefused (credentials, quota, full disk).
        """
        ...

    async def copy(self, source_key: str, key: str) -> None:
        """Server-side copy with its media type, replacing `key`. Safe to repeat. Raises NotFound without a source."""
        ...

    async def stat(self, key: str) -> StoredObject:
        """Size, media type and (where known, else "") sha256. Raises NotFound."""
        ...

    def open(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Stream bytes start (inclusive) to end (exclusive). Raises NotFound at the first step."""
        ...

    async def delete(self, key: str) -> None:
        """Delete; a missing key is no error."""
        ...

    def list(self, prefix: str) -> AsyncIterator[tuple[str, datetime]]:
        """Keys below a prefix with their last modification (aware UTC)."""
        ...

    async def url(self, key: str) -> str:
        """The public or signed URL under which the caller gets the object, percent-encoded."""
        ...

    def key_of(self, url: str) -> str | None:
        """The key when `url` is one of ours (any of the shapes `url` gives), else None."""
        ...

    async def identity(self) -> str:
        """Equal exactly for processes whose keys mean the same objects, whatever the paths or hosts."""
        ...

    async def check(self) -> None:
        """Write, read and delete a small object; raises StorageError with what to mend."""
        ...

    async def free_bytes(self) -> int | None:
        """Room left, or None when the backend has no notion of it."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...


Clock = Callable[[], float]

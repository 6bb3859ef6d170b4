"""What goes into the store and what comes out of it, and the mapping between rows and the envelope."""

from __future__ import annotations

import base64
import json
import math
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, TypedDict
from uuid import UUID

from mediamill.config import Settings
from mediamill.errors import Detail, InvalidRequest, NotFound
from mediamill.jobs.database import Record
from mediamill.model import Artifact, Job, JobError, Json, MediaFacts, Phase, Status

MAX_MESSAGE = 2000
"""Characters of a progress message or an error kept in a row."""


@dataclass(frozen=True)
class Rules:
    """What the store decides by; times in seconds. Equal on all hosts, or leases are judged by different clocks."""

    lease_s: float = 12.0
    max_crashes: int = 3
    max_lost_workers: int = 10
    affinity_wait_s: float = 30.0
    crash_delay_s: float = 0.5
    """After the first crash; four times as long after each further one, at most a minute."""
    idempotency_s: float = 24 * 3600.0
    queue_log_s: float = 24 * 3600.0
    """How long the queue's log is kept."""

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """The rules that the settings ask for."""
        return cls(
            lease_s=settings.lease_s,
            max_crashes=settings.max_crashes,
            max_lost_workers=settings.max_lost_workers,
            affinity_wait_s=settings.affinity_wait_s,
        )


@dataclass(frozen=True)
class Idempotency:
    """A creating call that may come again: the same caller, key and fingerprint get the same job for a day."""

    caller: str
    """SHA-256 of the API key, or "anonymous"."""
    key: str
    fingerprint: str
    """Of the body; another one under the same key is a Conflict."""


@dataclass(frozen=True)
class Submission:
    """A job to be made."""

    model: str
    input: Mapping[str, Json]
    """Validated, defaults filled in; large values are references."""
    pool: str
    contract: str = "native"
    job_id: str | None = None
    """Given where files were staged under it before; None makes one."""
    webhook_url: str | None = None
    priority: int = 0
    """Higher goes first."""
    metadata: Mapping[str, Json] | None = None
    warnings: Sequence[str] = ()
    idempotency: Idempotency | None = None
    parts: Sequence[Mapping[str, Json]] = ()
    """Inputs of the parts, each a job of its own; the parent itself never runs."""
    queued_timeout_s: float = 24 * 3600.0
    run_timeout_s: float = 3600.0
    affinity: str | None = None
    """What stays loaded between jobs; None: the model."""
    sealed: bytes | None = None
    """The caller's secrets for this job, encrypted by whoever submits it; erased with the job's end."""
    caller: str | None = None
    """As in Idempotency, where `unfinished` jobs are to be counted by it."""


@dataclass(frozen=True)
class Taken:
    """A job that is ours to run."""

    job: Job
    attempt: int
    """The fence: carried by everything that is written for this run."""
    run_deadline_s: float
    """Seconds it may run."""
    lease_until: float
    """`time.monotonic()` until which the job is surely ours; each beat gives a new one."""
    sealed: bytes | None = None
    elsewhere: str | None = None
    """The handle under which an earlier attempt left the work on somebody else's machines."""


class Told(TypedDict, total=False):
    """What a beat says of the work; what is left out or None stays as it is, but for `eta_s`."""

    progress: float | None
    """0 to 1; it never falls."""
    phase: Phase | None
    message: str | None
    eta_s: float | None
    """Seconds left from now; None: not known."""
    preview: str | None
    """Storage key of the newest look at unfinished work."""


@dataclass(frozen=True)
class Beat:
    """The answer to "is it still mine?"; true in a condition when it is.

    An answer may come late (a slow network, a process that was stopped): it is about the moment of asking. So the lease
    counts from there, and once `time.monotonic()` passes `lease_until` an "owned" says nothing any more.
    """

    owned: bool
    cancel_requested: bool
    asked_at: float
    """`time.monotonic()` just before the question went out."""
    lease_until: float

    def __bool__(self) -> bool:
        """Owned, and still to be believed."""
        return self.owned and time.monotonic() < self.lease_until


@dataclass(frozen=True)
class Batch:
    """Jobs that were made together; one webhook at the end of the last."""

    id: str
    jobs: tuple[Job, ...]
    created_at: datetime
    webhook_url: str | None = None
    contract: str = "native"
    metadata: Mapping[str, Json] | None = None


@dataclass(frozen=True)
class Page:
    """Some jobs, and the cursor of those after them; None at the end."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


@dataclass(frozen=True)
class WorkerSeen:
    """A worker process that was heard of."""

    name: str
    pool: str
    slots: int
    version: str
    seen_s: float
    """Seconds ago."""
    facts: Mapping[str, Json] = field(default_factory=dict)


_last_ms = 0
_id_lock = threading.Lock()


def new_id() -> str:
    """A fresh id: a version 7 UUID with 74 random bits; ids of one process sort by their making."""
    global _last_ms  # noqa: PLW0603 - the clock's last reading
    with _id_lock:
        _last_ms = max(time.time_ns() // 1_000_000, _last_ms + 1)
        ms = _last_ms
    random = secrets.randbits(74)
    value = (ms & (1 << 48) - 1) << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    return str(UUID(int=value))


def parse_id(text: str, *, what: str = "job") -> UUID:
    """The id of a row. Raises NotFound for what cannot be one."""
    try:
        found = UUID(text)
    except (ValueError, AttributeError, TypeError):
        found = None
    if found is None or text.lower() not in {str(found), found.hex}:
        raise NotFound(f"There is no {what} {text[:80]!r}.")
    return found


def cursor(job_id: str) -> str:
    """Where a page of a list ends, as callers pass it on."""
    return base64.urlsafe_b64encode(UUID(job_id).bytes).decode().rstrip("=")


def cursor_id(text: str) -> UUID:
    """The job that a cursor stands for. Raises InvalidRequest."""
    try:
        return UUID(bytes=base64.b64decode(text + "==", altchars=b"-_", validate=True))
    except ValueError as error:
        detail = Detail("after", "must be the `next_cursor` of an earlier page")
        raise InvalidRequest(f"after: {text[:80]!r} is not a cursor of this list.", details=(detail,)) from error


def clean_text(text: str, *, limit: int | None = None) -> str:
    """Without what PostgreSQL cannot hold (NUL, lone surrogates), and cut to `limit` characters."""
    kept = text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    return kept if limit is None or len(kept) <= limit else kept[: limit - 1] + "…"


def clean(value: Json) -> Json:
    """A JSON value without what PostgreSQL cannot hold; infinite numbers become null."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean_text(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return value


def dump(value: Json) -> str:
    """A JSON value as text for a jsonb parameter."""
    return json.dumps(clean(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def dump_or_null(value: Json | None) -> str | None:
    """Like `dump`; None stays SQL's NULL."""
    return None if value is None else dump(value)


def _load(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def lane_of(pool: str, affinity: str) -> str:
    """The queue's name for jobs of one pool that need the same thing loaded."""
    return clean_text(f"{pool}/{affinity}", limit=200)


def job_of(row: Record, artifacts: Sequence[Artifact] = (), *, position: int | None = None) -> Job:
    """The envelope of a row of the view that `queries.sql` calls the envelope."""
    status = Status(row["status"])
    error = None if row["error_code"] is None else JobError(row["error_code"], row["error_message"] or "")
    parent_id, batch_id = row["parent_id"], row["batch_id"]
    return Job(
        id=str(row["id"]),
        model=row["model"],
        status=status,
        input=_load(row["input"]),
        created_at=row["created_at"],
        phase=_phase(row["phase"]) if status is Status.RUNNING else None,
        progress=float(row["progress"]),
        position=position,
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        artifacts=tuple(artifacts),
        output=_load(row["output"]),
        error=error,
        attempt=row["attempt"],
        timings=_load(row["timings"]),
        warnings=tuple(_load(row["warnings"])),
        metadata=_load(row["metadata"]),
        contract=row["contract"],
        webhook_url=row["webhook_url"],
        parent_id=None if parent_id is None else str(parent_id),
        part=row["part"],
        batch_id=None if batch_id is None else str(batch_id),
        cancel_requested=row["cancel_requested"],
        message=row["message"],
        eta_s=None if row["eta_s"] is None or status is not Status.RUNNING else max(0.0, row["eta_s"]),
        preview=row["preview"] if status is Status.RUNNING else None,
    )


def _phase(text: str | None) -> Phase | None:
    """A phase that a newer release wrote and this one does not know is none."""
    return Phase(text) if text in set(Phase) else None


def batch_of(row: Record, jobs: Sequence[Job]) -> Batch:
    """A batch of its row."""
    return Batch(
        id=str(row["id"]),
        jobs=tuple(jobs),
        created_at=row["created_at"],
        webhook_url=row["webhook_url"],
        contract=row["contract"],
        metadata=_load(row["metadata"]),
    )


_FACTS = frozenset(f.name for f in fields(MediaFacts))


def artifact_of(row: Record) -> Artifact:
    """An artifact of its row; facts that a newer release added are left out."""
    facts = {name: value for name, value in _load(row["facts"]).items() if name in _FACTS}
    return Artifact(
        name=row["name"],
        key=row["key"],
        media_type=row["media_type"],
        size_bytes=row["size_bytes"],
        sha256=row["sha256"],
        facts=MediaFacts(**facts),
    )


def artifact_values(job_id: UUID, artifacts: Sequence[Artifact]) -> list[tuple[Any, ...]]:
    """The parameters of `insert_artifact` for each artifact, in order."""
    return [
        (
            job_id,
            position,
            clean_text(a.name),
            clean_text(a.key),
            clean_text(a.media_type),
            a.size_bytes,
            a.sha256,
            dump({name: value for name, value in asdict(a.facts).items() if value is not None}),
        )
        for position, a in enumerate(artifacts)
    ]

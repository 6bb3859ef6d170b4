"""The whole error tree. Stable `code`, `retryable`; no HTTP in it.

MediamillError
├── InvalidRequest          the request itself is wrong; `details` name each field
├── NotFound                no such job, file, model or route
├── Conflict                the request contradicts what is stored (idempotency key, finished job)
├── Unauthorized            no key, or a wrong one
├── Refused                 understood, and not done: quota, size, content
│   ├── TooLarge            bytes, pixels or seconds above a limit
│   └── Busy                no room now (disk reserve, full queue): come back after `delay_s`
│       └── TooMany         this caller has too many unfinished jobs
├── InputError              an input file of the caller could not be used
│   ├── InputUnreachable    the URL did not answer with the file
│   └── UnsupportedMedia    the bytes are not what was asked for, or are damaged
├── EngineError             the work failed
│   ├── OutOfMemory         the message says what to lower
│   ├── EngineFailed        `log_tail`: its last 40 lines
│   ├── ModelUnavailable    weights missing or partial
│   └── Crashed             the child process died, or filled the disk (counted, at most 3)
├── Misconfigured           a setting is wrong, or two contradict each other: nothing starts
├── NotImplementedYet       a documented model that does not exist yet
├── ProviderError           a remote place to run failed
├── StorageError
│   ├── StorageUnavailable  retryable
│   └── StorageRefused      credentials, quota, read-only
├── StoreError
│   ├── StoreUnavailable    the database is away, full or read-only; retryable
│   └── SchemaMismatch      the database belongs to another major version of mediamill
├── DeadlineExceeded        queued or running for too long
└── control flow: Cancelled, RetryLater(delay_s), LeaseLost
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

_MOST_NAMED = 50
"""Fields in one sentence."""


@dataclass(frozen=True)
class Detail:
    """One wrong field: `path` in dotted form (`images.0.duracao`), and what would be accepted."""

    path: str
    message: str


class MediamillError(Exception):
    """Something went wrong."""

    code = "internal"
    retryable = False
    job_id: str | None = None
    """The job the error is about, where the caller should learn it."""

    def __init__(self, message: str | None = None, *, details: Sequence[Detail] = ()) -> None:
        """Without `message`, the class's docstring is the message."""
        self.message = message or (type(self).__doc__ or "").strip().split("\n")[0]
        self.details = tuple(details)
        super().__init__(self.message)


class InvalidRequest(MediamillError):
    """The request is not valid."""

    code = "invalid_request"

    @classmethod
    def of(cls, *details: Detail) -> Self:
        """The error whose sentence names these fields, the first of very many; at least one."""
        named = [f"{d.path}: {d.message}" for d in details[:_MOST_NAMED]]
        rest = [f"and {len(details) - _MOST_NAMED} more"] if len(details) > _MOST_NAMED else []
        return cls("; ".join(named + rest), details=details)


class NotFound(MediamillError):
    """There is no such thing."""

    code = "not_found"


class Conflict(MediamillError):
    """The request contradicts what is stored."""

    code = "conflict"


class Unauthorized(MediamillError):
    """A valid API key is needed."""

    code = "unauthorized"


class Refused(MediamillError):
    """The request was understood and refused."""

    code = "refused"


class TooLarge(Refused):
    """The input is larger than what is accepted."""

    code = "too_large"


class Busy(Refused):
    """There is no room for more work now."""

    code = "busy"
    retryable = True

    def __init__(self, message: str | None = None, *, delay_s: float = 30.0) -> None:
        """`delay_s`: after how many seconds a retry makes sense."""
        super().__init__(message)
        self.delay_s = delay_s


class TooMany(Busy):
    """This caller has too many unfinished jobs."""

    code = "too_many"


class InputError(MediamillError):
    """An input file could not be used."""

    code = "input_error"


class InputUnreachable(InputError):
    """An input URL could not be fetched."""

    code = "input_unreachable"


class UnsupportedMedia(InputError):
    """An input file is not media that can be used here."""

    code = "unsupported_media"


class EngineError(MediamillError):
    """The work failed."""

    code = "engine_error"


class OutOfMemory(EngineError):
    """There was not enough memory for this request."""

    code = "out_of_memory"


class EngineFailed(EngineError):
    """The engine failed."""

    code = "engine_failed"

    def __init__(self, message: str | None = None, *, log_tail: str = "") -> None:
        """`log_tail`: the engine's last 40 lines, for the log only."""
        super().__init__(message)
        self.log_tail = log_tail


class ModelUnavailable(EngineError):
    """The model's weights are not available."""

    code = "model_unavailable"


class Crashed(EngineError):
    """The process that did the work died."""

    code = "crashed"
    retryable = True


class Misconfigured(MediamillError):
    """The settings cannot be used."""

    code = "misconfigured"


class NotImplementedYet(MediamillError):
    """This documented model does not exist here yet."""

    code = "not_implemented"


class ProviderError(MediamillError):
    """The place where the job ran failed."""

    code = "provider_error"
    retryable = True


class StorageError(MediamillError):
    """The storage failed."""

    code = "storage_error"


class StorageUnavailable(StorageError):
    """The storage does not answer."""

    code = "storage_unavailable"
    retryable = True


class StorageRefused(StorageError):
    """The storage refused the operation."""

    code = "storage_refused"


class StoreError(MediamillError):
    """The job database failed."""

    code = "store_error"


class StoreUnavailable(StoreError):
    """The job database does not answer."""

    code = "store_unavailable"
    retryable = True


class SchemaMismatch(StoreError):
    """The job database belongs to another version of mediamill."""

    code = "schema_mismatch"


class DeadlineExceeded(MediamillError):
    """The job took longer than its limit."""

    code = "deadline_exceeded"


class Cancelled(MediamillError):
    """The job was cancelled."""

    code = "cancelled"


class RetryLater(MediamillError):
    """Hand the job back and try again after `delay_s` seconds."""

    code = "retry_later"
    retryable = True

    def __init__(self, message: str | None = None, *, delay_s: float = 1.0) -> None:
        """`delay_s`: seconds until the next try."""
        super().__init__(message)
        self.delay_s = delay_s


class LeaseLost(MediamillError):
    """Another worker owns this job now; nothing more may be written for it."""

    code = "lease_lost"


_LOCAL_PATH = re.compile(
    r"""(?<![\w/:.~])(?:
        (?P<quote>['"])(?:~|\.{1,2})?/.*?(?P=quote)
        | (?:~|\.{1,2})?/[^\s'",;()]*[^\s'",;().:]
    )""",
    re.VERBOSE,
)
ErrorT = TypeVar("ErrorT", bound=MediamillError)


def for_callers(error: ErrorT) -> ErrorT:
    """The same error without what callers have no business with: addresses and folders of this installation.

    Log the whole first: what was left out is told nowhere else.
    """
    if isinstance(error, StoreError | StorageError | Misconfigured):
        return type(error)()
    if isinstance(error, ModelUnavailable):
        return type(error)(_LOCAL_PATH.sub("a local path", error.message))
    return error


def every_class() -> list[type[MediamillError]]:
    """All classes of the tree, for tables that must map each code."""
    found: list[type[MediamillError]] = [MediamillError]
    for cls in found:
        found.extend(cls.__subclasses__())
    return found

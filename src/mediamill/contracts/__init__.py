"""One file a public wire format: pure mappings, no web framework, no I/O.

Each has `reply(job, urls)`: its body for a job that succeeded; and `webhook(job, urls)`: what its webhook says at any end.
"""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus

__all__ = ["percent", "phrase", "when"]

_PHRASES = {413: "Payload Too Large", 422: "Unprocessable Entity"}
"""Those that Python 3.13 renamed: what is on the wire does not depend on it."""


def percent(fraction: float) -> int:
    """0 to 100, whole; 100 only when all is done."""
    return min(100, max(0, int(fraction * 100 + 1e-9)))


def when(moment: datetime | None) -> str | None:
    """ISO 8601 UTC with milliseconds and Z; None stays None."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def phrase(status: int) -> str:
    """An HTTP status in words."""
    return _PHRASES.get(status) or HTTPStatus(status).phrase

"""Ends on somebody else's machines what has ended here.

The row decides, not the attempt: it has the handle from the moment the work was taken there, so a job that was
cancelled, failed or timed out is ended there whoever watched it then, while one that was handed back or lost its
worker goes on there until the next attempt comes for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from mediamill.errors import ProviderError, StoreUnavailable
from mediamill.jobs.store import JobStore

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
LONGEST_PAUSE_S = 30.0
LEAVING_S = 3.0
_AT_ONCE = 8
"""So few that the planner never prefers to read the whole table."""


class LeftElsewhere:
    """A chore of every worker whose jobs run elsewhere. Two of them at once do no harm."""

    def __init__(self, store: JobStore, end: Callable[[str], Awaitable[None]]) -> None:
        """`end(handle)` ends work there; raises ProviderError where it should be tried again."""
        self._store = store
        self._end = end
        self._told: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Look every second until told to stop, and once more then; more slowly while it does not help."""
        pause_s = LOOK_EVERY_S
        while not stop.is_set():
            pause_s = LOOK_EVERY_S if await self.end_all() else min(LONGEST_PAUSE_S, pause_s * 2)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await stop.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVING_S):
                await self.end_all()

    async def end_all(self) -> bool:
        """End what is left there now; False when some of it could not be ended."""
        try:
            while left := await self._store.left_elsewhere(limit=_AT_ONCE):
                if not all(await asyncio.gather(*(self._end_one(*one) for one in left.items()))):
                    return False
        except StoreUnavailable:
            return False
        return True

    async def _end_one(self, job_id: str, handle: str) -> bool:
        try:
            await self._end(handle)
        except ProviderError as error:
            if handle not in self._told:  # once, however long it takes
                _log.warning("job goes on elsewhere: %s", error.message, extra={"job_id": job_id, "remote": handle})
            self._told.add(handle)
            return False
        self._told.discard(handle)
        await self._store.ended_elsewhere(job_id, handle)
        _log.info("job was ended elsewhere", extra={"job_id": job_id, "remote": handle})
        return True

"""Objects under final keys that no job names: what an attempt published before its job ended without it.

A caller's folder may be the next job's too. So whoever publishes notes the keys first and looks afterwards whether
somebody is deleting there; whoever deletes marks the key first and looks afterwards whether a live job noted it, or an
ended one names it. One of the two sees the other, and no lock is held while the storage works.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from uuid import UUID

from mediamill import keys
from mediamill.errors import InvalidRequest, NotFound, StorageRefused, StorageUnavailable
from mediamill.jobs.database import Database, Record
from mediamill.jobs.ending import SQL
from mediamill.jobs.rows import clean_text, parse_id
from mediamill.model import Storage

_MARKED_S = 60.0
"""For so long others stay away from a key at most. A deleter that dies costs them that."""
_DELETE_WITHIN_S = 30.0
"""What is sent to the storage by then has taken effect before the mark is over."""
_PAGE = 100


@dataclass(frozen=True)
class Leftover:
    """An object that a job put, or may have put, under a final key. `digests`: SHA-256 of what it may be."""

    key: str
    job_id: str
    digests: Collection[str]


@dataclass(frozen=True)
class Leftovers:
    """Finds and deletes them. Safe to do by several processes at once, and to break off anywhere."""

    database: Database
    storage: Storage

    async def of_ended_jobs(self, *, older_than_s: float) -> AsyncIterator[Leftover]:
        """What is noted of jobs that ended at least that long ago, so that a late copy is there by now."""
        after = ("", "00000000-0000-0000-0000-000000000000")
        while True:
            async with self.database.connection() as connection:
                rows = await connection.fetch(SQL["leftovers"], older_than_s, after[0], parse_id(after[1]), _PAGE)
            found = [_leftover(row) for row in rows]
            for leftover in found:
                yield leftover
            if len(found) < _PAGE:
                return
            after = (found[-1].key, found[-1].job_id)

    async def delete(self, leftover: Leftover, *, forgetting: Collection[str] = (), look_again: bool = False) -> bool:
        """Delete the object unless its job still runs, or another job names it or is about to publish there.

        Args:
            leftover: What, and whose.
            forgetting: Jobs that are about to be forgotten: their naming it does not count, and what lies there goes
                whatever it is.
            look_again: Leave the note, for a copy that may still arrive.

        Returns: False when somebody else is at it. Raises StorageError; then the note stays.
        """
        until_s = time.monotonic() + _DELETE_WITHIN_S
        own, than = parse_id(leftover.job_id), [parse_id(job_id) for job_id in forgetting]
        key = clean_text(leftover.key)
        async with self.database.connection() as connection:
            if not await connection.fetchval(SQL["mark_deleting"], key, own, list(leftover.digests), _MARKED_S):
                return False
            wanted = await connection.fetchval(SQL["wanted"], key, own, than)  # a snapshot of its own, after the mark
        try:
            if wanted is None:
                await self._delete(leftover, until_s, whatever=bool(forgetting))
        except StorageRefused:  # unlike one that does not answer, it will not do it later either
            await self._settle(key, own, keep=True)
            raise
        await self._settle(key, own, keep=wanted == "awaited" or (wanted is None and look_again))
        return True

    async def _settle(self, key: str, job_id: UUID, *, keep: bool) -> None:
        """Take the mark away, and the note with it unless it is to be kept."""
        async with self.database.connection() as connection:
            await connection.execute(SQL["unmark" if keep else "drop_note"], key, job_id)

    async def _delete(self, leftover: Leftover, until_s: float, *, whatever: bool) -> None:
        """The object, when it is what the job made: somebody else may have put something in its place."""
        try:
            async with asyncio.timeout(until_s - time.monotonic()):
                there = whatever or await self._is_there(leftover)
                too_late = time.monotonic() > until_s
                if there and not too_late:
                    await self.storage.delete(leftover.key)
        except TimeoutError:
            too_late = True
        if too_late:
            raise StorageUnavailable(f"The storage took longer than {_DELETE_WITHIN_S:g} s to delete an object.")

    async def _is_there(self, leftover: Leftover) -> bool:
        if keys.is_own(leftover.key):
            return True
        with contextlib.suppress(NotFound, InvalidRequest):  # the second: no storage takes such a key
            return (await self.storage.stat(leftover.key)).sha256 in leftover.digests
        return False


def _leftover(row: Record) -> Leftover:
    return Leftover(row["key"], str(row["job_id"]), tuple(row["digests"]))

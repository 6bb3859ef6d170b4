"""What the processes around one database must agree on: where files are kept."""

from __future__ import annotations

import os
import secrets
import socket
from importlib.metadata import version

from mediamill.config import Settings
from mediamill.errors import Misconfigured
from mediamill.jobs.rows import WorkerSeen
from mediamill.jobs.store import JobStore
from mediamill.model import Storage
from mediamill.storage import mode_of

ANNOUNCE_EVERY_S = 3.0
_HEARD_OF_S = 3 * ANNOUNCE_EVERY_S


def name_of(pool: str) -> str:
    """A name of this process's own, as others hear of it."""
    return f"{socket.gethostname()}.{os.getpid()}.{pool.replace(':', '')}.{secrets.token_hex(3)}"


def host_of(settings: Settings) -> str:
    """Equal for processes that share this machine's name and data folder; others are other hosts."""
    return f"{socket.gethostname()}:{settings.data_dir.resolve()}"


async def join(settings: Settings, store: JobStore, storage: Storage) -> None:
    """Refuse to start beside processes that keep files elsewhere: each would miss what the other stored.

    A folder that other hosts use too must be declared: a copied disk has the same folder under the same identity.
    This process is announced first and looks second, so that of two that start at once one at least sees the other.
    The announcement is heard of until the process's own take its place.

    Raises: Misconfigured, naming the process and what to do; StorageError; StoreUnavailable.
    """
    name, ours, here = name_of("start"), await storage.identity(), host_of(settings)
    facts = {"storage": ours, "host": here}
    await store.announce(name, pool="start", slots=0, version=version("mediamill"), facts=facts)
    for other in await store.workers(within_s=_HEARD_OF_S):
        wrong = _disagreement(settings, other, ours=ours, here=here)
        if wrong is not None:
            await store.depart(name)
            raise Misconfigured(wrong)


def _disagreement(settings: Settings, other: WorkerSeen, *, ours: str, here: str) -> str | None:
    """What is wrong with the two, and what to do; None when they agree."""
    files, folder = mode_of(settings) == "file", str(settings.outputs_root)
    if other.facts.get("storage", ours) == ours:
        if not files or settings.storage_shared or other.facts.get("host", here) == here:
            return None
        return (
            f"{other.name} on this database is on another host, or has another data folder, than "
            f"{str(settings.data_dir.resolve())!r}. When {folder!r} is one folder that both "
            "share, say so with MEDIAMILL_STORAGE_SHARED=1; else use a bucket (STORAGE_MODE=s3)."
        )
    if not files:
        return f"{other.name} on this database keeps files elsewhere; give both the same storage settings."
    if settings.storage_shared:
        return f"MEDIAMILL_STORAGE_SHARED is set, but {folder!r} is not the folder of {other.name}."
    return (
        f"{other.name} on this database keeps files in another folder than {folder!r}. Files of several hosts "
        "must lie in one place: use a bucket (STORAGE_MODE=s3), or one shared folder as OUTPUT_DIR on all of them, with "
        "MEDIAMILL_STORAGE_SHARED=1."
    )

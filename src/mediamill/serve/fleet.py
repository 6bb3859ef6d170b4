"""What the processes around one database must agree on."""

from __future__ import annotations

from mediamill.config import Settings
from mediamill.errors import Misconfigured, StoreUnavailable
from mediamill.jobs.store import JobStore
from mediamill.jobs.worker import host_of
from mediamill.storage import mode_of, open_storage

_HEARD_OF_S = 6.0
"""A worker says twice as often that it is there."""


async def check_storage(settings: Settings) -> None:
    """Refuse to start beside processes that keep files elsewhere: each would miss what the other stored.

    A folder that other hosts use too must be declared: a copied disk has the same folder under the same identity.
    A database that does not answer yet has nobody to disagree with; the caller finds that out by itself.

    Raises: Misconfigured, naming the process and what to do; StorageError.
    """
    if settings.database_url is None:
        return
    storage = open_storage(settings, public_url="http://127.0.0.1", secret=b"")
    try:
        ours = await storage.identity()
    finally:
        await storage.close()
    try:
        async with await JobStore.open(
            settings.database_url.get_secret_value(), application="mediamill start"
        ) as store:
            workers = await store.workers(within_s=_HEARD_OF_S)
    except StoreUnavailable:
        return
    here, undeclared = host_of(settings), mode_of(settings) == "file" and not settings.storage_shared
    for other in workers:
        if other.facts.get("storage", ours) != ours:
            raise Misconfigured(_disagreement(settings, other.name))
        if undeclared and other.facts.get("host", here) != here:
            raise Misconfigured(
                f"{other.name} on this database is on another host, or has another data folder, than "
                f"{str(settings.data_dir.resolve())!r}. When {str(settings.outputs_root)!r} is one folder that both "
                "share, say so with MEDIAMILL_STORAGE_SHARED=1; else use a bucket (STORAGE_MODE=s3)."
            )


def _disagreement(settings: Settings, other: str) -> str:
    if mode_of(settings) != "file":
        return f"{other} on this database keeps files elsewhere; give both the same storage settings."
    folder = str(settings.outputs_root)
    if settings.storage_shared:
        return f"MEDIAMILL_STORAGE_SHARED is set, but {folder!r} is not the folder of {other}."
    return (
        f"{other} on this database keeps files in another folder than {folder!r}. Files of several hosts "
        "must lie in one place: use a bucket (STORAGE_MODE=s3), or one shared folder as OUTPUT_DIR on all of them, with "
        "MEDIAMILL_STORAGE_SHARED=1."
    )

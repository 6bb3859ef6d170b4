"""Files that are whole or absent: unfinished ones never show under their name and never outlive their writer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a disk, a quota or a file system that has no room for the file."""


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new empty file in `folder`, open for reading and writing, deleted on exit unless moved away.

    It is locked while open: `sweep_unfinished` deletes the file of a killed writer and spares a living one's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, file = _locked(folder)
    try:
        with file:
            yield path, file
    finally:
        path.unlink(missing_ok=True)


def _locked(folder: Path) -> tuple[Path, BinaryIO]:
    while True:
        path = folder / f"{secrets.token_hex(16)}.part"
        file = path.open("x+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return path, file
        file.close()  # a sweep came between the two calls


def sweep_unfinished(folder: Path) -> int:
    """Delete the unfinished files whose writers are gone; returns how many."""
    swept = 0
    for path in folder.glob("*.part"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            swept += 1
    return swept


def move_into_place(part: Path, target: Path, *, durable: bool = True) -> None:
    """Rename a finished file to `target`, replacing it and making its folder.

    Args:
        part: A file on the same filesystem, its bytes already synced when that matters.
        target: Its final path.
        durable: Sync the folders too, so that the name survives a power cut.
    """
    made = _rename(part, target)
    if durable:
        sync_folder(target.parent)
        for folder in made:
            sync_folder(folder.parent)


def _rename(part: Path, target: Path) -> list[Path]:
    for _ in range(100):
        made = [p for p in (target.parent, *target.parent.parents) if not p.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.replace(target)
        except FileNotFoundError:
            if not part.exists():
                raise
            continue  # a delete removed the empty folder meanwhile
        return made
    raise OSError(f"The folder of {target.name!r} keeps vanishing.")


def sync_folder(folder: Path) -> None:
    """Make the folder's names survive a power cut."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target`, which must not exist, a hard link to `source`, or a copy where links are impossible."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)

"""The data folder belongs to one supervisor at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mediamill.errors import Misconfigured


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Make the folder and hold it. The lock goes with the process, so a killed one leaves nothing to clean up.

    Raises: Misconfigured when another `mediamill serve` holds it, or it cannot be written.
    """
    path = folder / "serve.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise Misconfigured(f"The data folder {str(folder)!r} cannot be written: {error.strerror}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise Misconfigured(
                f"The data folder {str(folder)!r} is in use by another mediamill serve (process {owner}); "
                "stop it, or take another folder: --data-dir DIR."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield

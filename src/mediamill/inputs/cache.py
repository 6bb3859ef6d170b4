"""Input files kept by content, shared by all processes of a machine; the least recently used go first.

`blobs/ab/<sha256>` holds bytes, whole or absent. `urls/<sha256 of a URL>.json` says which bytes that URL had and how to
ask whether it still does. URLs themselves are not written down: they may carry secrets.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from mediamill.durable import link_or_copy, move_into_place, sweep_unfinished, unfinished
from mediamill.inputs.fetch import Validators

_BEGUN_FRACTION = 0.05
"""The folder is measured again after this part of its size has been added."""


class Cache:
    """A folder of immutable files. Any number of processes may use it at once."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """Make the folder and sweep what killed writers left. `max_bytes`: kept beyond what jobs hold linked."""
        self._blobs = folder / "blobs"
        self._urls = folder / "urls"
        self._parts = folder / "parts"
        self._max_bytes = max_bytes
        self._added_bytes = 0
        self._measured = False
        for made in (self._blobs, self._urls, self._parts):
            made.mkdir(parents=True, exist_ok=True)
        sweep_unfinished(self._parts)

    def part(self) -> AbstractContextManager[tuple[Path, BinaryIO]]:
        """A file to download into; gone on exit unless `add` took it."""
        return unfinished(self._parts)

    def add(self, part: Path, sha256: str) -> None:
        """Keep a finished file, whose content is `sha256`, synced."""
        self._added_bytes += part.stat().st_size
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o444)  # jobs get links to it
        move_into_place(part, self._blob(sha256), durable=False)

    def take(self, sha256: str, target: Path) -> bool:
        """Link (or copy) the bytes to `target`, replacing it, and mark them used; False when they are not here."""
        blob = self._blob(sha256)
        target.unlink(missing_ok=True)
        try:
            os.utime(blob)
            link_or_copy(blob, target)
        except FileNotFoundError:
            return False
        return True

    def remember(self, url: str, sha256: str, validators: Validators) -> None:
        """Note what a URL had. Only useful with validators; without, the bytes are found by content alone."""
        record = {"sha256": sha256, "etag": validators.etag, "last_modified": validators.last_modified}
        with self.part() as (part, file):
            file.write(json.dumps(record).encode())
            file.flush()
            move_into_place(part, self._record(url), durable=False)

    def recall(self, url: str) -> tuple[str, Validators] | None:
        """What a URL had when last fetched, if its bytes are still here: their sha256, and how to ask for changes."""
        try:
            record = json.loads(self._record(url).read_bytes())
            known = Validators(record["etag"], record["last_modified"])
            sha256 = str(record["sha256"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return (sha256, known) if self._blob(sha256).exists() else None

    def trim(self) -> int:
        """Delete least recently used bytes until `max_bytes` is kept; returns how many bytes went."""
        if self._measured and self._added_bytes < self._max_bytes * _BEGUN_FRACTION:
            return 0
        self._measured, self._added_bytes = True, 0
        sweep_unfinished(self._parts)
        found = sorted(self._kept(), key=lambda kept: kept[0])
        excess = sum(size_bytes for _, size_bytes, _ in found) - self._max_bytes
        freed = 0
        for _, size_bytes, path in found:
            if freed >= excess:
                break
            path.unlink(missing_ok=True)
            freed += size_bytes
        if freed:
            self._forget_unknown()
        return freed

    def _kept(self) -> Iterator[tuple[int, int, Path]]:
        """When last used, size, path: of the blobs no running job holds (deleting those would free nothing)."""
        for path in self._blobs.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                if facts.st_nlink == 1:
                    yield facts.st_mtime_ns, facts.st_size, path

    def _forget_unknown(self) -> None:
        for record in self._urls.glob("*/*.json"):
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                if not self._blob(json.loads(record.read_bytes())["sha256"]).exists():
                    record.unlink()

    def _blob(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256

    def _record(self, url: str) -> Path:
        name = hashlib.sha256(url.encode()).hexdigest()
        return self._urls / name[:2] / f"{name}.json"

"""Loaded models: kept between jobs for a time, least recently used first out when memory is short."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mediamill.errors import EngineFailed, OutOfMemory


@dataclass(frozen=True)
class Key:
    """What makes two loaded models the same."""

    folder: Path
    device: str
    compute_type: str
    threads: int
    """Cores for one inference."""
    workers: int
    """Inferences at once."""


@dataclass
class _Resident:
    model: Any
    size_bytes: int
    users: int = 0
    timer: threading.Timer | None = field(default=None, repr=False)


class Residency:
    """Holds models of one process. Safe to use from several threads."""

    def __init__(self, *, ttl_s: float, budget_bytes: int, load: Callable[[Key], Any] | None = None) -> None:
        """Args: `ttl_s`: an unused model goes after this. `budget_bytes`: weights held at once; one always may be."""
        self._ttl_s, self._budget_bytes = ttl_s, budget_bytes
        self._load = load or load_model
        self._lock = threading.Lock()
        self._held: OrderedDict[Key, _Resident] = OrderedDict()

    def holds(self, key: Key) -> bool:
        """Whether it is loaded now."""
        with self._lock:
            return key in self._held

    def keys(self) -> list[Key]:
        """What is loaded, least recently used first."""
        with self._lock:
            return list(self._held)

    @contextmanager
    def using(self, key: Key) -> Iterator[Any]:
        """The model, loaded if need be; it stays while the block runs.

        Raises: OutOfMemory, EngineFailed (files of the wrong kind).
        """
        with self._lock:
            resident = self._held.get(key) or self._loaded(key)
            resident.users += 1
            self._held.move_to_end(key)
            if resident.timer is not None:
                resident.timer.cancel()
        try:
            yield resident.model
        finally:
            with self._lock:
                resident.users -= 1
                if resident.users == 0 and self._held.get(key) is resident:
                    self._arm(key, resident)

    def close(self) -> None:
        """Drop every model that is not in use, and every timer."""
        with self._lock:
            for key, resident in list(self._held.items()):
                if resident.users == 0:
                    self._drop(key)

    def _loaded(self, key: Key) -> _Resident:
        size_bytes = _size_bytes(key)
        idle = [k for k, r in self._held.items() if r.users == 0]
        while idle and sum(r.size_bytes for r in self._held.values()) + size_bytes > self._budget_bytes:
            self._drop(idle.pop(0))
        resident = _Resident(self._load(key), size_bytes)
        self._held[key] = resident
        return resident

    def _arm(self, key: Key, resident: _Resident) -> None:
        resident.timer = threading.Timer(self._ttl_s, self._expire, (key, resident))
        resident.timer.daemon = True
        resident.timer.start()

    def _expire(self, key: Key, resident: _Resident) -> None:
        with self._lock:
            if self._held.get(key) is resident and resident.users == 0:
                self._drop(key)

    def _drop(self, key: Key) -> None:
        resident = self._held.pop(key)
        if resident.timer is not None:
            resident.timer.cancel()
        resident.timer = resident.model = None  # the timer holds the resident: a cycle would keep the weights


def _size_bytes(key: Key) -> int:
    """Weights in memory: the published files are float16, so int8 takes half and float32 twice."""
    factor = {"int8": 0.5, "int8_float32": 0.5, "int8_float16": 0.5, "float32": 2.0}.get(key.compute_type, 1.0)
    weights = key.folder / "model.bin"
    return round(weights.stat().st_size * factor) if weights.is_file() else 0


def load_model(key: Key) -> Any:
    """Load from a local folder; nothing is fetched. Raises OutOfMemory, EngineFailed."""
    import ctranslate2
    from faster_whisper import WhisperModel

    ctranslate2.set_random_seed(1)  # windows that are decoded by chance give the same text after each load
    device, _, index = key.device.partition(":")
    try:
        return WhisperModel(
            str(key.folder),
            device=device,
            device_index=int(index or 0),
            compute_type=key.compute_type,
            cpu_threads=key.threads,
            num_workers=key.workers,
            local_files_only=True,
        )
    except (RuntimeError, ValueError) as error:
        raise as_engine_error(error, f"The model in {key.folder.name!r} could not be loaded") from error


def as_engine_error(error: Exception, sentence: str) -> EngineFailed | OutOfMemory:
    """CTranslate2 raises RuntimeError for everything; memory gets its own error."""
    text = str(error)
    if "out of memory" in text.lower() or "bad_alloc" in text:
        return OutOfMemory("There was not enough memory for this model: choose a smaller one (model).")
    return EngineFailed(f"{sentence}: {text.splitlines()[0][:200] if text else type(error).__name__}.", log_tail=text)

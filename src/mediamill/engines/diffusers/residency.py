"""Which pipelines' modules are loaded; least recently used goes first when the budget is short."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mediamill.engines.diffusers import memory
from mediamill.engines.diffusers.memory import Placement
from mediamill.errors import ModelUnavailable


@dataclass(frozen=True)
class Key:
    """What makes two loads the same: the folder, where it is placed, and how."""

    path: Path
    placement: Placement


@dataclass
class Loaded:
    """The shared modules of one pipeline. `names`: catalog entries that used them."""

    key: Key
    pipeline: str
    components: Mapping[str, Any]
    size_bytes: int
    names: set[str] = field(default_factory=set)
    users: int = 0
    used_at_s: float = 0.0
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)
    """Held by an offloaded call: its hooks move the shared modules to and fro."""
    remembered: dict[str, Any] = field(default_factory=dict)
    """What the families learnt about these weights (preview projection, seconds of the last decode)."""

    def shell(self, pipeline: str | None = None, *, steps: int = 0) -> Any:
        """A pipeline object of one call: shared modules, its own scheduler, no progress bar.

        Two calls on one pipeline object disturb each other through the scheduler's state. A schedule of one step cannot
        be stretched to end at `shift_terminal` (diffusers divides zero by zero): it goes from noise to the end.
        """
        import diffusers

        cls = getattr(diffusers, pipeline or self.pipeline)
        scheduler = self.components["scheduler"]
        single = {"shift_terminal": None} if steps == 1 and scheduler.config.get("shift_terminal") else {}
        own = type(scheduler).from_config(scheduler.config, **single)
        shell = cls(**{**self.components, "scheduler": own})
        shell.set_progress_bar_config(disable=True)
        if self.key.placement.offload:
            shell.enable_model_cpu_offload(device=self.key.placement.device)
        return shell


class Residency:
    """Loaded pipelines by key. Loads are one at a time; a pipeline in use is never dropped."""

    def __init__(self, *, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`ttl_s`: an unused pipeline is dropped after this many seconds."""
        self._ttl_s = ttl_s
        self._clock = clock
        self._loaded: dict[Key, Loaded] = {}
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None

    @contextmanager
    def using(self, key: Key, *, name: str, pipeline: str, room_bytes: int, budget: int) -> Iterator[Loaded]:
        """The loaded pipeline, loading it first where needed; not dropped while in use.

        Args:
            key: what to load.
            name: the catalog entry that asks.
            pipeline: diffusers' class name of the folder.
            room_bytes: what the call needs with its weights; others go until that is free within the budget.
            budget: what all resident pipelines may take.

        Raises: ModelUnavailable when the folder cannot be loaded.
        """
        with self._lock:
            loaded = self._loaded.get(key)
            if loaded is None:
                self._make_room(room_bytes, budget)
                loaded = self._loaded[key] = _load(key, pipeline)
                loaded.users += 1
            else:
                loaded.users += 1
                self._make_room(room_bytes - loaded.size_bytes, budget)
            loaded.names.add(name)
        try:
            yield loaded
        finally:
            with self._lock:
                loaded.users -= 1
                loaded.used_at_s = self._clock()
                self._watch()

    def holds(self, key: Key) -> bool:
        """Whether a load is not needed."""
        return key in self._loaded

    def names(self) -> list[str]:
        """Catalog entries whose weights are resident, sorted."""
        with self._lock:
            return sorted({name for loaded in self._loaded.values() for name in loaded.names})

    def drop_unused(self, *, older_than_s: float = 0.0) -> None:
        """Let go of every pipeline nobody uses, or only of those unused for longer."""
        with self._lock:
            limit = self._clock() - older_than_s
            gone = [k for k, v in self._loaded.items() if v.users == 0 and v.used_at_s <= limit]
            devices = {k.placement.device for k in gone}
            for key in gone:
                del self._loaded[key]
            self._watch()
        for device in devices:
            memory.give_back(device)

    def close(self) -> None:
        """Stop the timer and let go of everything."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._loaded.clear()

    def _make_room(self, room_bytes: int, budget: int) -> None:
        idle = sorted((v for v in self._loaded.values() if v.users == 0), key=lambda v: v.used_at_s)
        while idle and sum(v.size_bytes for v in self._loaded.values()) + room_bytes > budget:
            oldest = idle.pop(0)
            del self._loaded[oldest.key]
            memory.give_back(oldest.key.placement.device)

    def _watch(self) -> None:
        """One timer for the next pipeline to grow too old; one that comes too early looks and waits for the rest."""
        idle = [v.used_at_s for v in self._loaded.values() if v.users == 0]
        if idle and self._timer is None:
            wait_s = max(0.0, min(idle) + self._ttl_s - self._clock())
            self._timer = threading.Timer(wait_s, self._grown_old)
            self._timer.daemon = True
            self._timer.start()

    def _grown_old(self) -> None:
        with self._lock:
            self._timer = None
        self.drop_unused(older_than_s=self._ttl_s)


def _load(key: Key, pipeline: str) -> Loaded:
    import diffusers

    cls = getattr(diffusers, pipeline, None)
    if cls is None:
        raise ModelUnavailable(f"{key.path.name}: diffusers {diffusers.__version__} has no pipeline {pipeline!r}.")
    place = key.placement
    try:
        whole = cls.from_pretrained(key.path, dtype=memory.torch_dtype(place.dtype), local_files_only=True)
        if not place.offload:
            whole.to(place.device)
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnavailable(f"The weights in {key.path.name} cannot be loaded: {error}") from error
    modules = {name: value for name, value in whole.components.items() if hasattr(value, "parameters")}
    size = sum(p.numel() * p.element_size() for m in modules.values() for p in m.parameters())
    for module in modules.values():
        module.requires_grad_(requires_grad=False).eval()
    return Loaded(key, pipeline, dict(whole.components), 0 if place.offload else size)

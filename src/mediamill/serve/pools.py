"""Which workers a machine gets: pools and how many jobs each does at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mediamill import catalog
from mediamill.config import Settings
from mediamill.errors import Misconfigured

KINDS = ("cpu", "gpu", "remote")
REMOTE_SLOTS = 100
"""Remote work is awaiting, so one worker carries many."""


@dataclass(frozen=True)
class Pool:
    """A worker process: `gpu:0` is the pool `gpu` on the first device."""

    name: str
    slots: int


def chosen(settings: Settings, names: Sequence[str] = ()) -> list[Pool]:
    """The pools asked for, else what this machine can serve.

    That is the CPU, each GPU or, without one, `gpu` on the CPU, and `remote` where jobs of some model run elsewhere.

    Raises: Misconfigured for a name that is not `cpu`, `gpu`, `gpu:N` or `remote`, and for routes that cannot be.
    """
    catalog.check_routes(settings)
    here = ["cpu", *([f"gpu:{i}" for i in range(gpu_count())] or ["gpu"])]
    wanted = list(names) or [*here, *(["remote"] if catalog.routed(settings) else [])]
    return [Pool(name, slots(settings, name)) for name in wanted]


def slots(settings: Settings, name: str) -> int:
    """Jobs at once of a pool where nothing else is said."""
    kind, _, device = name.partition(":")
    if kind not in KINDS or (device and (kind != "gpu" or not device.isdecimal())):
        raise Misconfigured(f"There is no pool {name!r}; accepted are cpu, gpu, gpu:N and remote.")
    if kind == "cpu":
        return settings.cpu_slots or max(1, cores() // 2)
    return REMOTE_SLOTS if kind == "remote" else 1


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_count() -> int:
    """NVIDIA devices of this machine, by their device files; 0 elsewhere than on Linux."""
    return sum(1 for path in Path("/dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdecimal())

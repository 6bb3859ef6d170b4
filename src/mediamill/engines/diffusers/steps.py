"""What happens at each denoising step of a call: cancel, progress, previews."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mediamill.engines.diffusers import decode, preview
from mediamill.engines.diffusers.pace import Pace
from mediamill.engines.diffusers.plans import Family, Plan
from mediamill.engines.diffusers.residency import Loaded
from mediamill.errors import Cancelled
from mediamill.model import Event, OutputFile, Work

_PREVIEWS = 4
"""Previews of one call, about; neither the first step nor the last has one."""


@dataclass
class Call:
    """One job under way: what the engine's steps hand to each other."""

    work: Work
    scratch: Path
    cancelled: Callable[[], bool]
    say: Callable[[Event], None]
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by part, for the job's output."""

    def check_cancelled(self) -> None:
        """Raises Cancelled once the caller or the worker wants the job to stop."""
        if self.cancelled():
            raise Cancelled

    def note(self, name: str, since_s: float) -> float:
        """Note the time since `since_s` (of `time.perf_counter`); returns now."""
        now_s = time.perf_counter()
        self.timings[name] = round(now_s - since_s, 4)
        return now_s


class Steps:
    """`callback_on_step_end` of one call."""

    def __init__(self, call: Call, family: Family, plan: Plan, loaded: Loaded, pace: Pace) -> None:
        """Time counts from now."""
        self._call = call
        self._family = family
        self._plan = plan
        self._loaded = loaded
        self._pace = pace
        self._every = max(1, plan.steps // _PREVIEWS)
        self._before: Any = None
        self._begun_s = time.perf_counter()

    def __call__(self, shell: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> Mapping[str, Any]:
        """Raises Cancelled to stop the pipeline at once; it stays usable."""
        self._call.check_cancelled()
        done, latents = step + 1, tensors["latents"]
        self._call.note("first_step_s" if done == 1 else "denoise_s", self._begun_s)
        if self._before is not None and done < self._plan.steps and done % self._every == 0:
            self._preview(shell, done, latents)
        self._before = latents
        self._call.say(self._pace.step())
        return tensors

    def _preview(self, shell: Any, done: int, latents: Any) -> None:
        decode.check_finite(latents)
        if self._loaded.key.placement.offload:
            return  # fitting would swap modules in the middle of a call
        volume = self._family.unpacked(shell, preview.predicted(shell.scheduler, self._before, latents), self._plan)
        if volume is None:
            return
        projection = self._loaded.remembered.get("projection")
        if projection is None:
            projection = self._loaded.remembered["projection"] = preview.fit(self._family, shell.vae)
        path = self._call.scratch / f"preview-{done}.png"
        preview.write(volume, projection, path)
        self._call.say(OutputFile(path.name, path, "image/png", preview=True))

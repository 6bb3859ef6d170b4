"""What a family of pipelines tells the engine about one request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from mediamill.catalog import Weights
from mediamill.engines.diffusers.geometry import Frame, frames_up, grid_up
from mediamill.engines.diffusers.locate import Located
from mediamill.model import Json, Work

DRAWN_SEEDS = 2**32


@dataclass(frozen=True)
class Plan:
    """One call: what is delivered, and what the pipeline is asked for to get it."""

    pipeline: str
    """Class name in diffusers."""
    call: Mapping[str, Any]
    """Arguments of the pipeline, but for generator, callback and output type."""
    width_px: int
    height_px: int
    grid_width_px: int
    grid_height_px: int
    seed: int
    steps: int
    """Denoising steps that will be run."""
    activations_bytes: int
    """Estimated peak besides the weights, at 2 bytes a number; the engine scales it to the dtype."""
    lower: str
    """The sentence that says what to lower when memory is short."""
    frames: int = 1
    grid_frames: int = 1
    fps: Fraction | None = None
    """None: a still picture."""
    low_vram: bool = False
    facts: Mapping[str, Json] = field(default_factory=dict)
    """More for the job's output."""


Callback = Callable[[Any, int, Any, dict[str, Any]], Mapping[str, Any]]
"""`callback_on_step_end` of diffusers: (pipeline, step, timestep, tensors) -> tensors."""


class Family(Protocol):
    """A module of this folder: how one family of pipelines is called."""

    PIPELINES: tuple[str, ...]
    """Class names it runs, empty for any; what `MODEL_NAME` names is used when its class is among them."""

    def plan(self, work: Work, weights: Weights, found: Located) -> Plan:
        """The call for a request. Raises InvalidRequest or UnsupportedMedia before anything is loaded."""
        ...

    def generate(self, shell: Any, plan: Plan, *, callback: Callback, generator: Any) -> Iterator[Frame]:
        """Denoise at the first step of the iterator, then yield exact frames while the decoder makes them."""
        ...

    def unpacked(self, shell: Any, latents: Any, plan: Plan) -> Any:
        """Latents of a callback as (C, F, h, w), or None when this family has no previews."""
        ...

    def encoded(self, vae: Any, pictures: Any) -> Any:
        """Pictures (n, 3, H, W) in -1..1 as latents (n, C, h, w) in the space that callbacks see."""
        ...


def seed_of(work: Work) -> int:
    """The request's seed, or one drawn from the job's id: a second attempt makes the same picture."""
    named = work.params.get("seed")
    if named is not None:
        return int(named)
    return int.from_bytes(hashlib.sha256(work.job_id.encode()).digest()[:8], "big") % DRAWN_SEEDS


def grid_of(work: Work, weights: Weights) -> tuple[int, int, int, int]:
    """Width and height as asked, and on the model's grid."""
    width, height = int(work.params["width"]), int(work.params["height"])
    return width, height, grid_up(width, weights.size_multiple), grid_up(height, weights.size_multiple)


def grid_frames_of(work: Work, weights: Weights) -> tuple[int, int]:
    """Frames as asked, and as the model can make them."""
    frames = int(work.params["num_frames"])
    return frames, frames_up(frames, weights.frame_multiple) if weights.frame_multiple else frames

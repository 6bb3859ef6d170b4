"""Any pipeline that diffusers knows by its model_index.json: a catalog entry is all such a model needs.

The entry's request fields are passed to the pipeline's call under their own names, with `steps` as
`num_inference_steps` and an input file `image_url` as `image`; fields the call does not know are left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from mediamill.catalog import Weights
from mediamill.engines.diffusers.decode import NOT_FINITE
from mediamill.engines.diffusers.geometry import Frame, centre_crop, covering
from mediamill.engines.diffusers.locate import Located
from mediamill.engines.diffusers.plans import Callback, Plan, grid_frames_of, grid_of, seed_of
from mediamill.errors import EngineFailed, ModelUnavailable
from mediamill.model import Work

PIPELINES = ()
_ENVELOPE = frozenset({"seed", "width", "height", "num_frames", "fps", "steps", "low_vram"})
_BYTES_PER_PIXEL = 1600


def plan(work: Work, weights: Weights, found: Located) -> Plan:
    """See Family."""
    params = work.params
    width, height, grid_width, grid_height = grid_of(work, weights)
    frames, grid_frames = grid_frames_of(work, weights) if weights.frame_multiple else (1, 1)
    known = _parameters(found.pipeline)
    steps = int(params.get("steps") or params.get("num_inference_steps") or 1)
    wanted: dict[str, Any] = {k: v for k, v in params.items() if k not in _ENVELOPE and k not in work.inputs}
    wanted |= {"width": grid_width, "height": grid_height, "num_frames": grid_frames, "num_inference_steps": steps}
    wanted["frame_rate"] = params.get("fps")
    for name, file in work.inputs.items():
        wanted[name.removesuffix("_url")] = covering(file, width_px=grid_width, height_px=grid_height)
    return Plan(
        pipeline=found.pipeline,
        call={k: v for k, v in wanted.items() if k in known and v is not None},
        width_px=width,
        height_px=height,
        grid_width_px=grid_width,
        grid_height_px=grid_height,
        seed=seed_of(work),
        steps=steps,
        activations_bytes=grid_width * grid_height * grid_frames * _BYTES_PER_PIXEL,
        lower=f"Lower width and height (now {width}x{height})"
        + (f" or num_frames (now {frames})." if weights.frame_multiple else "."),
        frames=frames,
        grid_frames=grid_frames,
        fps=Fraction(params["fps"]).limit_denominator(1001) if weights.frame_multiple else None,
        low_vram=bool(params.get("low_vram", False)),
    )


def _parameters(pipeline: str) -> frozenset[str]:
    import diffusers

    cls = getattr(diffusers, pipeline, None)
    if cls is None:
        raise ModelUnavailable(f"diffusers {diffusers.__version__} has no pipeline {pipeline!r}.")
    return frozenset(inspect.signature(cls.__call__).parameters)


def generate(shell: Any, plan: Plan, *, callback: Callback, generator: Any) -> Iterator[Frame]:
    """See Family."""
    result = shell(**plan.call, generator=generator, callback_on_step_end=callback, output_type="np")
    frames = np.asarray(result[0])
    volume = frames[0] if plan.fps is not None else frames[:1]
    if not np.isfinite(volume).all():
        raise EngineFailed(NOT_FINITE)
    for frame in volume[: plan.frames]:
        eight_bit = np.rint(frame * 255).astype(np.uint8)
        yield centre_crop(eight_bit, width_px=plan.width_px, height_px=plan.height_px)


def unpacked(shell: Any, latents: Any, plan: Plan) -> Any:  # noqa: ARG001 - Family
    """See Family."""
    return None


def encoded(vae: Any, pictures: Any) -> Any:
    """See Family."""
    raise NotImplementedError

"""Z-Image, turbo and base: text to image, image to image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mediamill.catalog import Weights
from mediamill.engines.diffusers.decode import check_finite, to_frames
from mediamill.engines.diffusers.geometry import Frame, covering
from mediamill.engines.diffusers.locate import Located
from mediamill.engines.diffusers.plans import Callback, Plan, grid_of, seed_of
from mediamill.model import Work

PIPELINES = ("ZImagePipeline",)
_DECODER_BYTES_PER_PIXEL = 1600
"""Peak of the image decoder at full size: three (256, H, W) half-precision tensors."""
_TOKEN_BYTES = 400_000
"""Peak of a transformer block for one 16x16-pixel token, at batch 1 in half precision."""


def plan(work: Work, weights: Weights, found: Located) -> Plan:  # noqa: ARG001 - Family
    """See Family."""
    params = work.params
    width, height, grid_width, grid_height = grid_of(work, weights)
    guidance = float(params["guidance_scale"])
    call: dict[str, Any] = {
        "prompt": params["prompt"],
        "negative_prompt": params.get("negative_prompt") or None,
        "width": grid_width,
        "height": grid_height,
        "num_inference_steps": int(params["steps"]),
        "guidance_scale": guidance,
    }
    steps, pipeline = int(params["steps"]), "ZImagePipeline"
    picture = work.inputs.get("image_url")
    if picture is not None:
        strength = float(params["strength"])
        call |= {
            "image": covering(picture, width_px=grid_width, height_px=grid_height),
            "strength": strength,
        }
        steps, pipeline = steps - int(max(steps - steps * strength, 0)), "ZImageImg2ImgPipeline"
    tokens = (grid_width // 16) * (grid_height // 16) * (2 if guidance > 0 else 1)
    return Plan(
        pipeline=pipeline,
        call=call,
        width_px=width,
        height_px=height,
        grid_width_px=grid_width,
        grid_height_px=grid_height,
        seed=seed_of(work),
        steps=max(1, steps),
        activations_bytes=max(grid_width * grid_height * _DECODER_BYTES_PER_PIXEL, tokens * _TOKEN_BYTES),
        lower=f"Lower width and height (now {width}x{height}).",
    )


def generate(shell: Any, plan: Plan, *, callback: Callback, generator: Any) -> Iterator[Frame]:
    """See Family."""
    result = shell(**plan.call, generator=generator, callback_on_step_end=callback, output_type="latent")
    latents = result.images
    check_finite(latents)
    vae = shell.vae
    latents = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
    picture = vae.decode(latents, return_dict=False)[0]
    yield from to_frames(iter([picture[:, :, None]]), count=1, width_px=plan.width_px, height_px=plan.height_px)


def unpacked(shell: Any, latents: Any, plan: Plan) -> Any:  # noqa: ARG001 - Family
    """See Family."""
    return latents[0][:, None]


def encoded(vae: Any, pictures: Any) -> Any:
    """See Family."""
    mode = vae.encode(pictures).latent_dist.mode()
    return (mode - vae.config.shift_factor) * vae.config.scaling_factor

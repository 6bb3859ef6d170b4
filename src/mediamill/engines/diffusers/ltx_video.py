"""LTX-Video: text to video, image to video."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from mediamill.catalog import Weights
from mediamill.engines.diffusers.decode import check_finite, in_stretches, to_frames
from mediamill.engines.diffusers.geometry import Frame, covering
from mediamill.engines.diffusers.locate import Located
from mediamill.engines.diffusers.plans import Callback, Plan, grid_frames_of, grid_of, seed_of
from mediamill.model import Work

PIPELINES = ("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline")
DECODE_TIMESTEP = 0.05
DECODE_NOISE = 0.025
"""What decoders with timestep conditioning (0.9.1 and later) are made for; the older ones ignore both."""
TILE_LATENTS = 12
OVERLAP_LATENTS = 3
"""Clips of up to 89 frames decode whole; longer ones in stretches of 89 frames that share 17."""
_TOKEN_BYTES = 400_000
_DECODER_BYTES_PER_PIXEL = 200
"""Peak of the video decoder for one pixel of one frame: it works on 4x4-pixel patches."""


def plan(work: Work, weights: Weights, found: Located) -> Plan:
    """See Family."""
    params = work.params
    width, height, grid_width, grid_height = grid_of(work, weights)
    frames, grid_frames = grid_frames_of(work, weights)
    picture = work.inputs.get("image_url")
    if picture is not None:
        grid_frames = max(grid_frames, weights.frame_multiple + 1)  # one frame would be the picture itself
    guidance = float(params["guidance_scale"])
    call: dict[str, Any] = {
        "prompt": params["prompt"],
        "negative_prompt": params.get("negative_prompt") or "",
        "width": grid_width,
        "height": grid_height,
        "num_frames": grid_frames,
        "frame_rate": int(params["fps"]),
        "num_inference_steps": int(params["num_inference_steps"]),
        "guidance_scale": guidance,
    }
    if picture is not None:
        call["image"] = covering(picture, width_px=grid_width, height_px=grid_height)
    pipeline = "LTXPipeline" if picture is None else "LTXImageToVideoPipeline"
    if found.pipeline == "LTXConditionPipeline":  # 0.9.5 and later: other noise levels, and both kinds of work
        pipeline = found.pipeline
        if call["num_inference_steps"] == 1:
            call["timesteps"] = [1000.0]  # its own schedule divides by half the steps
    latent_frames = (grid_frames - 1) // 8 + 1
    tokens = latent_frames * (grid_width // 32) * (grid_height // 32) * (2 if guidance > 1 else 1)
    at_once = min(grid_frames, 8 * (TILE_LATENTS - 1) + 1)
    return Plan(
        pipeline=pipeline,
        call=call,
        width_px=width,
        height_px=height,
        grid_width_px=grid_width,
        grid_height_px=grid_height,
        seed=seed_of(work),
        steps=int(params["num_inference_steps"]),
        activations_bytes=max(tokens * _TOKEN_BYTES, at_once * grid_width * grid_height * _DECODER_BYTES_PER_PIXEL),
        lower=f"Lower width and height (now {width}x{height}) or num_frames (now {frames}).",
        frames=frames,
        grid_frames=grid_frames,
        fps=Fraction(int(params["fps"])),
    )


def generate(shell: Any, plan: Plan, *, callback: Callback, generator: Any) -> Iterator[Frame]:
    """See Family."""
    result = shell(**plan.call, generator=generator, callback_on_step_end=callback, output_type="latent")
    check_finite(result.frames)
    packed = result.frames.ndim == 3  # noqa: PLR2004 - (B, tokens, C); LTXConditionPipeline unpacks by itself
    volume = _volume(shell, result.frames, plan) if packed else result.frames
    latents, timestep = _for_decoder(shell, volume, generator)

    def decode(part: Any) -> Any:
        return shell.vae.decode(part, timestep, return_dict=False)[0]

    parts = in_stretches(
        decode,
        latents,
        tile=TILE_LATENTS,
        overlap=OVERLAP_LATENTS,
        frames_per_latent=shell.vae_temporal_compression_ratio,
    )
    yield from to_frames(parts, count=plan.frames, width_px=plan.width_px, height_px=plan.height_px)


def _volume(shell: Any, latents: Any, plan: Plan) -> Any:
    """Packed latents (B, tokens, C) as (B, C, F, h, w), still normalised."""
    return shell._unpack_latents(  # noqa: SLF001 - the packing is the pipeline's own
        latents,
        (plan.grid_frames - 1) // shell.vae_temporal_compression_ratio + 1,
        plan.grid_height_px // shell.vae_spatial_compression_ratio,
        plan.grid_width_px // shell.vae_spatial_compression_ratio,
        shell.transformer_spatial_patch_size,
        shell.transformer_temporal_patch_size,
    )


def _for_decoder(shell: Any, volume: Any, generator: Any) -> tuple[Any, Any]:
    """Denormalised latents in the decoder's type, and its timestep where it wants one."""
    import torch
    from diffusers.utils.torch_utils import randn_tensor

    vae = shell.vae
    latents = shell._denormalize_latents(  # noqa: SLF001 - as above
        volume, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
    ).to(vae.dtype)
    if not vae.config.timestep_conditioning:
        return latents, None
    noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
    timestep = torch.tensor([DECODE_TIMESTEP], device=latents.device, dtype=latents.dtype)
    return (1 - DECODE_NOISE) * latents + DECODE_NOISE * noise, timestep


def unpacked(shell: Any, latents: Any, plan: Plan) -> Any:
    """See Family."""
    return _volume(shell, latents, plan)[0]


def encoded(vae: Any, pictures: Any) -> Any:
    """See Family."""
    mode = vae.encode(pictures[:, :, None]).latent_dist.mode()[:, :, 0]
    mean, std = (v.view(1, -1, 1, 1).to(mode) for v in (vae.latents_mean, vae.latents_std))
    return (mode - mean) * vae.config.scaling_factor / std

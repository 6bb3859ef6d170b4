"""A look at unfinished latents without decoding them: a linear map from latent channels to RGB.

The map is fitted once to the loaded autoencoder, by encoding smooth pictures and solving for their colours, so it
needs no table of numbers for any model. What is shown is the prediction of the finished latents, not the noise: two
consecutive latents of an Euler flow step give it exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from mediamill.engines.diffusers.plans import Family

_PICTURES = 48
_SIDE_PX = 96
_RIDGE = 1e-3
_LONG_SIDE_PX = 256


def fit(family: Family, vae: Any) -> Any:
    """The (C + 1, 3) map from normalised latents and a constant to RGB in 0..1, on the CPU."""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d, interpolate

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((_PICTURES, 3, 4, 4), generator=generator)
    pictures = interpolate(coarse, size=(_SIDE_PX, _SIDE_PX), mode="bilinear", align_corners=False)
    with torch.no_grad():
        latents = family.encoded(vae, (pictures * 2 - 1).to(vae.device, vae.dtype)).float().cpu()
    colours = adaptive_avg_pool2d(pictures, latents.shape[-2:])
    x = _with_constant(latents.movedim(1, -1).flatten(0, 2))
    y = colours.movedim(1, -1).flatten(0, 2)
    gram = x.T @ x + _RIDGE * len(x) * torch.eye(x.shape[1])
    return torch.linalg.solve(gram, x.T @ y)


def _with_constant(rows: Any) -> Any:
    import torch

    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)


def predicted(scheduler: Any, before: Any, after: Any) -> Any:
    """The finished latents that the last step was heading for."""
    index = int(scheduler.step_index)
    sigma, sigma_next = float(scheduler.sigmas[index - 1]), float(scheduler.sigmas[index])
    if sigma == sigma_next:
        return after
    return after - sigma_next * (after - before) / (sigma_next - sigma)


def write(latents: Any, projection: Any, path: Path) -> None:
    """The middle frame of latents (C, F, h, w) as a PNG of at most 256 pixels a side."""
    middle = latents[:, latents.shape[1] // 2].float().cpu()
    channels, height, width = middle.shape
    rows = _with_constant(middle.movedim(0, -1).reshape(-1, channels))
    pixels = (rows @ projection).clamp(0, 1).mul(255).round().byte().reshape(height, width, 3).numpy()
    scale = max(1, _LONG_SIDE_PX // max(height, width))
    Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.BICUBIC).save(
        path, "PNG", compress_level=1
    )

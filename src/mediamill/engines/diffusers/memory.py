"""What a call will need before anything is loaded, and what the device has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mediamill.engines.diffusers.locate import Located
from mediamill.errors import ModelUnavailable, OutOfMemory

_GIB = 1024**3
_DTYPES: Mapping[str, str] = {
    "float16": "float16",
    "fp16": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float32": "float32",
    "fp32": "float32",
}
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CUDA_SHARE = 0.94
"""The rest is the CUDA context and what the allocator cannot give back."""


@dataclass(frozen=True)
class Placement:
    """`offload`: components visit the device one at a time instead of staying on it."""

    device: str
    dtype: str
    offload: bool = False


@dataclass(frozen=True)
class Need:
    """Bytes. Weights are exact (read from the files' headers); `activations_bytes` is an estimate from the size."""

    weights_bytes: int
    largest_component_bytes: int
    activations_bytes: int

    @property
    def resident_bytes(self) -> int:
        """With every component on the device."""
        return self.weights_bytes + self.activations_bytes

    @property
    def offloaded_bytes(self) -> int:
        """With one component at a time on the device."""
        return self.largest_component_bytes + self.activations_bytes


def placement(settings: Mapping[str, str]) -> Placement:
    """`DEVICE` and `DTYPE`; unset: CUDA when present, bfloat16 where the device computes in it, else float32 on CPU.

    Raises: ModelUnavailable for a device that is not here, or a type that no pipeline runs in.
    """
    import torch

    device = _device(settings.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))
    named = settings.get("DTYPE")
    if named:
        return Placement(device, _dtype(named))
    if device.startswith("cuda"):
        return Placement(device, "bfloat16" if torch.cuda.is_bf16_supported() else "float16")
    return Placement(device, "float32")


def _device(named: str) -> str:
    import torch

    here = {"cpu": 1}
    other = torch.accelerator.current_accelerator(check_available=True)
    if other is not None:
        here[other.type] = torch.accelerator.device_count()
    plain = named.strip().lower()
    try:
        device = torch.device(plain)
    except RuntimeError:
        device = None
    if device is None or (device.index or 0) >= here.get(device.type, 0):
        accepted = ", ".join(
            kind if count == 1 else f"{kind}, {kind}:0 to {kind}:{count - 1}" for kind, count in here.items()
        )
        raise ModelUnavailable(f"DEVICE {named!r} is no device of this machine; accepted here: {accepted}.")
    return plain


def _dtype(named: str) -> str:
    known = _DTYPES.get(named.strip().lower())
    if known is None:
        raise ModelUnavailable(f"DTYPE {named!r} is not one of float16, bfloat16, float32.")
    return known


def need(found: Located, dtype_bytes: int, activations_bytes: int) -> Need:
    """What a located pipeline needs at a number of bytes for each weight."""
    sizes = [n * dtype_bytes for n in found.component_params.values()]
    return Need(sum(sizes), max(sizes, default=0), activations_bytes)


def budget_bytes(device: str, settings: Mapping[str, str]) -> int:
    """What models and their work may take on the device: `MEDIAMILL_MODEL_MEMORY_BYTES`, else what it has."""
    named = settings.get("MEDIAMILL_MODEL_MEMORY_BYTES")
    if named:
        return int(named)
    if device.startswith("cuda"):
        import torch

        free, _total = torch.cuda.mem_get_info(torch.device(device))
        return int((free + torch.cuda.memory_reserved(torch.device(device))) * _CUDA_SHARE)
    here: int = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    return min(here, int(limit)) if limit.isdigit() else here


def choose(wanted: Placement, needed: Need, budget: int, *, name: str, lower: str, low_vram: bool) -> Placement:
    """Everything on the device when it fits, else one component at a time.

    Raises: OutOfMemory when neither fits; the message says what to lower, where that can help.
    """
    can_offload = wanted.device != "cpu" or low_vram
    if needed.resident_bytes <= budget and not low_vram:
        return wanted
    if can_offload and needed.offloaded_bytes <= budget:
        return Placement(wanted.device, wanted.dtype, offload=True)
    least = needed.offloaded_bytes if can_offload else needed.resident_bytes
    weights = least - needed.activations_bytes
    mend = lower if weights < budget else f"Its weights alone take {weights / _GIB:.2f} GiB: it needs a larger device."
    raise OutOfMemory(
        f"Out of memory: {name} needs about {least / _GIB:.2f} GiB for this request and {wanted.device} has "
        f"{budget / _GIB:.2f} GiB for models. {mend}"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a foreign error means that an allocation failed, on a GPU or on the CPU."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def give_back(device: str) -> None:
    """Return cached blocks to the device, so that the next job starts clean."""
    import gc

    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def torch_dtype(name: str) -> Any:
    """The torch dtype of a placement's `dtype`."""
    import torch

    return getattr(torch, name)

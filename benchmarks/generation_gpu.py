"""Generation on a GPU at full size: stock diffusers beside ours, the arithmetic floor, and levers one by one.

    python benchmarks/generation_gpu.py --model zimage

Full-size configuration with random weights (speed does not depend on their values), written to a folder in the ordinary
format and loaded from there by both. Random weights say nothing of quality; each lever's error is against the
unchanged output of the same weights and seed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediamill.engines import diffusers as engine_module
from mediamill.model import EngineContext, OutputData, OutputFile, Work
from tests.fixtures_tiny import work_of
from tests.tiny_pipelines import build_zimage

AIM_S = {("zimage", 1024, 8): 0.9}
"""1024x1024, 8 steps, on one H200."""
PROMPT = "A photorealistic portrait of a businesswoman in a bright office, shallow depth of field"


@dataclass(frozen=True)
class Setup:
    """What is measured."""

    folder: Path
    device: str
    dtype: str
    size_px: int
    steps: int
    rounds: int

    @property
    def call(self) -> dict[str, Any]:
        """The request as a bare diffusers call."""
        return {
            "prompt": PROMPT,
            "width": self.size_px,
            "height": self.size_px,
            "num_inference_steps": self.steps,
            "guidance_scale": 0.0,
        }

    @property
    def work(self) -> Work:
        """The same request as our job."""
        return work_of("zimage", prompt=PROMPT, width=self.size_px, height=self.size_px, steps=self.steps, seed=7)


def main() -> None:
    """Parse, build, measure, print one report."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["zimage"], default="zimage")
    parser.add_argument("--scale", choices=["full", "tiny"], default="full", help="tiny: to try this script on a CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes a minute")
    chosen = parser.parse_args()
    root = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="mediamill-bench-", dir=root))
    try:
        build_zimage(folder / "model", scale=chosen.scale, device=chosen.device, dtype=chosen.dtype)
        setup = Setup(folder / "model", chosen.device, chosen.dtype, chosen.size, chosen.steps, chosen.rounds)
        report(setup, model=chosen.model, scratch=folder, compiling=not chosen.no_compile)
    finally:
        shutil.rmtree(folder)


def report(setup: Setup, *, model: str, scratch: Path, compiling: bool) -> None:
    """Print everything for one setup."""
    _header(setup, model)
    pipe, load_s = _loaded(setup)
    print(f"stock diffusers: weights loaded in {load_s:.1f} s (file system cache warm)")
    terafloats = _terafloats(pipe, setup)
    rate = _matmul_rate(setup)
    floor_s = terafloats / rate
    print(
        f"arithmetic: {terafloats:.2f} TFLOP a request; a large {setup.dtype} matmul here {rate:.1f} TFLOP/s: floor {floor_s:.3f} s"
    )
    reference, stock_s = _timed(lambda: _picture(pipe, setup), setup)
    aim_s = AIM_S.get((model, setup.size_px, setup.steps))
    print(f"\n{'way':38} {'median s':>9} {'floor share':>12} {'max err':>8} {'mean err':>9}")
    _row("stock diffusers", stock_s, floor_s, reference, reference)
    _ours(setup, scratch, floor_s, reference, aim_s)
    for name, lever in _levers(compiling=compiling):
        _try(name, lever, pipe, setup, floor_s, reference)


def _header(setup: Setup, model: str) -> None:

    device = torch.cuda.get_device_name() if setup.device.startswith("cuda") else "CPU"
    print(
        f"{time.strftime('%Y-%m-%d')} {model} {setup.size_px}x{setup.size_px}, {setup.steps} steps, {setup.dtype}, "
        f"{device}, torch {torch.__version__}, diffusers {diffusers.__version__}"
    )


def _loaded(setup: Setup) -> tuple[Any, float]:

    begun_s = time.perf_counter()
    pipe = diffusers.ZImagePipeline.from_pretrained(setup.folder, dtype=getattr(torch, setup.dtype)).to(setup.device)
    pipe.set_progress_bar_config(disable=True)
    _wait(setup)
    return pipe, time.perf_counter() - begun_s


def _picture(pipe: Any, setup: Setup, **call: Any) -> np.ndarray:

    made = pipe(**{**setup.call, **call}, generator=torch.Generator("cpu").manual_seed(7), output_type="np")
    return np.rint(made.images[0] * 255).astype(np.uint8)


def _timed(call: Callable[[], np.ndarray], setup: Setup) -> tuple[np.ndarray, float]:
    """The picture and the median seconds, after two rounds of warming up."""
    picture = call()
    call()
    taken = []
    for _ in range(setup.rounds):
        _wait(setup)
        begun_s = time.perf_counter()
        picture = call()
        _wait(setup)
        taken.append(time.perf_counter() - begun_s)
    return picture, statistics.median(taken)


def _wait(setup: Setup) -> None:

    if setup.device.startswith("cuda"):
        torch.cuda.synchronize()


def _terafloats(pipe: Any, setup: Setup) -> float:
    """Counted on one real call; element-wise work is not in it."""

    with FlopCounterMode(display=False) as counter:
        _picture(pipe, setup)
    return counter.get_total_flops() / 1e12


def _matmul_rate(setup: Setup) -> float:
    """TFLOP/s of a large square matrix product, measured here and now."""

    side = 8192 if setup.device.startswith("cuda") else 1024
    a = torch.randn(side, side, device=setup.device, dtype=getattr(torch, setup.dtype))
    taken = []
    for _ in range(12):
        _wait(setup)
        begun_s = time.perf_counter()
        a @ a
        _wait(setup)
        taken.append(time.perf_counter() - begun_s)
    return 2 * side**3 / statistics.median(taken[2:]) / 1e12


def _row(name: str, seconds: float, floor_s: float, picture: np.ndarray, reference: np.ndarray, note: str = "") -> None:
    error = np.abs(picture.astype(int) - reference.astype(int))
    print(f"{name:38} {seconds:9.3f} {floor_s / seconds:11.1%} {error.max():8d} {error.mean():9.3f}  {note}".rstrip())


def _ours(setup: Setup, scratch: Path, floor_s: float, reference: np.ndarray, aim_s: float | None) -> None:
    """The whole engine: checks, previews, PNG file. Its own copy of the weights is loaded beside the stock one."""

    engine = engine_module.create(
        {
            "MEDIAMILL_MODEL_ZIMAGE": str(setup.folder),
            "DEVICE": setup.device,
            "DTYPE": setup.dtype,
            "MEDIAMILL_MODEL_MEMORY_BYTES": str(2**50),
        }
    )
    parts: dict[str, float] = {}
    cold: dict[str, float] = {}

    def run() -> np.ndarray:
        path = Path()
        folder = Path(tempfile.mkdtemp(dir=scratch))
        for event in engine.run(setup.work, EngineContext(folder, threading.Event())):
            if isinstance(event, OutputFile) and not event.preview:
                path = event.path
            elif isinstance(event, OutputData):
                parts.update(event.values["seconds"])
                cold.update(cold or event.values["seconds"])
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))

    picture, seconds = _timed(run, setup)
    note = f"(aim: {aim_s} s on one H200)" if aim_s else ""
    _row("mediamill engine, PNG file", seconds, floor_s, picture, reference, note)
    shown = "  ".join(f"{k} {v:.3f}" for k, v in parts.items() if k not in {"import_s", "load_s"})
    print(f"  of which: {shown}; first call: load_s {cold['load_s']:.1f}, first_step_s {cold['first_step_s']:.2f}")
    engine.close()


Lever = Callable[[Any, Setup], Any]
"""A context manager that changes the pipeline, or its call, for as long as it is open."""


def _levers(*, compiling: bool) -> Iterator[tuple[str, Lever]]:
    for backend in ("_native_cudnn", "_native_flash", "_native_math", "flash_hub", "_flash_3_hub"):
        yield f"attention: {backend}", _attention(backend)
    yield "VAE channels_last", _channels_last
    yield "prompt embeddings kept", _embeddings
    if compiling:
        yield "transformer blocks compiled", _compiled
    yield "torchao float8 dynamic (last: stays)", _float8


def _try(name: str, lever: Lever, pipe: Any, setup: Setup, floor_s: float, reference: np.ndarray) -> None:
    """One lever alone; what this machine cannot do is said."""
    try:
        with lever(pipe, setup) as call:
            picture, seconds = _timed(lambda: _picture(pipe, setup, **(call or {})), setup)
    except Exception as error:  # noqa: BLE001 - a lever that does not work here is a row of the table
        print(
            f"{name:38} not possible here: {type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}"
        )
        return
    _row(name, seconds, floor_s, picture, reference)


def _attention(backend: str) -> Lever:
    @contextmanager
    def lever(pipe: Any, _setup: Setup) -> Iterator[None]:
        pipe.transformer.set_attention_backend(backend)
        try:
            yield
        finally:
            pipe.transformer.set_attention_backend("native")

    return lever


@contextmanager
def _channels_last(pipe: Any, _setup: Setup) -> Iterator[None]:

    pipe.vae.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        pipe.vae.to(memory_format=torch.contiguous_format)


@contextmanager
def _embeddings(pipe: Any, setup: Setup) -> Iterator[dict[str, Any]]:

    with torch.no_grad():
        embeds, _ = pipe.encode_prompt(PROMPT, device=setup.device, do_classifier_free_guidance=False)
    yield {"prompt": None, "prompt_embeds": embeds}


@contextmanager
def _compiled(pipe: Any, _setup: Setup) -> Iterator[None]:

    pipe.transformer.compile_repeated_blocks(fullgraph=True)
    try:
        yield
    finally:
        for module in pipe.transformer.modules():
            module._compiled_call_impl = None  # noqa: SLF001 - torch has no public way back
        torch._dynamo.reset()  # noqa: SLF001


@contextmanager
def _float8(pipe: Any, _setup: Setup) -> Iterator[None]:
    from torchao.quantization import (  # noqa: PLC0415 - a lever of its own, seldom installed
        Float8DynamicActivationFloat8WeightConfig,
        quantize_,
    )

    quantize_(pipe.transformer, Float8DynamicActivationFloat8WeightConfig())
    yield


if __name__ == "__main__":
    main()

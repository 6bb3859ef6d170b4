"""What mediamill adds to a diffusers call, on a CPU, at a size at which the model itself costs next to nothing.

    python benchmarks/generation_cpu.py [--rounds 60]

Tiny random weights, 64x64, 2 steps, one compute thread (several threads wait for each other on a busy machine, which is
not what is measured here). Three tables: the time of the same request as a bare diffusers call (pictures as an
array), as one whose pictures then go into the same file that we deliver, in the engine (file, progress, checks), and
as a job through the worker's child process, interleaved in one run; a cold start by part; and what the API process
imports. The load of the machine stands beside them: other work shows in the p95 first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes inherit it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import diffusers
import numpy as np
import torch
import transformers

from mediamill.config import Settings
from mediamill.engines import diffusers as engine_module
from mediamill.engines.diffusers import output
from mediamill.model import EngineContext, OutputData, Phase, Progress, Work
from mediamill.providers import local
from tests.fixtures_tiny import work_of
from tests.tiny_pipelines import build_ltx_video, build_zimage

AIM_P95_MS = 30.0
WAITED_S = 20.0
REQUESTS: dict[str, dict[str, Any]] = {
    "zimage": {"prompt": "a red fox", "width": 64, "height": 64, "steps": 2, "seed": 7},
    "ltx-video": {
        "prompt": "a red fox",
        "width": 64,
        "height": 64,
        "num_frames": 9,
        "num_inference_steps": 2,
        "seed": 7,
    },
}


def main() -> None:
    """Build, measure, print."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="mediamill-bench-") as name:
        folder = Path(name)
        models = {
            "ZIMAGE": str(build_zimage(folder / "zimage")),
            "LTX_VIDEO": str(build_ltx_video(folder / "ltx-video")),
        }
        settings = Settings(_env_file=None, data_dir=folder / "data", device="cpu", model_locations=models)
        _versions()
        print("\ncold start, one job in a fresh child process, seconds (median of 3)")
        for model in REQUESTS:
            runs = [asyncio.run(_cold(settings, folder, model)) for _ in range(3)]
            print(f"  {model:10}", "  ".join(f"{k} {statistics.median(r[k] for r in runs):.2f}" for k in runs[0]))
            waited = asyncio.run(_cold(settings, folder, model, waited_s=WAITED_S))
            print(
                f"  {model:10}",
                f"after {WAITED_S:.0f} s of waiting:",
                " ".join(f"{k} {v:.2f}" for k, v in waited.items()),
            )
        print(f"\none warm request, ms, {rounds} rounds interleaved (median / p95)")
        for model in REQUESTS:
            _overhead(settings, folder, model, rounds)
    print("\nthe API process")
    _api_process()


def _versions() -> None:
    print(
        f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


async def _cold(settings: Settings, folder: Path, model: str, *, waited_s: float = 0.0) -> dict[str, float]:
    """`waited_s`: how long before its first job a worker made its child ready."""
    provider = local.create(settings, pool="gpu")
    if waited_s:
        await provider.prepare()
        await asyncio.sleep(waited_s)
    begun_s = time.perf_counter()
    first_step_s: float | None = None
    parts: dict[str, float] = {}
    try:
        async for event in provider.run(_work(model), scratch=_scratch(folder), deadline_s=300):
            if isinstance(event, Progress) and event.phase is Phase.GENERATING and first_step_s is None:
                first_step_s = time.perf_counter() - begun_s
            elif isinstance(event, OutputData):
                parts = dict(event.values["seconds"])
    finally:
        await provider.close()
    assert first_step_s is not None
    inside = parts["import_s"] + parts["load_s"] + parts["first_step_s"]
    return {
        "process": max(0.0, first_step_s - inside),
        "libraries": parts["import_s"],
        "weights": parts["load_s"],
        "text and first step": parts["first_step_s"],
        "| first step after": first_step_s,
    }


def _overhead(settings: Settings, folder: Path, model: str, rounds: int) -> None:
    location = settings.model_location(model) or ""
    bare, bare_file = _bare(location, model, folder)
    name = f"MEDIAMILL_MODEL_{model.upper().replace('-', '_')}"
    engine = engine_module.create({name: location, "DEVICE": "cpu"})
    with asyncio.Runner() as runner:
        provider = local.create(settings, pool="gpu")

        def in_engine() -> None:
            for _ in engine.run(_work(model), EngineContext(_scratch(folder), threading.Event())):
                pass

        def as_job() -> None:
            runner.run(_drain(provider, folder, model))

        ways = {
            "bare diffusers": bare,
            "bare, and the file": bare_file,
            "engine": in_engine,
            "job in the child": as_job,
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for way in ways.values():
            for _ in range(3):
                way()
        for _ in range(rounds):
            for way, call in ways.items():
                taken[way].append(_ms(call))
        runner.run(provider.close())
    engine.close()
    _print_overhead(model, taken)


def _print_overhead(model: str, taken: dict[str, list[float]]) -> None:
    base = taken["bare diffusers"]
    for way, values in taken.items():
        line = f"  {model:10} {way:18} {statistics.median(values):7.1f} / {_p95(values):7.1f}"
        if values is not base:
            added = [a - b for a, b in zip(values, base, strict=True)]
            line += f"   added {statistics.median(added):6.1f} / {_p95(added):6.1f}"
        print(line + (f"   (aim: added p95 < {AIM_P95_MS:.0f})" if way == "job in the child" else ""))


async def _drain(provider: Any, folder: Path, model: str) -> None:
    async with contextlib.aclosing(provider.run(_work(model), scratch=_scratch(folder), deadline_s=300)) as events:
        async for _ in events:
            pass


def _bare(location: str, model: str, folder: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    """The same request without mediamill: the frames as an array, and in the file that we deliver."""

    pipe = diffusers.DiffusionPipeline.from_pretrained(location)
    pipe.set_progress_bar_config(disable=True)
    asked = REQUESTS[model]
    call: dict[str, Any] = {"prompt": asked["prompt"], "width": 64, "height": 64, "num_inference_steps": 2}
    if model == "zimage":
        call["guidance_scale"] = 0.0
    else:
        call |= {"num_frames": 9, "frame_rate": 8, "guidance_scale": 7.5}

    def run() -> Any:
        return pipe(**call, generator=torch.Generator().manual_seed(7), output_type="np")[0]

    def run_to_file() -> None:
        frames = np.rint(np.asarray(run()).reshape(-1, 64, 64, 3) * 255).astype(np.uint8)
        fps = None if model == "zimage" else Fraction(8)
        output.write(iter(frames), folder, width_px=64, height_px=64, fps=fps)

    return run, run_to_file


def _work(model: str) -> Work:
    return work_of(model, **REQUESTS[model])


def _scratch(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


def _ms(call: Callable[[], None]) -> float:
    begun_s = time.perf_counter()
    call()
    return (time.perf_counter() - begun_s) * 1000


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def _api_process() -> None:
    script = (
        "import sys, time, psutil; t = time.perf_counter(); import mediamill.api.app; from mediamill import catalog, "
        "plugins; catalog.load(); plugins.load_all('api.routes'); plugins.load_all('contracts'); "
        "heavy = [m for m in ('torch', 'diffusers', 'transformers', 'ctranslate2') if m in sys.modules]; "
        "print(f'  imported in {time.perf_counter() - t:.2f} s, GPU libraries: {heavy or None}, '"
        "f'{psutil.Process().memory_info().rss / 1024**2:.0f} MiB')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    main()

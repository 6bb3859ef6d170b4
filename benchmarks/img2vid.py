"""Stills to clips: ours beside the documented command, in one run.

`python benchmarks/img2vid.py [--quick] [--rounds 3]`. Candidates are interleaved, figures are medians. The documented
command is made centred (read literally it shows the top left corner) and encodes with libx264 veryfast, CRF 23, in the
place of NVENC. Quality is judged after decoding, against a float Lanczos-3 reference of the same windows.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import _img2vid_metrics as metrics
import av
import cv2
import numpy as np

from mediamill.media import ken_burns, planes, stills
from mediamill.media.encode import VideoWriter
from mediamill.media.encoders import EncoderChoice, software
from mediamill.media.ffmpeg import binary
from mediamill.media.stills import ClipPlan

_FFMPEG = str(binary())
_EVERY = 7
"""Pictures compared after decoding: every seventh, so that all kinds of picture between references are among them."""


@dataclass
class Result:
    cpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    kib: float = 0.0
    psnr_db: float = 0.0
    ssim: float = 0.0
    judder_px: float = 0.0


def documented_filter(frames: int) -> str:
    zoom = f"zoompan=z='min(1+0.324*on/{frames},1.324)'"
    centre = "x='iw/2-(iw/zoom/2)':y='ih/2-(ih/zoom/2)'"
    return f"scale=6720:3840,{zoom}:{centre}:d={frames}:s=1920x1080:fps=24"


def documented(picture: Path, out: Path, frames: int) -> list[str]:
    head = [_FFMPEG, "-nostdin", "-y", "-loglevel", "error", "-loop", "1", "-i", str(picture)]
    encoder = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "23"]
    return [*head, "-vf", documented_filter(frames), *encoder, "-frames:v", str(frames), str(out)]


def run_documented(picture: Path, out: Path, frames: int) -> None:
    subprocess.run(documented(picture, out, frames), check=True, stdin=subprocess.DEVNULL)


def run_ours(plan: ClipPlan) -> Callable[[Path, Path, int], None]:
    def run(picture: Path, out: Path, _frames: int) -> None:
        stills.render(stills.load(picture, plan), out, plan, encoder="libx264")

    return run


def bare_encoder(choice: EncoderChoice, pictures: list[planes.StillPlanes]) -> Callable[[Path, Path, int], None]:
    """The floor: nothing but x264 on our own pictures, which lie ready in memory."""

    def run(_picture: Path, out: Path, _frames: int) -> None:
        with VideoWriter(out, width_px=1920, height_px=1080, fps=Fraction(24), encoder=choice) as writer:
            for ready in pictures:
                frame, views = writer.picture()
                for view, plane in zip(views, ready, strict=True):
                    np.copyto(view, plane)
                writer.write(frame)

    return run


def sampled(picture: Path, plan: ClipPlan) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    still = stills.load(picture, plan)
    found = []
    for n in range(plan.frames):
        views = np.empty((1080, 1920), np.uint8), np.empty((540, 960), np.uint8), np.empty((540, 960), np.uint8)
        planes.sample(still, ken_burns.window_at(n, plan.frames), views, stills.kernel_of(plan.quality))
        found.append(views)
    return found


def cpu_s() -> float:
    usage = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in usage)


def decoded_luma(path: Path, *, full_range: bool) -> Iterator[metrics.Luma]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            plane = frame.planes[0]
            luma = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
            luma = luma.astype(np.float32)
            yield 16 + luma * np.float32(219 / 255) if full_range else luma


def judge(result: Result, path: Path, truths: list[metrics.Luma], *, full_range: bool) -> None:
    shown = list(decoded_luma(path, full_range=full_range))
    if len(shown) != len(truths):
        sys.exit(f"{path.name}: {len(shown)} pictures instead of {len(truths)}")
    pairs = list(zip(shown, truths, strict=True))
    result.kib = path.stat().st_size / 1024
    result.psnr_db = float(np.mean([metrics.psnr_db(a, b) for a, b in pairs[::_EVERY]]))
    result.ssim = float(np.mean([metrics.ssim(a, b) for a, b in pairs[::_EVERY]]))
    result.judder_px = metrics.judder_px([metrics.displacement_px(a, b) for a, b in pairs])


def judder_before_encoding(picture: Path, frames: int, truths: list[metrics.Luma]) -> dict[str, float]:
    command = [_FFMPEG, "-nostdin", "-loglevel", "error", "-loop", "1", "-i", str(picture), "-vf"]
    command += [f"{documented_filter(frames)},format=gray", "-frames:v", str(frames), "-f", "rawvideo", "-"]
    moved: dict[str, list[np.ndarray]] = {"documented": [], "fast, balanced": [], "best": [], "an exact warp": []}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
        for reference in truths:
            raw = np.frombuffer(child.stdout.read(1920 * 1080), np.uint8).reshape(1080, 1920)
            moved["documented"].append(
                metrics.displacement_px(16 + raw.astype(np.float32) * np.float32(219 / 255), reference)
            )
    still = stills.load(picture, ClipPlan(frames))
    luma = np.empty((1080, 1920), np.uint8)
    for n, reference in enumerate(truths):
        for name, kernel in (("fast, balanced", "linear"), ("best", "cubic")):
            planes.sample_plane(still.y, ken_burns.window_at(n, frames), luma, kernel)
            moved[name].append(metrics.displacement_px(luma.astype(np.float32), reference))
        exact = metrics.truth(still.y.padded[still.y.pad_px :, still.y.pad_px :].astype(np.float32), n, frames)
        moved["an exact warp"].append(metrics.displacement_px(exact, reference))
    return {name: metrics.judder_px(steps) for name, steps in moved.items()}


def compare(picture: Path, folder: Path, frames: int, rounds: int) -> None:
    luma = metrics.source_luma(picture)
    truths = [metrics.truth(luma, n, frames) for n in range(frames)]
    plans = {q: ClipPlan(frames, quality=q) for q in ("fast", "balanced", "best")}
    ready = sampled(picture, plans["balanced"])
    candidates: dict[str, Callable[[Path, Path, int], None]] = {
        "documented, centred": run_documented,
        "ours fast": run_ours(plans["fast"]),
        "ours balanced": run_ours(plans["balanced"]),
        "ours best": run_ours(plans["best"]),
        "ours av1 balanced": run_ours(ClipPlan(frames, codec="av1")),
        "floor: our x264 alone": bare_encoder(software("h264", "balanced", still=True), ready),
        "floor: veryfast 23 alone": bare_encoder(EncoderChoice("libx264", {"preset": "veryfast", "crf": "23"}), ready),
    }
    results = {name: Result() for name in candidates}
    for number in range(rounds):
        for name, run in candidates.items():
            out = folder / "clip.mp4"
            cpu, wall = cpu_s(), time.perf_counter()
            run(picture, out, frames)
            results[name].cpu_ms.append((cpu_s() - cpu) / frames * 1000)
            results[name].wall_ms.append((time.perf_counter() - wall) / frames * 1000)
            if number == 0:
                judge(results[name], out, truths, full_range=run is run_documented)
    print_table(picture, frames, rounds, results)
    for name, judder in judder_before_encoding(picture, frames, truths).items():
        print(f"  judder before encoding, {name}: {judder:.4f} px")


def print_table(picture: Path, frames: int, rounds: int, results: dict[str, Result]) -> None:
    with_size = f"{picture.name}, {frames} pictures of 1920x1080, {rounds} rounds"
    print(
        f"\n{with_size}\n{'':26}{'CPU ms':>8}{'less':>7}{'wall ms':>9}{'KiB':>7}{'size':>7}{'PSNR':>8}{'gain':>8}{'SSIM':>8}{'judder':>8}"
    )
    first = next(iter(results.values()))
    base = statistics.median(first.cpu_ms)
    for name, r in results.items():
        cpu = statistics.median(r.cpu_ms)
        print(
            f"{name:26}{cpu:8.1f}{base / cpu:6.2f}x{statistics.median(r.wall_ms):9.1f}{r.kib:7.0f}{r.kib / first.kib:7.2f}"
            f"{r.psnr_db:8.2f}{r.psnr_db - first.psnr_db:+8.2f}{r.ssim:8.4f}{r.judder_px:8.3f}"
        )


def two_at_once(pictures: list[Path], folder: Path, frames: int, rounds: int) -> None:
    """Throughput of two clips side by side: two documented commands, or two threads of one process."""
    rates: dict[str, list[float]] = {"documented": [], "fast": [], "balanced": []}
    for _ in range(rounds):
        began = time.perf_counter()
        children = [
            subprocess.Popen(documented(p, folder / f"{i}.mp4", frames), stdin=subprocess.DEVNULL)
            for i, p in enumerate(pictures)
        ]
        if any(child.wait() for child in children):
            sys.exit("the documented command failed")
        rates["documented"].append(2 * frames / (time.perf_counter() - began))
        for quality in ("fast", "balanced"):
            run = run_ours(ClipPlan(frames, quality=quality))
            began = time.perf_counter()
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda i_p: run(i_p[1], folder / f"{i_p[0]}.mp4", frames), enumerate(pictures)))  # noqa: B023 - used within the round
            rates[quality].append(2 * frames / (time.perf_counter() - began))
    base = statistics.median(rates["documented"])
    print("\ntwo at once, pictures a second")
    for name, found in rates.items():
        print(f"  {name:12}{statistics.median(found):7.1f}  {statistics.median(found) / base:.2f}x")


_ALONE = """
import sys, threading
from pathlib import Path
from mediamill.media import stills
from mediamill.media.stills import ClipPlan
import mediamill.engines.ffmpeg
def peak():
    return next(row.split()[1] for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
before = peak()
plan = ClipPlan(int(sys.argv[1]))
def one(picture):
    stills.render(stills.load(Path(picture), plan), Path(picture + ".mp4"), plan, encoder="libx264")
threads = [threading.Thread(target=one, args=(p,)) for p in sys.argv[2:]]
[t.start() for t in threads]
[t.join() for t in threads]
print(before, peak())
"""


def peak_memory(picture: Path, folder: Path, frames: int) -> None:
    """Largest resident size: one documented command, and one process of ours with one and with two stills."""
    child = subprocess.Popen(documented(picture, folder / "m.mp4", frames), stdin=subprocess.DEVNULL)
    peak_kib = _peak_kib(child)
    print(f"\npeak memory of {picture.name}\n  documented, one command: {peak_kib / 1024:.0f} MiB")
    for count in (1, 2):
        copies = []
        for i in range(count):
            copies.append(folder / f"copy{i}.jpg")
            copies[-1].write_bytes(picture.read_bytes())
        command = [sys.executable, "-c", _ALONE, str(frames), *map(str, copies)]
        said = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
        before, peak = map(int, said.split())
        print(
            f"  ours, {count} at once: {peak / 1024:.0f} MiB, of which {before / 1024:.0f} MiB are Python and libraries"
        )


def _peak_kib(child: subprocess.Popen[bytes]) -> int:
    peak = 0
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text("utf-8")
        except OSError:
            break
        peak = max([peak, *(int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM"))])
        time.sleep(0.02)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short clip, one round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    os.environ["SVT_LOG"] = "1"
    frames, rounds = (24, 1) if args.quick else (96, args.rounds)
    with tempfile.TemporaryDirectory(prefix="mediamill-bench-") as name:
        folder = Path(name)
        pictures = [metrics.make_picture(folder / "1080p.jpg", 1920, 1080, seed=2)]
        if not args.quick:
            pictures.insert(0, metrics.make_picture(folder / "9-megapixels.jpg", 4000, 2250, seed=1))
        for picture in pictures:
            compare(picture, folder, frames, rounds)
        two_at_once((pictures * 2)[:2], folder, frames, rounds)
        peak_memory(pictures[0], folder, frames)
    print(f"\n{threading.active_count()} thread, OpenCV {cv2.__version__}, PyAV {av.__version__}")


if __name__ == "__main__":
    main()

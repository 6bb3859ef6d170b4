"""addaudio and caption: ours beside the documented commands, in one run.

`python benchmarks/mux.py [--quick] [--rounds 3]`. Candidates are interleaved, figures are medians. The documented
commands encode again, with libx264 veryfast, CRF 23, in the place of NVENC. Ours is the whole engine: inspection of the
inputs, the work, and the check of the result.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mediamill.engines.ffmpeg import create
from mediamill.media.encode import frames_to_video
from mediamill.media.ffmpeg import binary
from mediamill.media.probe import inspect
from mediamill.model import EngineContext, InputFile, OutputFile, Work

_FFMPEG = [str(binary()), "-nostdin", "-y", "-loglevel", "error"]
_X264 = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "23"]


@dataclass
class Result:
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    facts: str = ""


def make_inputs(folder: Path, seconds: int) -> dict[str, Path]:
    """A panning 1080p24 video with sound, a sound two thirds as long as AAC, MP3 and WAV, and a cue every three seconds."""
    rng = np.random.default_rng(1)
    width = 1920 + 24 * seconds * 2
    texture = rng.integers(0, 256, (1080 // 8, width // 8 + 1, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    frames = (np.ascontiguousarray(texture[:, 2 * n : 2 * n + 1920]) for n in range(24 * seconds))
    frames_to_video(frames, folder / "silent.mp4", fps=24, quality="fast")
    tone = f"sine=330:d={seconds}:r=48000"
    run("-i", folder / "silent.mp4", "-f", "lavfi", "-i", tone, "-c:v", "copy", "-c:a", "aac", folder / "video.mp4")
    music = f"anoisesrc=color=pink:amplitude=0.4:seed=1:d={seconds * 2 / 3:.3f}:r=44100,tremolo=f=2"  # a bare tone is no music
    for name in ("sound.m4a", "sound.mp3", "sound.wav"):
        run("-f", "lavfi", "-i", music, folder / name)
    cues = (f"{i + 1}\n{_at(3 * i)} --> {_at(3 * i + 2.5)}\nLegenda número {i + 1}\n" for i in range(seconds // 3))
    (folder / "cues.srt").write_text("\n".join(cues), "utf-8")
    return {path.name: path for path in folder.iterdir()}


def _at(seconds: float) -> str:
    return f"00:{int(seconds) // 60:02d}:{int(seconds) % 60:02d},{int(seconds * 1000) % 1000:03d}"


def run(*args: str | Path) -> None:
    subprocess.run([*_FFMPEG, *map(str, args)], check=True, stdin=subprocess.DEVNULL)


def ours(model: str, params: Mapping[str, str], files: Mapping[str, Path]) -> Callable[[Path], Path]:
    def work(folder: Path) -> Path:
        inputs = {k: InputFile(k, p, "", p.stat().st_size, "") for k, p in files.items()}
        job = Work("bench", 1, model, {**dict.fromkeys(files, "x"), **params}, inputs)
        context = EngineContext(folder, threading.Event(), {"ENCODER": "libx264"})
        events = list(create({}).run(job, context))
        return next(e.path for e in events if isinstance(e, OutputFile))

    return work


def documented(*args: str | Path) -> Callable[[Path], Path]:
    def work(folder: Path) -> Path:
        run(*args, folder / "documented.mp4")
        return folder / "documented.mp4"

    return work


def cpu_s() -> float:
    usage = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in usage)


def compare(title: str, candidates: Mapping[str, Callable[[Path], Path]], rounds: int) -> None:
    results = {name: Result() for name in candidates}
    for _ in range(rounds):
        for name, work in candidates.items():
            with tempfile.TemporaryDirectory() as folder:
                cpu, wall = cpu_s(), time.perf_counter()
                made = work(Path(folder))
                results[name].cpu_s.append(cpu_s() - cpu)
                results[name].wall_s.append(time.perf_counter() - wall)
                found = inspect(made)
                picture, sound = found.video[0], found.audio[0]
                results[
                    name
                ].facts = f"{picture.frames} pictures, {picture.duration_s:.3f} s, sound {sound.duration_s:.3f} s"
    first = next(iter(results.values()))
    print(f"\n{title}, {rounds} rounds\n{'':32}{'CPU s':>8}{'less':>8}{'wall s':>8}{'less':>8}  result")
    for name, r in results.items():
        cpu, wall = statistics.median(r.cpu_s), statistics.median(r.wall_s)
        less = statistics.median(first.cpu_s) / cpu, statistics.median(first.wall_s) / wall
        print(f"{name:32}{cpu:8.2f}{less[0]:7.1f}x{wall:8.2f}{less[1]:7.1f}x  {r.facts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="six seconds, one round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    seconds, rounds = (6, 1) if args.quick else (30, args.rounds)
    with tempfile.TemporaryDirectory(prefix="mediamill-bench-") as name:
        files = make_inputs(Path(name), seconds)
        video = files["video.mp4"]
        again = [*_X264, "-c:a", "aac", "-map", "0:v:0", "-map", "1:a:0", "-shortest"]
        compare(
            f"addaudio, {seconds} s of 1080p24 and {seconds * 2 / 3:.0f} s of sound",
            {"documented (encodes again)": documented("-i", video, "-i", files["sound.mp3"], *again)}
            | {
                f"ours, {sound}": ours("addaudio", {}, {"url_video": video, "url_audio": files[sound]})
                for sound in ("sound.m4a", "sound.mp3", "sound.wav")
            },
            rounds,
        )
        drawn = f"subtitles={files['cues.srt']}"
        both = {"url_video": video, "url_srt": files["cues.srt"]}
        compare(
            f"caption, {seconds} s of 1080p24 with {seconds // 3} cues",
            {
                "documented (burn)": documented("-i", video, "-vf", drawn, *_X264, "-c:a", "copy"),
                "floor: veryfast, nothing drawn": documented("-i", video, *_X264, "-c:a", "copy"),
                "ours burn fast": ours("caption", {"quality": "fast"}, both),
                "ours burn balanced": ours("caption", {"quality": "balanced"}, both),
                "ours soft": ours("caption", {"mode": "soft"}, both),
            },
            rounds,
        )


if __name__ == "__main__":
    main()

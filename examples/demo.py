"""`make demo`: start the service on a free port, make clips of three photos over HTTP, caption one, give one a sound.

Everything is made on the spot and nothing is fetched. Results lie in `demo-output/`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from mediamill.config import Settings, names
from mediamill.media.probe import probe

PHOTO_PX = (1920, 1280)
SCENES = ("dawn", "noon", "dusk")
SKIES = (((255, 190, 140), (90, 110, 190)), ((190, 225, 250), (50, 120, 210)), ((250, 140, 90), (50, 30, 90)))
HILLS = ((70, 90, 60), (50, 110, 50), (40, 35, 60))
RATE_HZ = 44_100
SUBTITLES = """\
1
00:00:00,200 --> 00:00:01,200
Good morning, mill.

2
00:00:01,300 --> 00:00:02,400
おはよう · Доброе утро
"""

console = Console()


@dataclass(frozen=True)
class Result:
    """A finished file and how long its job took."""

    path: Path
    took_s: float


class Mill:
    """The running service."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
        request = urllib.request.Request(f"{self.url}{path}", data=body, method=method)  # noqa: S310 - our own service
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{method} {path} answered {error.code}: {error.read().decode()}") from error

    def upload(self, path: Path) -> str:
        """Store a file; returns the reference that stands for its URL."""
        boundary = uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        stored = self.ask("POST", "/v1/files", body, Content_Type=f"multipart/form-data; boundary={boundary}")
        return str(stored["file"])

    def run(self, operation: str, body: dict[str, Any], bar: Progress) -> tuple[dict[str, Any], float]:
        """Queue one job, show its progress, return its result and seconds."""
        started_s = time.monotonic()
        task = bar.add_task(operation, total=100)
        payload = json.dumps(body).encode()
        queued = self.ask(
            "POST", f"/video/{operation}", payload, Content_Type="application/json", Prefer="respond-async"
        )
        while True:
            job = self.ask("GET", f"/job/{queued['jobId']}")
            bar.update(task, completed=job["progress"])
            if job["status"] == "COMPLETED":
                return job["result"], time.monotonic() - started_s
            if job["status"] not in {"IN_QUEUE", "IN_PROGRESS"}:
                raise SystemExit(f"{operation} ended as {job['status']}: {job.get('error')}")
            time.sleep(0.1)

    def download(self, url: str, path: Path) -> Path:
        with urllib.request.urlopen(url, timeout=60) as reply:  # noqa: S310 - our own service
            path.write_bytes(reply.read())
        return path


@contextlib.contextmanager
def service(folder: Path) -> Iterator[Mill]:
    """`mediamill serve` on a free port with its data in `folder`, without any setting of yours."""
    settings = {name for field in Settings.model_fields for name in names(field)}
    environment = {k: v for k, v in os.environ.items() if k not in settings and not k.startswith("MEDIAMILL_")}
    command = [sys.executable, "-m", "mediamill", "serve", "--port", "0", "--data-dir", str(folder), "--pools", "cpu"]
    log = folder / "serve.log"
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            start_new_session=True,
        )
    try:
        ready = process.stdout.readline() if process.stdout else ""
        if "ready at " not in ready:
            raise SystemExit(f"the service did not start:\n{log.read_text()[-2000:]}")
        console.print(ready.strip())
        yield Mill(ready.split()[-1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        if process.stdout:
            process.stdout.close()


def photo(path: Path, scene: int) -> Path:
    """A landscape of a sky, a sun and hills."""
    width, height = PHOTO_PX
    low, high = (np.array(colour, float) for colour in SKIES[scene])
    up = np.linspace(1, 0, height)[:, None, None]
    noise = np.random.default_rng(scene).normal(0, 3, (height, width, 1))
    picture = Image.fromarray(np.clip(low + (high - low) * up + noise, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    x, y = width * (scene + 1) // 4, height * (3 - scene % 2) // 6
    draw.ellipse((x - 90, y - 90, x + 90, y + 90), fill=(255, 240, 200))
    for layer in range(3):
        xs = np.arange(0, width + 8, 8)
        tops = height * (0.62 + 0.1 * layer) + 70 * np.sin(xs / (170 + 60 * layer) + 2 * scene + layer)
        shade = tuple(max(0, c - 18 * layer) for c in HILLS[scene])
        draw.polygon([(0, height), *zip(xs.tolist(), tops.tolist(), strict=True), (width, height)], fill=shade)
    picture.save(path, quality=92)
    return path


def sound(path: Path, duration_s: float) -> Path:
    """A chord that fades in and out."""
    t = np.arange(int(RATE_HZ * duration_s)) / RATE_HZ
    chord = sum(np.sin(2 * math.pi * hz * t) for hz in (220.0, 277.2, 329.6)) / 3
    samples = (0.5 * chord * np.sin(math.pi * t / duration_s) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path


def play(mill: Mill, made: Path, out: Path, clip_s: float) -> list[Result]:
    """The three operations, each over HTTP."""
    photos = [mill.upload(photo(made / f"{name}.jpg", i)) for i, name in enumerate(SCENES)]
    (made / "words.srt").write_text(SUBTITLES, encoding="utf-8")
    words, tune = mill.upload(made / "words.srt"), mill.upload(sound(made / "tune.wav", clip_s))
    columns = (TextColumn("{task.description:<9}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        stills = [{"id": name, "image_url": ref, "duracao": clip_s} for name, ref in zip(SCENES, photos, strict=True)]
        clips, took_s = mill.run("img2vid", {"images": stills, "path": "demo/clips/"}, bar)
        urls = {clip["id"]: clip["video_url"] for clip in clips["videos"]}
        results = [Result(mill.download(url, out / f"{name}.mp4"), took_s) for name, url in urls.items()]
        body = {"url_video": urls["dawn"], "path": "demo/"}
        captioned, took_s = mill.run(
            "caption", {**body, "url_srt": words, "output_filename": "dawn_captioned.mp4"}, bar
        )
        results.append(Result(mill.download(captioned["video_url"], out / "dawn_captioned.mp4"), took_s))
        sounding, took_s = mill.run(
            "addaudio", {**body, "url_audio": tune, "output_filename": "dawn_with_sound.mp4"}, bar
        )
        results.append(Result(mill.download(sounding["video_url"], out / "dawn_with_sound.mp4"), took_s))
    return results


def table(results: list[Result]) -> Table:
    """The files and what a probe finds in them."""
    shown = Table(box=None)
    for column in ("file", "size", "duration", "job took", "picture", "frames", "sound"):
        shown.add_column(column, no_wrap=True, overflow="fold")
    for result in results:
        facts = probe(result.path)
        shown.add_row(
            os.path.relpath(result.path),
            f"{result.path.stat().st_size / 1024:.0f} KiB",
            f"{facts.duration_s:.2f} s",
            f"{result.took_s:.1f} s",
            f"{facts.width_px}x{facts.height_px} {facts.video_codec}",
            f"{facts.frames} at {facts.fps:g}/s",
            facts.audio_codec or "none",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder of the results")
    parser.add_argument("--clip-s", type=float, default=3.0, help="length of each clip, seconds")
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mediamill-demo-") as folder:
        made = Path(folder) / "made"
        made.mkdir()
        console.print("starting the service")
        with service(Path(folder)) as mill:
            results = play(mill, made, out, arguments.clip_s)
        console.print("the service has stopped")
    Console(soft_wrap=True, width=max(console.width, 110)).print(table(results))


if __name__ == "__main__":
    main()

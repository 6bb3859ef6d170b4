"""Makes real, playable, deterministic files from nothing, and misbehaves on request.

Serves the catalog entry `fake`, and any generative entry that the settings route here: it takes size, length, rate
and seed from whatever names that entry's request has for them, and says in the picture, in the file's metadata and
in the job's output that the result is fake.
"""

from __future__ import annotations

import colorsys
import ctypes
import math
import os
import random
import secrets
import signal
import time
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from mediamill import catalog
from mediamill.errors import Cancelled, InvalidRequest, OutOfMemory
from mediamill.model import EngineContext, Event, Json, OutputData, OutputFile, Phase, Progress, Work

RATE_HZ = 48_000
STEP_S = 0.02
GIL_S = 30.0
LEAK_BYTES = 64 * 1024**2
SEED_LIMIT = 2**31

_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Recipe:
    """What shall be made, whatever the request called it."""

    kind: str
    name: str
    width_px: int
    height_px: int
    fps: Fraction
    frames: int
    duration_s: float
    seed: int
    work_s: float
    sound: bool
    """Whether a video has a sound track."""


def create(settings: Mapping[str, str]) -> FakeEngine:
    """The fake engine; `MEDIAMILL_FAKE_ENGINES` in the settings lets it misbehave."""
    return FakeEngine(may_misbehave=bool(settings.get("MEDIAMILL_FAKE_ENGINES")))


class FakeEngine:
    """Pretends to hold one model at a time."""

    def __init__(self, *, may_misbehave: bool = False) -> None:
        """`may_misbehave`: whether a request may ask for crashes, hangs, leaks and the like."""
        self._may_misbehave = may_misbehave
        self._held: tuple[str, ...] = ()
        self._leaked: list[bytearray] = []

    def held(self) -> Sequence[str]:
        """The model of the last job."""
        return self._held

    def run(self, work: Work, ctx: EngineContext) -> Iterator[Event]:
        """Pretend to work, then make the file. Checks for a cancel at least every 50 ms."""
        recipe = read_recipe(work.model, work.params)
        misbehaviour = work.params.get("misbehave")
        if misbehaviour and not self._may_misbehave:
            raise InvalidRequest("misbehave is accepted only where MEDIAMILL_FAKE_ENGINES is set.")
        yield Progress(0.0, Phase.LOADING, "pretending to load")
        self._held = (work.model,)
        if misbehaviour:
            self._misbehave(str(misbehaviour), recipe)
        patient = misbehaviour == "ignore_cancel"
        check = _never if patient else (lambda: _stop_if(ctx))
        yield from _pretend(0.0 if misbehaviour == "gil" else recipe.work_s, check)
        yield Progress(0.9, Phase.ENCODING, "writing the file")
        path = ctx.scratch / recipe.name
        media_type = _WRITERS[recipe.kind](path, recipe, check)
        if media_type is not None:
            yield OutputFile(recipe.name, path, media_type)
        yield OutputData({"fake": True, "seed": recipe.seed})
        yield Progress(1.0)

    def _misbehave(self, how: str, recipe: Recipe) -> None:
        match how:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "hang":
                while True:
                    time.sleep(1)
            case "gil":
                _hold_the_gil(recipe.work_s or GIL_S)
            case "oom":
                raise OutOfMemory("There was not enough memory: lower width, height or duration_s.")
            case "leak":
                self._leaked.append(bytearray(os.urandom(1024) * (LEAK_BYTES // 1024)))


def _hold_the_gil(seconds: float) -> None:
    """A C call that no other Python thread survives: PyDLL keeps the lock while it sleeps."""
    sleep = ctypes.PyDLL(None).usleep
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        sleep(int(min(left_s, 60) * 1e6))


def _never() -> None:
    pass


def _stop_if(ctx: EngineContext) -> None:
    if ctx.cancelled.is_set():
        raise Cancelled


def _pretend(work_s: float, check: Callable[[], None]) -> Iterator[Progress]:
    """Sleep in small steps, with true progress from 0 to 0.9."""
    start_s = time.monotonic()
    while (spent_s := time.monotonic() - start_s) < work_s:
        check()
        yield Progress(0.9 * spent_s / work_s, Phase.GENERATING, None, work_s - spent_s)
        time.sleep(min(STEP_S, work_s - spent_s))
    check()


def read_recipe(model: str, params: Mapping[str, Json]) -> Recipe:
    """Size, length, rate and seed under any of the names that requests use. A null seed is drawn here."""
    kind = str(params.get("kind") or catalog.get(model).output_kind)
    fps = Fraction(_number(params, "fps", default=24.0)).limit_denominator(1001)
    duration_s = _number(params, "duration_s", "duration", "audio_seconds", default=1.0)
    counted = int(_number(params, "num_frames", "numFrames", default=0))
    frames = counted or max(1, math.floor(duration_s * fps + Fraction(1, 2)))
    seed = params.get("seed")
    extension = {"image": "png", "video": "mp4", "audio": "wav"}.get(kind, "json")
    wanted = params.get("file_name") or params.get("output_filename")
    return Recipe(
        kind=kind,
        name=str(wanted or f"output.{extension}"),
        width_px=int(_number(params, "width", default=256)),
        height_px=int(_number(params, "height", default=256)),
        fps=fps,
        frames=frames,
        duration_s=float(frames / fps) if kind == "video" else duration_s,
        seed=secrets.randbelow(SEED_LIMIT) if seed is None else int(seed),
        work_s=_number(params, "work_s", default=0.0),
        sound=params.get("generate_audio") is not False or bool(params.get("audio_url")),
    )


def _number(params: Mapping[str, Json], *names: str, default: float) -> float:
    for name in names:
        if isinstance(value := params.get(name), int | float):
            return float(value)
    return default


def colour_of(seed: int) -> tuple[int, int, int]:
    """The base colour of a seed's pictures, RGB 0-255."""
    hue = random.Random(seed).random()  # noqa: S311 - a colour, not a secret
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.6, 0.7)
    return round(red * 255), round(green * 255), round(blue * 255)


def picture(recipe: Recipe) -> _Bytes:
    """(H, W, 3) uint8 RGB: the seed's colour, darker towards the bottom, and the word FAKE."""
    shade = np.linspace(1.1, 0.9, recipe.height_px)[:, None, None]
    base = np.broadcast_to(np.array(colour_of(recipe.seed)), (recipe.height_px, recipe.width_px, 3))
    image = Image.fromarray(np.clip(base * shade, 0, 255).astype(np.uint8))
    size_px = max(8, min(recipe.width_px // 4, recipe.height_px // 3))
    centre = (recipe.width_px / 2, recipe.height_px / 2)
    ImageDraw.Draw(image).text(centre, "FAKE", fill="white", anchor="mm", font=ImageFont.load_default(size_px))
    return np.asarray(image)


def tone(recipe: Recipe) -> npt.NDArray[np.int16]:
    """(samples,) mono: a quiet sine whose pitch is the seed's, exactly as long as asked."""
    pitch_hz = 220 + recipe.seed % 440
    seconds = np.arange(round(recipe.duration_s * RATE_HZ)) / RATE_HZ
    return (np.sin(2 * np.pi * pitch_hz * seconds) * 8000).astype(np.int16)


def _write_image(path: Path, recipe: Recipe, _check: Callable[[], None]) -> str:
    note = PngInfo()
    note.add_text("Comment", f"FAKE, seed {recipe.seed}")
    image = Image.fromarray(picture(recipe))
    if path.suffix.lower() in {".jpg", ".jpeg"}:
        image.save(path, "JPEG", quality=90)
        return "image/jpeg"
    image.save(path, "PNG", pnginfo=note, compress_level=1)
    return "image/png"


def _write_audio(path: Path, recipe: Recipe, _check: Callable[[], None]) -> str:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE_HZ)
        out.writeframes(tone(recipe).tobytes())
    return "audio/wav"


def _write_video(path: Path, recipe: Recipe, check: Callable[[], None]) -> str:
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as out:
        out.metadata["comment"] = f"FAKE, seed {recipe.seed}"
        # One thread: the same bytes on every machine.
        video: Any = out.add_stream("libx264", rate=recipe.fps, options={"preset": "ultrafast", "threads": "1"})
        video.width, video.height, video.pix_fmt = recipe.width_px, recipe.height_px, "yuv420p"
        video.time_base = video.codec_context.time_base = 1 / recipe.fps
        audio: Any = out.add_stream("aac", rate=RATE_HZ, layout="mono") if recipe.sound else None
        for index, frame in enumerate(_frames(recipe)):
            check()
            frame.pts = index
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if audio is not None:
            sound = av.AudioFrame.from_ndarray(tone(recipe)[None, :], format="s16", layout="mono")
            sound.sample_rate, sound.pts = RATE_HZ, 0
            out.mux([*audio.encode(sound), *audio.encode(None)])
    return "video/mp4"


def _frames(recipe: Recipe) -> Iterator[Any]:
    """The still picture with a white bar that travels from left to right, so that order and count can be seen."""
    still = picture(recipe)
    bar_px = max(2, recipe.width_px // 32)
    for index in range(recipe.frames):
        frame = still.copy()
        left_px = round((recipe.width_px - bar_px) * index / max(1, recipe.frames - 1))
        frame[:, left_px : left_px + bar_px] = 255
        yield av.VideoFrame.from_ndarray(frame, format="rgb24")


def _write_nothing(_path: Path, _recipe: Recipe, _check: Callable[[], None]) -> None:
    """A plain JSON result has no file."""


_WRITERS: Mapping[str, Callable[[Path, Recipe, Callable[[], None]], str | None]] = {
    "image": _write_image,
    "audio": _write_audio,
    "video": _write_video,
    "json": _write_nothing,
}

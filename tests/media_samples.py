"""Small real media for tests, made on the spot, and what is needed to look at results."""

from __future__ import annotations

import struct
import subprocess
import wave
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from mediamill.media.encode import Sound, frames_to_video
from mediamill.media.ffmpeg import binary

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

RED, GREEN, BLUE, WHITE = (200, 30, 30), (30, 160, 40), (40, 50, 190), (235, 235, 235)


def quarters(width: int, height: int, colours: Sequence[Colour] = (RED, GREEN, BLUE, WHITE)) -> Pixels:
    """A picture of four flat quarters: top left, top right, bottom left, bottom right."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = colours[0], colours[1]
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = colours[2], colours[3]
    return pixels


def still(path: Path, width: int = 640, height: int = 360, **save: object) -> Path:
    """A picture of four quarters; the file name's suffix decides the format."""
    Image.fromarray(quarters(width, height)).save(path, **save)
    return path


def png_bomb(path: Path, side: int = 30_000) -> Path:
    """A small PNG that says it is `side` pixels wide and high, and is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeeze = zlib.compressobj(9)
    rows = b"".join(squeeze.compress(bytes(side // 8 + 1)) for _ in range(side)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def sine(duration_s: float, *, hz: float = 440.0, rate_hz: int = 44_100, level: float = 0.5) -> Sound:
    """A mono tone."""
    times = np.arange(round(duration_s * rate_hz)) / rate_hz
    return Sound((level * np.sin(2 * np.pi * hz * times)).astype(np.float32), rate_hz)


def clicks(duration_s: float, *, rate_hz: int = 48_000) -> Sound:
    """Short bursts at every half second, to find out whether sound is where it should be."""
    samples = np.zeros(round(duration_s * rate_hz), np.float32)
    burst = 0.8 * np.sin(np.arange(96) * 2 * np.pi / 24).astype(np.float32)
    for at in range(rate_hz // 2, len(samples) - len(burst), rate_hz // 2):
        samples[at : at + len(burst)] = burst
    return Sound(samples, rate_hz)


def wav(path: Path, sound: Sound) -> Path:
    """The sound as 16-bit WAV."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sound.rate_hz)
        file.writeframes((sound.samples * 32_767).astype("<i2").tobytes())
    return path


def video(
    path: Path,
    *,
    width: int = 320,
    height: int = 180,
    frames: int = 24,
    fps: Fraction | float = 24,
    sound: Sound | None = None,
) -> Path:
    """An H.264 MP4: a white bar that moves right over four quarters, a step a picture."""

    def pictures() -> list[Pixels]:
        made = []
        for n in range(frames):
            pixels = quarters(width, height)
            left = n * width // max(1, frames)
            pixels[height // 3 : height // 2, left : left + max(2, width // 16)] = 250
            made.append(pixels)
        return made

    frames_to_video(pictures(), path, fps=fps, sound=sound)
    return path


def ffmpeg(*args: str | Path) -> None:
    """Run the FFmpeg that comes along; for odd inputs only."""
    command = [str(binary()), "-nostdin", "-y", "-loglevel", "error", *map(str, args)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=60)


def pictures_of(path: Path) -> list[Pixels]:
    """Every picture as RGB, converted as the file's tags say, turned as a player turns it."""
    with av.open(str(path)) as container:
        found = []
        for frame in container.decode(video=0):
            rgb = frame.reformat(format="rgb24").to_ndarray()
            found.append(np.rot90(rgb, frame.rotation // 90) if frame.rotation else rgb)
        return found


def sound_of(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """The first sound stream, mono, from its time 0 on."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        blocks = []
        for frame in [*container.decode(stream), None]:
            blocks.extend(out.to_ndarray().mean(axis=0) for out in resampler.resample(frame))
        return np.concatenate(blocks), stream.rate


def click_times_s(path: Path) -> list[float]:
    """Where the bursts of `clicks` begin."""
    samples, rate_hz = sound_of(path)
    loud = np.flatnonzero(np.abs(samples) > 0.25)
    starts = loud[np.flatnonzero(np.diff(loud, prepend=-rate_hz) > rate_hz // 10)]
    return [round(float(at) / rate_hz, 4) for at in starts]


def packets_of(path: Path, kind: str) -> list[bytes]:
    """The bytes of every packet of the first stream of a kind: equal lists mean that it was copied."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(**{kind: 0}) if packet.size]


def top_boxes(path: Path) -> list[str]:
    """Names of an MP4's outer boxes, in order."""
    data, at, found = path.read_bytes(), 0, []
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        found.append(kind.decode("latin-1"))
        at += size or len(data)
    return found

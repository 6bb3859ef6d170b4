"""Any container becomes 16 kHz mono in step with its timestamps; damaged and silent files say what they are."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mediamill.engines.whisper.audio import RATE_HZ, Decoding, Sound
from mediamill.engines.whisper.speech import Listening
from mediamill.errors import Cancelled, TooLarge, UnsupportedMedia
from tests import speech


def tone(seconds: float, *, rate_hz: int = 48_000, pitch_hz: float = 440) -> np.ndarray:
    return (np.sin(np.arange(round(seconds * rate_hz)) / rate_hz * 2 * np.pi * pitch_hz) * 12000).astype(np.int16)


def write(
    path: Path, sound: np.ndarray, codec: str, *, video: bool = False, start_s: float = 0.0, gap_s: float = 0.0
) -> Path:
    """A file of one sound stream, and a black picture stream if `video`; the second half comes `gap_s` late."""
    with av.open(str(path), "w") as out:
        pictures = out.add_stream("libx264", rate=10) if video else None
        if pictures is not None:
            pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        stream = out.add_stream(codec, rate=48_000, layout="mono")
        if pictures is not None:
            for i in range(round((start_s + sound.size / 48_000) * 10)):
                picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
                picture.pts, picture.time_base = i, Fraction(1, 10)
                out.mux(pictures.encode(picture))
            out.mux(pictures.encode(None))
        for at in range(0, sound.size, 960):
            frame = av.AudioFrame.from_ndarray(sound[None, at : at + 960], format="s16", layout="mono")
            late_s = start_s + (gap_s if at > sound.size // 2 else 0.0)
            frame.sample_rate, frame.pts, frame.time_base = 48_000, at + round(late_s * 48_000), Fraction(1, 48_000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def decoded(path: Path, into: Path) -> Sound:
    decoding = Decoding(path, into, threading.Event())
    shares = list(decoding)
    assert all(0 <= share <= 1 for share in shares)
    return decoding.sound


@pytest.mark.parametrize(
    ("name", "codec", "video"),
    [
        ("a.wav", "pcm_s16le", False),
        ("a.mp3", "libmp3lame", False),
        ("a.m4a", "aac", False),
        ("a.flac", "flac", False),
        ("a.ogg", "libopus", False),
        ("a.mp4", "aac", True),
        ("a.mkv", "libopus", True),
        ("a.webm", "libopus", False),
        ("a.mov", "pcm_s16le", True),
    ],
)
def test_every_container_gives_the_same_sound(tmp_path: Path, name: str, codec: str, video: bool) -> None:
    sound = decoded(write(tmp_path / name, tone(2.0), codec, video=video), tmp_path / "out")
    assert sound.duration_s == pytest.approx(2.0, abs=0.08)
    heard = sound.read(RATE_HZ // 2, RATE_HZ // 2 + RATE_HZ)
    pitch_hz = np.abs(np.fft.rfft(heard)).argmax()
    assert pitch_hz == pytest.approx(440, abs=2)
    assert 0.2 < np.abs(heard).max() < 0.6


def test_damage_in_the_middle_is_counted_and_the_rest_heard(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.m4a", tone(4.0), "aac")
    content = bytearray(whole.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = np.random.default_rng(1).bytes(third)
    broken = tmp_path / "b.m4a"
    broken.write_bytes(content)
    decoding = Decoding(broken, tmp_path / "out", threading.Event())
    list(decoding)
    assert decoding.damaged > 10
    assert decoding.sound.duration_s == pytest.approx(4.0, abs=0.2)
    assert np.abs(decoding.sound.read(0, RATE_HZ // 2)).max() > 0.2


def test_timestamps_beyond_what_is_accepted_are_refused_without_filling_the_disk(tmp_path: Path) -> None:
    far = write(tmp_path / "far.mkv", tone(0.5), "flac", start_s=1.0, gap_s=13 * 3600)
    with pytest.raises(TooLarge, match="12 hours"):
        decoded(far, tmp_path / "out")
    assert (tmp_path / "out").stat().st_size < RATE_HZ * 4


def test_sound_that_starts_late_is_heard_late(tmp_path: Path) -> None:
    sound = decoded(write(tmp_path / "late.mkv", tone(1.0), "flac", video=True, start_s=1.5), tmp_path / "out")
    first = np.flatnonzero(np.abs(sound.read(0, sound.samples)) > 0.1)[0] / RATE_HZ
    assert first == pytest.approx(1.5, abs=0.05)


def test_a_file_cut_off_in_the_middle_gives_what_is_there(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.mp3", tone(4.0), "libmp3lame")
    half = tmp_path / "half.mp3"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert 1.5 < decoded(half, tmp_path / "out").duration_s < 2.5


def _picture_only(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def test_a_video_without_sound_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMedia, match="no audio stream"):
        decoded(_picture_only(tmp_path / "v.mp4"), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"#EXTM3U\n/etc/passwd\n", "playlist"),
        (b"hello, this is no sound at all", "known kind"),
        (b"RIFF\xff\xff\xff\x7fWAVEfmt \x10\x00\x00\x00\x00", "cannot be|No sound"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 64, "picture"),
    ],
)
def test_what_is_no_sound_is_refused_with_the_reason(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    with pytest.raises(UnsupportedMedia, match=said):
        decoded(path, tmp_path / "out")


def test_noise_under_a_known_header_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.m4a", tone(1.0), "aac").read_bytes()
    rng = np.random.default_rng(0)
    broken = tmp_path / "b.m4a"
    broken.write_bytes(whole[:64] + rng.bytes(len(whole) - 64))
    with pytest.raises(UnsupportedMedia):
        decoded(broken, tmp_path / "out")


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    peaks = [_peak_bytes(tmp_path, minutes) for minutes in (5, 9)]
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 64 * 1024**2


def _peak_bytes(folder: Path, minutes: int) -> int:
    """Most memory that reading and listening through a recording took."""
    path = speech.write_wav(folder / "long.wav", np.zeros(minutes * 60 * RATE_HZ, np.int16))
    tracemalloc.start()
    sound = decoded(path, folder / "out")
    listening = Listening(sound, threading.Event())
    assert len(list(listening)) == -(-minutes // 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sound.duration_s == pytest.approx(minutes * 60)
    return peak


def test_a_cancel_stops_the_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(1.0), "pcm_s16le")
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        list(Decoding(path, tmp_path / "out", cancelled))


def test_reading_beyond_the_ends_gives_what_there_is(tmp_path: Path) -> None:
    ramp = np.arange(100, dtype=np.int16)
    path = tmp_path / "s"
    path.write_bytes(ramp.tobytes())
    sound = Sound(path, 100)
    values: Sequence[float] = (sound.read(-5, 3) * 32768).tolist()
    assert values == [0, 1, 2]
    assert sound.read(99, 400).size == 1
    assert sound.read(200, 300).size == 0

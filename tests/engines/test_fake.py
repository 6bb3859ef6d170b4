"""The fake engine makes files whose content can be checked, and misbehaves only where it may."""

from __future__ import annotations

import hashlib
import threading
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from mediamill import catalog
from mediamill.config import Settings
from mediamill.engines import fake
from mediamill.errors import Cancelled, InvalidRequest, OutOfMemory
from mediamill.model import EngineContext, Event, OutputData, OutputFile, Phase, Progress, Work


def run(tmp_path: Path, model: str = "fake", **params: Any) -> list[Event]:
    engine = fake.create({"MEDIAMILL_FAKE_ENGINES": "all"})
    work = Work("job", 1, model, params)
    return list(engine.run(work, EngineContext(tmp_path, threading.Event())))


def file_of(events: list[Event]) -> OutputFile:
    (file,) = (e for e in events if isinstance(e, OutputFile))
    return file


def decoded(path: Path) -> list[np.ndarray[Any, Any]]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(
    ("duration_s", "fps", "frames"), [(1, 24, 24), (0.5, 30, 15), (0.01, 24, 1), (2, 29.97, 60), (1.02, 25, 26)]
)
def test_a_video_has_exactly_the_asked_frames_rate_size_and_length_of_sound(
    tmp_path: Path, duration_s: float, fps: float, frames: int
) -> None:
    path = file_of(run(tmp_path, kind="video", width=96, height=64, duration_s=duration_s, fps=fps, seed=3)).path
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.frames) == (96, 64, frames)
        assert float(video.average_rate) == pytest.approx(fps, rel=1e-3)
        assert float(audio.duration * audio.time_base) == pytest.approx(frames / fps, abs=0.03)
        assert container.metadata["comment"] == "FAKE, seed 3"


def test_the_video_shows_the_seeds_colour_the_word_and_a_bar_that_travels(tmp_path: Path) -> None:
    frames = decoded(file_of(run(tmp_path, kind="video", width=128, height=96, seed=11)).path)
    corner = frames[12][40:56, 2:8].reshape(-1, 3).mean(axis=0)
    assert corner == pytest.approx(fake.colour_of(11), abs=12)
    bar_at = [int(frame[8].sum(axis=1).argmax()) for frame in (frames[0], frames[12], frames[-1])]
    assert bar_at == sorted(bar_at)
    assert bar_at[0] < 8
    assert bar_at[-1] > 100
    assert (frames[0][40:56, 40:90] > 230).all(axis=2).mean() > 0.15, "the word FAKE is not there"


def test_an_image_has_the_asked_size_and_says_that_it_is_fake(tmp_path: Path) -> None:
    events = run(tmp_path, kind="image", width=101, height=50, seed=5)
    image = Image.open(file_of(events).path)
    assert (image.format, image.size, image.text["Comment"]) == ("PNG", (101, 50), "FAKE, seed 5")
    assert image.getpixel((1, 25)) == pytest.approx(fake.colour_of(5), abs=3)
    assert OutputData({"fake": True, "seed": 5}) in events


def test_audio_is_a_tone_of_the_asked_length(tmp_path: Path) -> None:
    with wave.open(str(file_of(run(tmp_path, kind="audio", duration_s=0.25, seed=220)).path)) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), dtype=np.int16)
    assert len(samples) == 12_000
    assert np.abs(np.fft.rfft(samples)).argmax() * 48_000 / len(samples) == pytest.approx(440, abs=4)


@pytest.mark.parametrize("kind", ["video", "image", "audio"])
def test_the_same_request_gives_the_same_bytes_and_another_seed_others(tmp_path: Path, kind: str) -> None:
    digests = []
    for seed in (1, 1, 2):
        file = file_of(run(tmp_path, kind=kind, width=64, height=64, seed=seed))
        digests.append(hashlib.sha256(file.path.read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_work_is_spread_with_rising_progress_through_the_phases(tmp_path: Path) -> None:
    told = [e for e in run(tmp_path, kind="image", width=16, height=16, work_s=0.2) if isinstance(e, Progress)]
    fractions = [p.fraction for p in told]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert [p for p in dict.fromkeys(p.phase for p in told) if p] == [Phase.LOADING, Phase.GENERATING, Phase.ENCODING]
    assert len(told) > 5


def test_a_cancel_stops_it_at_the_next_step(tmp_path: Path) -> None:
    cancelled = threading.Event()
    events = fake.create({}).run(Work("job", 1, "fake", {"work_s": 3600}), EngineContext(tmp_path, cancelled))
    for _ in range(3):
        next(events)
    cancelled.set()
    with pytest.raises(Cancelled):
        next(events)


def test_misbehaviour_is_refused_where_no_fake_engines_are_configured(tmp_path: Path) -> None:
    work = Work("job", 1, "fake", {"misbehave": "crash"})
    with pytest.raises(InvalidRequest, match="MEDIAMILL_FAKE_ENGINES"):
        list(fake.create({}).run(work, EngineContext(tmp_path, threading.Event())))
    entry = catalog.get("fake")
    request, _ = catalog.validate(entry, {"misbehave": "crash"})
    with pytest.raises(InvalidRequest, match=r"misbehave.*'crash'.*MEDIAMILL_FAKE_ENGINES"):
        entry.allow(request, Settings(fake_engines=()))
    entry.allow(request, Settings(fake_engines="all"))


def test_out_of_memory_says_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match="lower width, height or duration_s"):
        run(tmp_path, misbehave="oom")


@pytest.mark.parametrize(
    ("raw", "path", "accepted"),
    [
        ({"width": 33}, "input", "must be even"),
        ({"kind": "hologram"}, "kind", "'image', 'video' or 'audio'"),
        ({"fps": 0}, "fps", "greater than or equal to 1"),
        ({"duration_s": 601}, "duration_s", "less than or equal to 600"),
        ({"work_s": -1}, "work_s", "greater than or equal to 0"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"misbehave": "sulk"}, "misbehave", "'crash'"),
    ],
)
def test_a_wrong_request_names_the_field_and_what_is_accepted(raw: dict[str, Any], path: str, accepted: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        catalog.validate(catalog.get("fake"), raw)
    (detail,) = caught.value.details
    assert detail.path == path
    assert accepted in detail.message
    assert repr(next(iter(raw.values()))).strip("'") in detail.message


@pytest.mark.parametrize(
    ("params", "size", "frames"),
    [
        ({"kind": "video", "width": 64, "height": 32, "duration": 0.5, "fps": 10}, (64, 32), 5),
        ({"kind": "video", "width": 64, "height": 32, "num_frames": 7, "fps": 25}, (64, 32), 7),
        ({"kind": "video"}, (256, 256), 24),
    ],
)
def test_requests_of_other_entries_are_understood(params: dict[str, Any], size: tuple[int, int], frames: int) -> None:
    recipe = fake.read_recipe("fake", params)
    assert ((recipe.width_px, recipe.height_px), recipe.frames) == (size, frames)


def test_a_null_seed_is_drawn_and_told(tmp_path: Path) -> None:
    (data,) = (e for e in run(tmp_path, kind="audio", duration_s=0.1, seed=None) if isinstance(e, OutputData))
    assert 0 <= data.values["seed"] < 2**31


@pytest.mark.parametrize(
    ("asked", "sound"),
    [({}, True), ({"generate_audio": False}, False), ({"generate_audio": False, "audio_url": "file:a.wav"}, True)],
)
def test_a_video_is_silent_where_sound_was_declined(tmp_path: Path, asked: dict[str, Any], sound: bool) -> None:
    path = file_of(run(tmp_path, kind="video", width=64, height=32, duration_s=0.2, **asked)).path
    with av.open(str(path)) as container:
        assert bool(container.streams.audio) == sound

import struct

import numpy as np
import pytest

from mediamill.media import mux
from mediamill.media.audio import aac_rate_hz
from mediamill.media.burn import Tool
from mediamill.media.mux import decoding_times
from mediamill.media.probe import inspect
from tests.media_samples import (
    RED,
    click_times_s,
    clicks,
    ffmpeg,
    packets_of,
    pictures_of,
    sine,
    sound_of,
    still,
    top_boxes,
    video,
    wav,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clip of 60 pictures (2.5 s), and clicks of 2 s in every format."""
    path = tmp_path_factory.mktemp("mux")
    clip = video(path / "v.mp4", frames=60, sound=sine(2.5, hz=900))
    for suffix in ("mkv", "flv", "ts", "avi"):
        ffmpeg("-i", clip, "-c", "copy", path / f"v.{suffix}")
    tone = wav(path / "a.wav", clicks(2.0))
    for suffix in ("mp3", "m4a", "aac", "ogg", "flac", "opus"):
        ffmpeg("-i", tone, "-b:a", "160k", path / f"a.{suffix}")
    ffmpeg("-i", clip, "-i", tone, "-map", "0:v", "-map", "1:a", "-c:v", "copy", path / "talk.mp4")
    ffmpeg("-i", path / "talk.mp4", "-c", "copy", path / "talk.mkv")
    return path


def joined(tmp_path, clip, sound):
    out = tmp_path / "out.mp4"
    steps = mux.add_audio((clip, inspect(clip)), (sound, inspect(sound)), out, tool=Tool(encoder="libx264"))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return out, end.value


@pytest.mark.parametrize(
    ("name", "copied"),
    [
        ("a.wav", False),
        ("a.mp3", False),
        ("a.m4a", True),
        ("a.aac", False),
        ("a.ogg", False),
        ("a.flac", False),
        ("a.opus", False),
        ("talk.mp4", True),
        ("talk.mkv", True),
    ],
)
def test_sound_of_any_kind_is_in_step_and_ends_the_video(tmp_path, folder, name, copied):
    out, made = joined(tmp_path, folder / "v.mp4", folder / name)
    assert (made.video_copied, made.audio_copied) == (True, copied)
    assert made.duration_s == pytest.approx(2.0, abs=0.03)
    found = inspect(out)
    assert [len(found.video), len(found.audio), found.audio[0].codec] == [1, 1, "aac"]
    assert found.video[0].frames in {48, 49}
    assert found.video[0].duration_s == pytest.approx(found.audio[0].duration_s, abs=0.01)
    assert click_times_s(out) == pytest.approx([0.5, 1.0, 1.5], abs=0.003)
    kept = packets_of(out, "video")
    assert packets_of(folder / "v.mp4", "video")[: len(kept)] == kept


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.flv", "v.ts", "v.avi"])
def test_video_is_copied_where_mp4_takes_it_as_it_is_and_is_encoded_else(tmp_path, folder, name):
    long = wav(tmp_path / "long.wav", clicks(4.0))
    out, made = joined(tmp_path, folder / name, long)
    assert made.video_copied is (name in {"v.mp4", "v.mkv", "v.flv"})
    assert made.duration_s == pytest.approx(2.5, abs=0.005)
    assert (made.video_s, made.audio_s) == (pytest.approx(2.5, abs=0.005), pytest.approx(4.0, abs=0.005))
    before, after = pictures_of(folder / name), pictures_of(out)
    assert len(after) == 60
    assert np.abs(before[0].astype(int) - after[0]).mean() < 4
    assert np.abs(before[59].astype(int) - after[59]).mean() < 4
    assert click_times_s(out) == pytest.approx([0.5, 1.0, 1.5, 2.0], abs=0.003)


@pytest.mark.parametrize("length_s", [0.3, 1.0, 1.01, 1.02, 1.03, 1.05, 1.07, 1.09, 1.1, 2.46, 2.49])
@pytest.mark.parametrize("suffix", ["wav", "m4a"])
def test_the_end_is_exact_wherever_it_falls_between_references(tmp_path, folder, length_s, suffix):
    tone = wav(tmp_path / "t.wav", sine(length_s, rate_hz=48_000))
    if suffix == "m4a":
        ffmpeg("-i", tone, tmp_path / "t.m4a")
    out, _ = joined(tmp_path, folder / "v.mp4", tmp_path / f"t.{suffix}")
    found = inspect(out)
    assert found.audio[0].duration_s == pytest.approx(length_s, abs=0.001)
    assert found.video[0].duration_s == pytest.approx(length_s, abs=0.001)
    assert found.video[0].frames == int(np.ceil(length_s * 24 - 0.02))
    assert len(pictures_of(out)) == found.video[0].frames
    assert top_boxes(out).index("moov") < top_boxes(out).index("mdat")


def test_the_sound_is_as_loud_as_it_was(tmp_path, folder):
    tone = wav(tmp_path / "t.wav", sine(1.0, rate_hz=22_050))
    out, _ = joined(tmp_path, folder / "v.mp4", tone)
    samples, rate_hz = sound_of(out)
    assert rate_hz == 22_050
    assert np.sqrt(np.mean(samples[2000:-2000] ** 2)) == pytest.approx(0.3535, rel=0.05)


@pytest.mark.parametrize(
    ("rate_hz", "chosen_hz"), [(44_100, 44_100), (96_000, 48_000), (6_000, 8_000), (37_800, 44_100)]
)
def test_the_rate_is_one_that_aac_knows(rate_hz, chosen_hz):
    assert aac_rate_hz(rate_hz) == chosen_hz


def test_the_turn_of_a_copied_video_is_kept(tmp_path, folder):
    ffmpeg("-display_rotation", "90", "-i", folder / "v.mp4", "-c", "copy", tmp_path / "turned.mp4")
    out, made = joined(tmp_path, tmp_path / "turned.mp4", folder / "a.m4a")
    assert made.video_copied
    track = inspect(out).video[0]
    assert (track.width_px, track.height_px, track.rotation_deg) == (180, 320, 90)


def test_cover_art_does_not_become_the_video_nor_its_length(tmp_path, folder):
    still(tmp_path / "c.jpg", 64, 64)
    ffmpeg("-i", folder / "a.mp3", "-i", tmp_path / "c.jpg", "-map", "0", "-map", "1", "-c", "copy", tmp_path / "c.mp3")
    out, made = joined(tmp_path, folder / "v.mp4", tmp_path / "c.mp3")
    assert made.duration_s == pytest.approx(2.0, abs=0.01)
    assert inspect(out).video[0].width_px == 320


def test_video_of_another_kind_is_encoded_to_h264_in_bt709(tmp_path, folder):
    ffmpeg("-i", folder / "v.mp4", "-c:v", "mpeg4", "-q:v", "2", "-an", tmp_path / "m4.mp4")
    out, made = joined(tmp_path, tmp_path / "m4.mp4", folder / "a.wav")
    assert not made.video_copied
    track = inspect(out).video[0]
    assert (track.codec, track.pixel_format, track.colour.matrix, track.frames) == ("h264", "yuv420p", 1, 48)
    assert np.abs(pictures_of(out)[10][10:40, 10:60].mean(axis=(0, 1)) - RED).max() < 12


def test_decoding_times_rise_and_never_pass_the_display_time():
    shown_at = [0, 125, 42, 83, 292, 208, 166, 250]
    decoded_at = decoding_times(shown_at)
    assert decoded_at == sorted(set(decoded_at))
    assert all(dts <= pts for dts, pts in zip(decoded_at, shown_at, strict=True))
    assert decoding_times([0, 40, 80]) == [0, 40, 80]
    assert decoding_times([7]) == [7]


def test_a_file_without_an_index_is_not_patched(tmp_path):
    (tmp_path / "a.mp4").write_bytes(struct.pack(">I4s", 16, b"ftyp") + bytes(8))
    with pytest.raises(mux.EngineFailed, match="no index"):
        mux.end_presentation(tmp_path / "a.mp4", 1.0)

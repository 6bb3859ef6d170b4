from fractions import Fraction

import pytest
from PIL import Image

from mediamill.errors import TooLarge, UnsupportedMedia
from mediamill.media import probe as probing
from mediamill.media.probe import inspect, probe
from tests.media_samples import ffmpeg, png_bomb, sine, still, top_boxes, video, wav


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One clip with sound in every container that is accepted, and one sound in every sound format."""
    path = tmp_path_factory.mktemp("probe")
    clip = video(path / "a.mp4", frames=25, sound=sine(25 / 24))
    for suffix in ("mkv", "mov", "flv", "ts", "avi"):
        ffmpeg("-i", clip, "-c", "copy", path / f"a.{suffix}")
    ffmpeg("-i", clip, "-c:v", "mpeg2video", "-c:a", "mp2", path / "a.mpg")
    tone = wav(path / "t.wav", sine(1.5))
    for suffix in ("mp3", "flac", "ogg", "m4a", "aac", "aiff", "opus"):
        ffmpeg("-i", tone, path / f"t.{suffix}")
    ffmpeg("-display_rotation", "90", "-i", clip, "-c", "copy", path / "turned.mp4")
    still(path / "cover.jpg", 64, 64)
    ffmpeg("-i", path / "t.mp3", "-i", path / "cover.jpg", "-map", "0", "-map", "1", "-c", "copy", path / "cover.mp3")
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "flv", "ts", "avi"])
def test_pictures_are_counted_and_rates_exact_in_every_container(folder, suffix):
    facts = probe(folder / f"a.{suffix}", media_type="video/mp4")
    assert (facts.width_px, facts.height_px, facts.frames) == (320, 180, 25)
    assert (facts.video_codec, facts.audio_codec, facts.has_audio) == ("h264", "aac", True)
    assert facts.duration_s == pytest.approx(25 / 24, abs=0.003)
    assert facts.fps == pytest.approx(24, abs=0.03)


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac", "ogg", "m4a", "aac", "aiff", "opus"])
def test_the_length_of_a_sound_leaves_out_what_encoders_put_before_it(folder, suffix):
    facts = probe(folder / f"t.{suffix}", media_type="audio/x")
    slack = 0.06 if suffix == "aac" else 0.007  # raw ADTS cannot say that it begins with priming
    assert facts.duration_s == pytest.approx(1.5, abs=slack)
    assert facts.has_audio
    assert facts.video_codec is None


def test_a_turned_video_has_the_size_that_is_seen(folder):
    facts = probe(folder / "turned.mp4")
    assert (facts.width_px, facts.height_px) == (180, 320)
    assert inspect(folder / "turned.mp4").video[0].rotation_deg == 90


def test_cover_art_is_no_video(folder):
    found = inspect(folder / "cover.mp3")
    assert found.video == ()
    assert probe(folder / "cover.mp3", media_type="audio/mpeg").video_codec is None


def test_odd_rates_stay_fractions(tmp_path):
    clip = video(tmp_path / "a.mp4", frames=30, fps=Fraction(30000, 1001))
    track = inspect(clip).video[0]
    assert track.fps == Fraction(30000, 1001)
    assert track.colour == probing.ColourTags(1, 1, 1, 1)
    assert top_boxes(clip).index("moov") < top_boxes(clip).index("mdat")


def test_a_picture_has_a_size_and_text_has_nothing(tmp_path):
    facts = probe(still(tmp_path / "a.png", 40, 30), media_type="image/png")
    assert (facts.width_px, facts.height_px, facts.duration_s) == (40, 30, None)
    (tmp_path / "a.srt").write_text("é", "utf-8")
    assert probe(tmp_path / "a.srt", media_type="application/x-subrip") == probing.MediaFacts()
    (tmp_path / "b.json").write_bytes(b"\xff{}")
    with pytest.raises(UnsupportedMedia, match="UTF-8 at byte 0"):
        probe(tmp_path / "b.json", media_type="application/json")


def test_a_truncated_file_is_refused_with_what_is_left_of_it(tmp_path, folder):
    whole = (folder / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(UnsupportedMedia, match=r"truncated: \d+ of 25 pictures"):
        probe(tmp_path / "cut.mp4")
    Image.effect_noise((300, 300), 90).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:30_000])
    with pytest.raises(UnsupportedMedia):
        probe(tmp_path / "cut.png", media_type="image/png")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "playlist"),
        (b"<html><body>404</body></html>", "HTML"),
        (b"%PDF-1.7", "PDF"),
        (bytes(100), "known kind"),
        (b"\0\0\0\x20ftypisom" + bytes(100), "cannot be read|neither"),
        (b"OggS" + bytes(100), "cannot be read|damaged|neither"),
    ],
)
def test_what_is_no_media_is_refused_with_what_it_is(tmp_path, content, says):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UnsupportedMedia, match=says) as caught:
        probe(tmp_path / "a.mp4")
    assert str(tmp_path) not in caught.value.message


def test_another_kind_than_promised_is_refused(folder, tmp_path):
    with pytest.raises(UnsupportedMedia, match=r"audio/mpeg, not video/mp4"):
        probe(folder / "t.mp3", media_type="video/mp4")
    with pytest.raises(UnsupportedMedia, match="not image/png"):
        probe(folder / "a.mp4", media_type="image/png")
    with pytest.raises(UnsupportedMedia, match="picture"):
        inspect(still(tmp_path / "a.png"))


def test_a_picture_bomb_is_too_large(tmp_path):
    with pytest.raises(TooLarge):
        probe(png_bomb(tmp_path / "b.png"))

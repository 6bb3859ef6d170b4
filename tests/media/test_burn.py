"""Captions: judged by pixels, because FFmpeg draws nothing and exits 0 where a font is missing."""

import threading
from fractions import Fraction

import numpy as np
import pytest

from mediamill.errors import Cancelled, EngineFailed, UnsupportedMedia
from mediamill.media import burn, captions
from mediamill.media.burn import Tool
from mediamill.media.ffmpeg import binary
from mediamill.media.karaoke import SubtitleStyle
from mediamill.media.probe import inspect
from tests.media_samples import RED, ffmpeg, packets_of, pictures_of, sine, top_boxes, video

_TOOL = Tool(encoder="libx264")


def cues(tmp_path, *rows):
    lines = [f"{i}\n00:00:0{a} --> 00:00:0{b}\n{text}\n" for i, (a, b, text) in enumerate(rows, 1)]
    (tmp_path / "in.srt").write_text("\n".join(lines), "utf-8")
    return captions.read(tmp_path / "in.srt")


def burned(tmp_path, clip, subtitles, **options):
    out = tmp_path / "job" / "out.mp4"
    out.parent.mkdir()
    steps = burn.burn(
        clip,
        inspect(clip),
        subtitles,
        out,
        tool=options.pop("tool", _TOOL),
        quality="balanced",
        style=options.pop("style", None),
    )
    made = list(steps)
    assert made == sorted(made)
    return out


def drawn(before, after):
    """Share of the lower half's pixels that a picture differs in, and of the upper half's."""
    changed = np.abs(before.astype(int) - after.astype(int)).max(axis=2) > 60
    middle = changed.shape[0] // 2
    return float(changed[middle:].mean()), float(changed[:middle].mean())


@pytest.mark.parametrize("text", ["Olá, ação", "Γειά σου", "Привет", "你好世界", "日本のかな", "안녕하세요"])
def test_text_of_every_promised_script_is_drawn_while_its_cue_lasts_and_only_then(tmp_path, text):
    clip = video(tmp_path / "a.mp4", frames=24, sound=sine(1.0))
    out = burned(tmp_path, clip, cues(tmp_path, ("0,250", "0,750", text)))
    before, after = pictures_of(clip), pictures_of(out)
    assert len(after) == 24
    for n in (0, 4, 19, 23):
        assert drawn(before[n], after[n]) == (0.0, 0.0), n
    for n in (7, 12, 17):
        lower, upper = drawn(before[n], after[n])
        assert lower > 0.005, n
        assert upper == 0.0, n
    assert packets_of(clip, "audio") == packets_of(out, "audio")
    track = inspect(out).video[0]
    assert (track.colour.matrix, track.colour.primaries, track.colour.transfer, track.colour.range) == (1, 1, 1, 1)
    assert top_boxes(out).index("moov") < top_boxes(out).index("mdat")


def test_different_letters_are_drawn_differently_not_as_boxes(tmp_path):
    clip = video(tmp_path / "a.mp4", frames=4)
    shapes = []
    for n, text in enumerate(("你你你", "好好好", "口口口")):
        (tmp_path / str(n)).mkdir()
        shapes.append(pictures_of(burned(tmp_path / str(n), clip, cues(tmp_path, ("0,0", "1,0", text))))[2])
    assert all(
        drawn(a, b)[0] > 0.002 for a, b in ((shapes[0], shapes[1]), (shapes[0], shapes[2]), (shapes[1], shapes[2]))
    )


def test_a_character_without_a_font_fails_by_name_before_anything_is_drawn(tmp_path):
    clip = video(tmp_path / "a.mp4", frames=4)
    with pytest.raises(UnsupportedMedia, match=r"U\+1F9FF NAZAR AMULET.*MEDIAMILL_FONTS_DIR"):
        burned(tmp_path, clip, cues(tmp_path, ("0,0", "1,0", "luck \U0001f9ff")))
    assert list((tmp_path / "job").iterdir()) == []


def test_a_font_that_was_named_draws_the_text(tmp_path):
    clip = video(tmp_path / "a.mp4", frames=4)
    pictures = []
    for n, font in enumerate((None, "Noto Sans", "Noto Sans CJK JP")):
        (tmp_path / str(n)).mkdir()
        subtitles = cues(tmp_path, ("0,0", "1,0", "Gaggle Qty"))
        style = SubtitleStyle(name="classic", font=font)
        pictures.append(pictures_of(burned(tmp_path / str(n), clip, subtitles, style=style))[2])
    assert drawn(pictures[0], pictures[1])[0] == 0
    assert drawn(pictures[0], pictures[2])[0] > 0.002


def test_libass_without_any_font_is_an_error_although_it_exits_0(tmp_path):
    """The second net: should the fonts be gone between the check and the drawing."""
    clip = video(tmp_path / "a.mp4", frames=4)
    careless = tmp_path / "ffmpeg-without-fonts"
    careless.write_text(f'#!/bin/sh\nrm -rf fonts\nexec {binary()} "$@"\n')
    careless.chmod(0o700)
    tool = Tool(encoder="libx264", ffmpeg=str(careless))
    with pytest.raises(EngineFailed, match="not drawn"):
        burned(tmp_path, clip, cues(tmp_path, ("0,0", "1,0", "hello")), tool=tool)


def test_rate_and_times_of_the_source_are_kept(tmp_path):
    clip = video(tmp_path / "a.mp4", frames=30, fps=Fraction(30000, 1001))
    out = burned(tmp_path, clip, cues(tmp_path, ("0,0", "0,5", "x")))
    before, after = inspect(clip).video[0], inspect(out).video[0]
    assert (after.fps, after.frames) == (Fraction(30000, 1001), 30)
    assert after.duration_s == pytest.approx(before.duration_s, abs=1e-4)


def test_a_video_held_upright_is_captioned_upright(tmp_path):
    clip = video(tmp_path / "a.mp4", frames=6)
    ffmpeg("-display_rotation", "90", "-i", clip, "-c", "copy", tmp_path / "turned.mp4")
    out = burned(tmp_path, tmp_path / "turned.mp4", cues(tmp_path, ("0,0", "1,0", "upright")))
    track = inspect(out).video[0]
    assert (track.width_px, track.height_px, track.rotation_deg) == (180, 320, 0)
    seen, made = pictures_of(tmp_path / "turned.mp4")[3], pictures_of(out)[3]
    assert drawn(seen, made)[0] > 0.005
    assert np.abs(seen[:100].astype(int) - made[:100]).mean() < 6


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("-vf", "crop=319:179", "-c:v", "ffv1", "-pix_fmt", "yuv444p"), "odd size"),
        (
            (
                "-vf",
                "scale=320:180:out_color_matrix=bt601:out_range=pc,format=yuvj420p",
                "-colorspace",
                "smpte170m",
                "-c:v",
                "mjpeg",
            ),
            "full range bt601",
        ),
        (("-c:v", "libx264", "-pix_fmt", "yuv420p10le"), "10 bit"),
    ],
    ids=["odd", "full-range", "10-bit"],
)
def test_pictures_of_other_kinds_become_8_bit_bt709_with_even_sides(tmp_path, args, says):
    clip = video(tmp_path / "a.mp4", frames=6)
    ffmpeg("-i", clip, *args, tmp_path / "odd.mkv")
    out = burned(tmp_path, tmp_path / "odd.mkv", cues(tmp_path, ("0,0", "1,0", "x")))
    track = inspect(out).video[0]
    assert (track.pixel_format, track.colour.matrix, track.colour.range) == ("yuv420p", 1, 1), says
    assert track.width_px % 2 == track.height_px % 2 == 0
    assert np.abs(pictures_of(out)[2][20:50, 20:60].mean(axis=(0, 1)) - RED).max() < 10


def test_sound_that_does_not_belong_into_mp4_becomes_aac(tmp_path):
    clip = video(tmp_path / "a.mp4", frames=12, sound=sine(0.5))
    ffmpeg("-i", clip, "-c:v", "copy", "-c:a", "pcm_s16le", tmp_path / "pcm.mkv")
    out = burned(tmp_path, tmp_path / "pcm.mkv", cues(tmp_path, ("0,0", "1,0", "x")))
    assert inspect(out).audio[0].codec == "aac"


def test_a_style_colours_the_text(tmp_path):
    clip = video(tmp_path / "a.mp4", frames=4)
    style = SubtitleStyle(name="classic", color="#FF00FF", size_px=200)
    out = burned(tmp_path, clip, cues(tmp_path, ("0,0", "1,0", "MMM")), style=style)
    shown = pictures_of(out)[2].astype(int)
    magenta = (shown[..., 0] > 200) & (shown[..., 1] < 90) & (shown[..., 2] > 200)
    assert magenta.mean() > 0.005


def test_soft_subtitles_copy_every_byte_and_add_a_track(tmp_path):
    clip = video(tmp_path / "a.mp4", frames=24, sound=sine(1.0))
    out = tmp_path / "soft.mp4"
    list(burn.soft(clip, inspect(clip), cues(tmp_path, ("0,200", "0,800", "{\\an8}Olá")), out, tool=_TOOL))
    assert inspect(out).subtitles == 1
    assert packets_of(clip, "video") == packets_of(out, "video")
    assert packets_of(clip, "audio") == packets_of(out, "audio")
    ffmpeg("-i", out, "-map", "0:s", tmp_path / "back.srt")
    assert "00:00:00,200 --> 00:00:00,800\nOlá" in (tmp_path / "back.srt").read_text("utf-8")


def test_soft_subtitles_need_a_video_that_fits_into_mp4(tmp_path):
    clip = video(tmp_path / "a.mp4", frames=4)
    ffmpeg("-i", clip, "-c:v", "ffv1", tmp_path / "a.mkv")
    with pytest.raises(UnsupportedMedia, match=r"ffv1.*burn"):
        list(
            burn.soft(
                tmp_path / "a.mkv",
                inspect(tmp_path / "a.mkv"),
                cues(tmp_path, ("0,0", "1,0", "x")),
                tmp_path / "o.mp4",
                tool=_TOOL,
            )
        )


def test_hardware_that_does_not_open_is_replaced_by_software(tmp_path):
    clip = video(tmp_path / "a.mp4", frames=4)
    out = burned(tmp_path, clip, cues(tmp_path, ("0,0", "1,0", "x")), tool=Tool(encoder="h264_nvenc"))
    assert inspect(out).video[0].frames == 4


def test_a_cancel_stops_the_drawing(tmp_path):
    clip = video(tmp_path / "a.mp4", frames=24)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        burned(tmp_path, clip, cues(tmp_path, ("0,0", "1,0", "x")), tool=Tool(encoder="libx264", cancelled=cancelled))

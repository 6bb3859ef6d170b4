"""ASS: times that add up, styles, files of ours read back, and hostile files of others made harmless."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pysubs2
import pytest
from pydantic import ValidationError

from mediamill.errors import UnsupportedMedia
from mediamill.media.karaoke import SubtitleStyle, parse_ass, plain_cue, style_of, to_ass
from mediamill.media.speech_subtitles import Cue, Word, cues_of, monotonic

WORDS = monotonic(
    [
        Word(" It", 0.503, 0.711),
        Word(" was", 0.833, 1.004),
        Word(" late,", 1.004, 1.4),
        Word(" and", 1.73, 1.9),
        Word(" he", 1.9, 1.9),
        Word(" went", 2.005, 2.3),
        Word(" home", 2.3, 2.75),
        Word(" very", 2.75, 3.1),
        Word(" slowly", 3.1, 3.62),
        Word(" indeed.", 3.62, 4.3),
    ]
)
CUES = cues_of(WORDS)


def syllables(text: str) -> list[tuple[int, str]]:
    r"""`\k` centiseconds and the text they light."""
    return [(int(k), word) for k, word in re.findall(r"\{\\k(\d+)[^}]*\}([^{]*)", text)]


@pytest.mark.parametrize("name", ["classic", "karaoke", "highlight", "word_by_word"])
def test_k_times_add_up_to_the_line_in_every_style(name: str) -> None:
    read = pysubs2.SSAFile.from_string(to_ass(CUES, SubtitleStyle(name=name)))
    for event in read.events:
        assert sum(k for k, _ in syllables(event.text)) * 10 == event.end - event.start


@pytest.mark.parametrize("name", ["classic", "karaoke", "highlight"])
def test_each_word_lights_up_when_it_is_spoken(name: str) -> None:
    read = pysubs2.SSAFile.from_string(to_ass(CUES, SubtitleStyle(name=name)))
    assert len(read.events) == len(CUES)
    lit: list[tuple[str, float]] = []
    for event in read.events:
        at_cs = event.start // 10
        for k, text in syllables(event.text.replace(r"\N", " ")):
            if text.strip():
                lit.append((text.strip(), at_cs / 100))
            at_cs += k
    assert lit == [(w.text.strip(), w.start_s) for w in WORDS]


def test_the_plain_text_is_that_of_the_cues() -> None:
    read = pysubs2.SSAFile.from_string(to_ass(CUES))
    assert [e.plaintext for e in read.events] == [cue.text for cue in CUES]


def test_word_by_word_shows_one_word_at_a_time_without_flicker() -> None:
    read = pysubs2.SSAFile.from_string(to_ass(CUES, SubtitleStyle(name="word_by_word")))
    shown = [e.plaintext for e in read.events]
    assert shown == [w.text.strip() for w in WORDS]
    gaps = [b.start - a.end for a, b in zip(read.events, read.events[1:], strict=False)]
    assert all(gap == 0 or gap > 300 for gap in gaps)


@pytest.mark.parametrize("name", ["classic", "karaoke", "highlight", "word_by_word"])
def test_our_file_comes_back_with_its_words_times_and_style(name: str) -> None:
    style = SubtitleStyle(name=name, position="top", color="#112233", size_px=70)
    text = to_ass(CUES, style)
    back = parse_ass(text)
    assert style_of(text) == style
    assert [cue.text for cue in back] == [cue.text for cue in CUES]
    starts = [w.start_s for cue in back for w in cue.words]
    assert starts == pytest.approx([w.start_s for w in WORDS], abs=0.011)


def test_no_cues_are_a_valid_file() -> None:
    assert pysubs2.SSAFile.from_string(to_ass([])).events == []
    assert parse_ass(to_ass([])) == []


def test_tall_pictures_get_letters_that_fit() -> None:
    wide = pysubs2.SSAFile.from_string(to_ass(CUES, width_px=1920, height_px=1080))
    tall = pysubs2.SSAFile.from_string(to_ass(CUES, width_px=1080, height_px=1920))
    assert tall.styles["Default"].fontsize < wide.styles["Default"].fontsize
    assert (tall.info["PlayResX"], tall.info["PlayResY"]) == ("1080", "1920")


def test_right_to_left_lines_ask_the_renderer_for_their_direction() -> None:
    cue = Cue(0.0, 2.0, ((Word(" مرحبا", 0.0, 1.0), Word(" بالعالم", 1.0, 2.0)),))
    text = to_ass([cue])
    assert pysubs2.SSAFile.from_string(text).styles["Default"].encoding == -1
    assert [w for _, w in syllables(text.splitlines()[-1])] == ["مرحبا ", "بالعالم"]


def test_braces_and_backslashes_in_speech_open_no_tag() -> None:
    cue = Cue(0.0, 1.0, ((Word(r" {\fs200}a\Nb", 0.0, 1.0),),))
    read = pysubs2.SSAFile.from_string(to_ass([cue]))
    assert read.events[0].plaintext == "(/fs200)a/Nb"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "wobbly"},
        {"position": "left"},
        {"color": "red"},
        {"color": "#12345"},
        {"font": "Sans,0,&H00"},
        {"font": "x{\\p1}"},
        {"size_px": 5000},
        {"outline_px": -1},
    ],
)
def test_a_wrong_style_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        SubtitleStyle.model_validate(wrong)
    assert caught.value.errors()[0]["loc"] == (next(iter(wrong)),)


def test_a_bare_name_is_a_style() -> None:
    assert SubtitleStyle.model_validate("highlight") == SubtitleStyle(name="highlight")


HOSTILE = r"""[Script Info]
ScriptType: v4.00+
; mediamill-style: {"name": "karaoke", "font": "x{evil}"}
[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Evil,900
[Fonts]
fontname: evil.ttf
!!!!
[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:00.00,0:00:02.00,Default,,0,0,0,,{\p1}m 0 0 l 99999 0 99999 99999{\p0}
Dialogue: 0,0:00:01.00,0:00:03.00,Default,,0,0,0,,{\move(0,0,9,9)\fs900\t(\fscx9000)}Hello {\i1}there\Nfriend
Comment: 0,0:00:01.00,0:00:03.00,Default,,0,0,0,,not shown
"""


def test_only_text_and_times_of_a_foreign_file_are_kept() -> None:
    assert style_of(HOSTILE) is None
    cues = parse_ass(HOSTILE)
    assert [(c.start_s, c.end_s, c.text) for c in cues] == [(1.0, 3.0, "Hello there\nfriend")]
    made = to_ass(cues)
    assert not re.search(r"evil|\\move|\\t\(|\\p1|fs900", made, re.IGNORECASE)


@pytest.mark.parametrize("text", ["", "1\n00:00:00,000 --> 00:00:01,000\nHi\n", "[Script Info]\n"])
def test_what_is_not_ass_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedMedia, match=r"\[Events\]"):
        parse_ass(text)


def test_plain_text_gets_word_times_in_proportion() -> None:
    cue = plain_cue(10.0, 12.0, "a wonderful\nday 世界")
    assert cue.text == "a wonderful\nday 世界"
    assert [w.text for w in cue.words] == ["a", " wonderful", "day", " 世", "界"]
    assert cue.words[0].start_s == 10.0
    assert cue.words[-1].end_s == 12.0
    assert cue.words[1].end_s - cue.words[1].start_s > 0.8


def frame(ass: Path, at_s: float) -> np.ndarray:
    """One picture of a black clip with the subtitles burnt in, (360, 640, 3) RGB."""
    import noto_cjk_sans_otc

    fonts = next(Path(noto_cjk_sans_otc.__file__).parent.rglob("*.tt[cf]"), None) or next(
        Path(noto_cjk_sans_otc.__file__).parent.rglob("*.ot[cf]")
    )
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "info", "-f", "lavfi"]
    command += ["-i", "color=black:s=640x360:r=25:d=4.5", "-vf", f"subtitles={ass.name}:fontsdir={fonts.parent}"]
    command += ["-ss", f"{at_s}", "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, cwd=ass.parent, capture_output=True, check=True, timeout=60)
    assert b"failed to find any fallback" not in done.stderr
    return np.frombuffer(done.stdout, np.uint8).reshape(360, 640, 3).astype(int)


def yellow(picture: np.ndarray) -> int:
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    return int(((red > 180) & (green > 150) & (blue < 90)).sum())


def white(picture: np.ndarray) -> int:
    return int((picture.min(axis=2) > 200).sum())


def test_burnt_in_words_change_colour_as_they_are_spoken(tmp_path: Path) -> None:
    ass = tmp_path / "k.ass"
    ass.write_text(to_ass(CUES, width_px=640, height_px=360), "utf-8")
    early, middle, late = (frame(ass, at_s) for at_s in (0.505, 2.6, 4.2))
    assert yellow(early) < yellow(middle) < yellow(late)
    assert white(early) > white(middle) > white(late)
    lit_rows = np.flatnonzero((middle.sum(axis=2) > 300).any(axis=1))
    assert lit_rows.min() > 180  # at the bottom


def test_burnt_in_highlight_colours_one_word_only(tmp_path: Path) -> None:
    ass = tmp_path / "h.ass"
    ass.write_text(to_ass(CUES, SubtitleStyle(name="highlight", position="top"), width_px=640, height_px=360), "utf-8")
    at_home, at_indeed = frame(ass, 2.5), frame(ass, 4.2)
    for picture in (at_home, at_indeed):
        assert 0 < yellow(picture) < white(picture)
    assert np.flatnonzero((at_home.sum(axis=2) > 300).any(axis=1)).max() < 180  # at the top

import pytest

from mediamill.errors import TooLarge, UnsupportedMedia
from mediamill.media import captions, fonts
from mediamill.media.karaoke import SubtitleStyle

_SRT = "1\n00:00:01,000 --> 00:00:02,500\nOlá, ação!\n\n2\n00:00:03,000 --> 00:00:04,000\nSegunda\nlinha\n"


def read(tmp_path, content):
    path = tmp_path / "a.srt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return captions.read(path)


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (_SRT.encode(), "utf-8"),
        (_SRT.encode("utf-8-sig"), "utf-8-sig"),
        (_SRT.encode("utf-16"), "utf-16"),
        (b"\xfe\xff" + _SRT.encode("utf-16-be"), "utf-16"),
        (_SRT.encode("utf-16-le"), "utf-16-le"),
        (_SRT.encode("utf-16-be"), "utf-16-be"),
        (_SRT.encode("latin-1"), "cp1252"),
        (_SRT.replace("\n", "\r\n").encode(), "utf-8"),
        (_SRT.replace("\n", "\r").encode(), "utf-8"),
        (_SRT.replace(",", ".", 1).encode(), "utf-8"),
        (("\n\n" + _SRT + "\n\n\n").encode(), "utf-8"),
    ],
)
def test_cues_are_read_in_every_common_encoding_and_line_ending(tmp_path, content, encoding):
    found = read(tmp_path, content)
    assert found.encoding == encoding
    assert [(c.start_s, c.end_s) for c in found.cues] == [(1.0, 2.5), (3.0, 4.0)]
    assert found.cues[0].text.replace(".", ",") == "Olá, ação!"
    assert found.cues[1].text == "Segunda\nlinha"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("shift_jis", "これは日本語の字幕です。今日はとても良い天気ですね。"),
        ("gb18030", "这是一个中文字幕的例子，今天的天气非常好，我们去公园散步吧。"),
        ("cp1251", "Это русские субтитры. Сегодня очень хорошая погода, и мы пойдём гулять в парк."),
        ("cp1252", "São legendas em português: não há razão para confusão, é só ação e emoção."),
    ],
)
def test_texts_from_before_unicode_are_recognised(tmp_path, encoding, text):
    lines = "\n\n".join(f"{i + 1}\n00:00:0{i},000 --> 00:00:0{i},900\n{text}" for i in range(6))
    assert read(tmp_path, lines.encode(encoding)).cues[3].text == text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (_SRT.replace("00:00:01,000", "00:00:aa,000"), "Line [12] "),
        (_SRT.replace("00:00:03,000", "00:xx:03,000"), "Line 6 .*time"),
        (_SRT.replace("00:00:04,000", "00:00:02,000"), "Line 6 .*ends before"),
        (_SRT.replace("00:00:04,000", "200:00:04,000"), "Line 6 .*100 hours"),
        ("just some text\nwithout times\n", "Line 1 "),
        ("1\n00:00:01,000 -> 00:00:02,000\nx\n", "Line 1 "),
        (b"1\n00:00:01,000 --> 00:00:02,000\n\x00\x01binary\n", "NUL"),
        (b"\xff\xfe" + _SRT.encode("utf-16-le")[:-1], "utf-16"),
        ("[Script Info]\nTitle: x\n", "no \\[Events\\]"),
    ],
)
def test_a_broken_file_is_refused_with_the_line(tmp_path, content, says):
    with pytest.raises(UnsupportedMedia, match=says):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b" " * (captions.MAX_BYTES + 1), "4194305 bytes"),
        ("1\n00:00:01,000 --> 00:00:02,000\n" + "x" * 2001, "cue 1 has 2001 characters"),
        ("".join(f"{i}\n00:00:01,000 --> 00:00:02,000\nx\n\n" for i in range(1, 20_003)), "more than 20000 cues"),
    ],
    ids=["bytes", "characters", "cues"],
)
def test_sizes_are_bounded(tmp_path, content, says):
    with pytest.raises(TooLarge, match=says):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "content", ["", "\n\n", "1\n00:00:01,000 --> 00:00:02,000\n\n", "1\n00:00:01,000 --> 00:00:02,000\n<i></i>\n"]
)
def test_a_file_without_text_has_no_cues(tmp_path, content):
    assert read(tmp_path, content).cues == ()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (r"{\an8}{\fs200\p1}m 0 0{\p0} hi", "m 0 0 hi"),
        ("<font color=red>red</font> <b>bold</b>", "red <b>bold</b>"),
        ("<i>never closed", "<i>never closed</i>"),
        ("closed</i> never opened", "closed never opened"),
        ("<B>x</B> <script>alert(1)</script> a < b", "<b>x</b> alert(1) a < b"),
        ("tab\there\x07", "tab here"),
    ],
)
def test_tags_that_could_draw_or_move_are_dropped_and_simple_markup_is_balanced(tmp_path, text, clean):
    assert read(tmp_path, f"1\n00:00:01,000 --> 00:00:02,000\n{text}\n").cues[0].text == clean


def test_text_cannot_open_a_tag_in_the_file_that_is_drawn(tmp_path):
    found = read(tmp_path, "1\n00:00:01,000 --> 00:00:02,000\n{p1} \\N \\pos(1,1) <i>x</i>\nB,,0,0,0,,{\n")
    ass = captions.to_ass(found, width_px=320, height_px=180)
    line = ass.strip().split("\n")[-1]
    assert line == r"Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,｛p1｝ ＼N ＼pos(1,1) {\i1}x{\i0}\NB,,0,0,0,,｛"
    assert captions.spoken(ass) == "｛p1｝ ＼N ＼pos(1,1) xB,,0,0,0,,｛"


def test_every_run_of_letters_names_a_font_that_has_them(tmp_path):
    found = read(tmp_path, "1\n00:00:01,000 --> 00:00:02,000\nOlá 你好 <b>ok</b>\n")
    ass = captions.to_ass(found, width_px=320, height_px=180)
    faces, missing = fonts.assign(captions.spoken(ass))
    assert missing == []
    text = captions.with_fonts(ass, faces).strip().split(",,0,0,0,,")[-1]
    assert text == r"{\fnNoto Sans}Olá {\fnNoto Sans CJK SC}你好 {\b1}{\fnNoto Sans}ok{\b0}"


def test_soft_subtitles_are_clean_srt(tmp_path):
    found = read(tmp_path, "7\n00:00:01,000 --> 00:00:02,000\n{\\an8}<font size=9>x</font>\n")
    assert captions.to_srt(found.cues) == "1\n00:00:01,000 --> 00:00:02,000\nx\n\n"


def test_an_ass_file_gives_its_text_and_word_times_and_nothing_else(tmp_path):
    uploaded = (
        "[Script Info]\nScriptType: v4.00+\n\n[Fonts]\nfontname: evil.ttf\n!!!!\n\n[V4+ Styles]\n"
        "Format: Name, Fontname, Fontsize\nStyle: Huge,Evil,9999\n\n[Events]\n"
        "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
        "Dialogue: 0,0:00:01.00,0:00:02.00,Huge,,0,0,0,,{\\k50\\t(0,9,\\fscx900)}Hello{\\k50} world\n"
        "Dialogue: 0,0:00:01.00,0:00:02.00,Huge,,0,0,0,,{\\p1}m 0 0 l 9999 9999{\\p0}\n"
    )
    found = read(tmp_path, uploaded)
    assert [c.text for c in found.cues] == ["Hello world"]
    ass = captions.to_ass(found, width_px=320, height_px=180)
    assert "Evil" not in ass
    assert "9999" not in ass
    assert "\\k50" in ass
    styled = captions.to_ass(found, width_px=320, height_px=180, style=SubtitleStyle(name="karaoke", color="#112233"))
    assert "&H00332211" in styled

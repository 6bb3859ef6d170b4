r"""Subtitle files of callers to clean cues, and cues to the ASS or SRT that FFmpeg gets.

Nothing of an uploaded file reaches libass as it is: text and times are read, override tags (`{\...}`) and unknown
markup are dropped, and a new file is written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import charset_normalizer
import srt

from mediamill.errors import TooLarge, UnsupportedMedia
from mediamill.media import karaoke
from mediamill.media.fonts import Face
from mediamill.media.karaoke import SubtitleStyle
from mediamill.media.speech_subtitles import Cue as TimedCue

MAX_BYTES = 4 * 1024**2
MAX_CUES = 20_000
MAX_CUE_CHARS = 2_000
MAX_TIME_S = 100 * 3600

_ARROW = "-->"
_BEFORE_TEXT = ",,0,0,0,,"
"""Name, margins and effect of every Dialogue line of ours."""
_OVERRIDE = re.compile(r"\{\\[^}]*\}")
_MARKUP = re.compile(r"<(/?)\s*([a-zA-Z]+)[^<>]*>")
_KEPT_MARKUP = frozenset("biu")
_EAST_ASIAN = frozenset(
    {"cp932", "shift_jis", "euc_jp", "gb18030", "gbk", "gb2312", "big5", "euc_kr", "cp949", "johab"}
)
_CYRILLIC = frozenset({"cp1251", "koi8_r", "koi8_u", "mac_cyrillic", "iso8859_5"})
_MIN_GUESS_COHERENCE = 0.3


@dataclass(frozen=True)
class Caption:
    """One text and when it is on screen. Of markup only balanced <b>, <i> and <u> are left; lines end in a line feed."""

    start_s: float
    end_s: float
    text: str

    @property
    def plain(self) -> str:
        """The text without markup."""
        return _MARKUP.sub("", self.text)


@dataclass(frozen=True)
class Captions:
    """What a subtitle file holds. `timed`: for ASS, the cues with their word times; a style where it is one of ours."""

    cues: tuple[Caption, ...]
    encoding: str
    timed: tuple[TimedCue, ...] = ()
    style: SubtitleStyle | None = None


def read(path: Path) -> Captions:
    """The cues of an SRT or ASS file in any common encoding.

    Raises: UnsupportedMedia: neither of them, or broken, naming the line. TooLarge: size, number or length of cues.
    """
    size_bytes = path.stat().st_size
    if size_bytes > MAX_BYTES:
        raise TooLarge(f"The subtitles have {size_bytes} bytes; at most {MAX_BYTES} are accepted.")
    text, encoding = decoded(path.read_bytes())
    if "[script info]" in text[:200].lower():
        timed = tuple(karaoke.parse_ass(text))
        cues = tuple(_checked(Caption(c.start_s, c.end_s, c.text), f"the event at {c.start_s:.2f} s") for c in timed)
        return Captions(cues, encoding, timed, karaoke.style_of(text))
    return Captions(tuple(_srt_cues(text)), encoding)


def decoded(data: bytes) -> tuple[str, str]:
    """Text with line feeds only, and the encoding it was in.

    A byte order mark decides; else UTF-8 where it is valid, UTF-16 where every other byte is 0, an East Asian or
    Cyrillic encoding where the words speak for it, and Windows-1252 (the superset of Latin-1) otherwise.
    """
    encoding = _encoding_of(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "cp1252":
            raise UnsupportedMedia(f"The subtitles are not valid {encoding} at byte {error.start}.") from error
        encoding = "latin-1"
        text = data.decode(encoding)
    if "\0" in text:
        raise UnsupportedMedia("The subtitles are not text: they contain NUL characters.")
    return text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff"), encoding


def _encoding_of(data: bytes) -> str:
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig")):
        if data.startswith(mark):
            return encoding
    head = data[:1000]
    if len(head) >= 4 and head[1::2].count(0) > len(head) // 4:  # noqa: PLR2004 - two characters at least
        return "utf-16-le"
    if len(head) >= 4 and head[0::2].count(0) > len(head) // 4:  # noqa: PLR2004 - as above
        return "utf-16-be"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return _guessed(data)
    return "utf-8"


def _guessed(data: bytes) -> str:
    """Latin letters with single accented bytes are Windows-1252, whatever else those bytes could mean."""
    sample = data[: 64 * 1024]
    high = len(sample.translate(None, bytes(range(128))))
    letters = sum(map(bytes.isalpha, map(bytes, zip(sample, strict=True))))
    guess = charset_normalizer.from_bytes(sample, threshold=0.2).best() if high * 2 > letters else None
    if guess is None:
        return "cp1252"
    cyrillic = guess.encoding in _CYRILLIC and guess.coherence >= _MIN_GUESS_COHERENCE
    return guess.encoding if cyrillic or guess.encoding in _EAST_ASIAN else "cp1252"


def _srt_cues(text: str) -> Iterable[Caption]:
    """Every cue of an SRT file, in order of time."""
    if not text.strip():
        return []
    if _ARROW not in text:
        raise UnsupportedMedia(f"Line 1 of the subtitles is not SRT: {_shown(text.strip())}.")
    cues: list[Caption] = []
    try:
        for entry in srt.parse(text):
            if len(cues) >= MAX_CUES:
                raise TooLarge(f"The subtitles have more than {MAX_CUES} cues.")
            cues.append(_srt_cue(entry, text))
    except srt.SRTParseError as error:
        raise UnsupportedMedia(_at_line(text, error.expected_start, "has no valid SRT cue")) from error
    except (OverflowError, ValueError) as error:
        raise UnsupportedMedia("The subtitles have a time that cannot be read.") from error
    return sorted((cue for cue in cues if cue.plain.strip()), key=lambda cue: (cue.start_s, cue.end_s))


def _srt_cue(entry: srt.Subtitle, text: str) -> Caption:
    stray = entry.content.find(_ARROW)
    if stray >= 0:  # the parser takes a cue with a broken time for more text of the cue before it
        line = next(row for row in entry.content.split("\n") if _ARROW in row)
        raise UnsupportedMedia(_at_line(text, text.index(line), "has a time that cannot be read"))
    start_s, end_s = entry.start.total_seconds(), entry.end.total_seconds()
    where = f"cue {entry.index}"
    if end_s < start_s or end_s > MAX_TIME_S:
        stamp = srt.timedelta_to_srt_timestamp(entry.start)
        at = text.find(stamp)
        problem = "ends before it starts" if end_s < start_s else f"ends after {MAX_TIME_S // 3600} hours"
        raise UnsupportedMedia(_at_line(text, at, problem) if at >= 0 else f"The subtitles' {where} {problem}.")
    return _checked(Caption(start_s, end_s, entry.content), where)


def _at_line(text: str, offset: int, problem: str) -> str:
    start = offset + len(text[offset:]) - len(text[offset:].lstrip("\n"))
    number = text.count("\n", 0, start) + 1
    line = text[start:].split("\n", 1)[0]
    return f"Line {number} of the subtitles {problem}: {_shown(line)}."


def _shown(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:57] + "...")  # noqa: PLR2004 - one short line


def _checked(cue: Caption, where: str) -> Caption:
    if len(cue.text) > MAX_CUE_CHARS:
        raise TooLarge(
            f"In the subtitles {where} has {len(cue.text)} characters; at most {MAX_CUE_CHARS} are accepted."
        )
    return Caption(cue.start_s, cue.end_s, _clean(cue.text))


def _clean(text: str) -> str:
    r"""Without `{\...}` tags, unknown markup and control characters; <b>, <i> and <u> balanced within the cue."""
    text = _OVERRIDE.sub("", text).replace("\t", " ")
    text = "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")
    kept: list[str] = []
    opened: list[str] = []
    at = 0
    for tag in _MARKUP.finditer(text):
        kept.append(text[at : tag.start()])
        at = tag.end()
        closing, name = bool(tag[1]), tag[2].lower()
        if name not in _KEPT_MARKUP or closing != (name in opened):
            continue
        kept.append(f"<{'/' if closing else ''}{name}>")
        if closing:
            opened.remove(name)
        else:
            opened.append(name)
    kept.append(text[at:])
    return "".join(kept).strip() + "".join(f"</{name}>" for name in reversed(opened))


def to_srt(cues: Sequence[Caption]) -> str:
    """Clean SRT, numbered from 1."""
    entries = [
        srt.Subtitle(i, timedelta(seconds=c.start_s), timedelta(seconds=c.end_s), c.text) for i, c in enumerate(cues, 1)
    ]
    composed: str = srt.compose(entries)
    return composed


_HEAD = """[Script Info]
ScriptType: v4.00+
PlayResX: {width_px}
PlayResY: {height_px}
WrapStyle: 0
ScaledBorderAndShadow: yes
YCbCr Matrix: TV.709

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: {style}

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text"""


def to_ass(captions: Captions, *, width_px: int, height_px: int, style: SubtitleStyle | None = None) -> str:
    """An ASS file for a picture of that size: word by word for ASS or where a style is wished, else plain subtitles."""
    style = style or captions.style
    if captions.timed or style is not None:
        timed = captions.timed or tuple(karaoke.plain_cue(c.start_s, c.end_s, c.plain) for c in captions.cues)
        return karaoke.to_ass(timed, style or SubtitleStyle(name="classic"), width_px=width_px, height_px=height_px)
    size_px = max(8, round(height_px * 0.062 if width_px >= height_px else width_px * 0.07))
    edge_px = max(1.0, round(size_px * 0.055, 1))
    margin_px = round(width_px * 0.05)
    style_line = (
        f"Default,Noto Sans,{size_px},&H00FFFFFF,&H00FFFFFF,&H00000000,&H80000000,0,0,0,0,100,100,0,0,1,{edge_px:g},0,2,"
        f"{margin_px},{margin_px},{round(height_px * 0.05)},-1"
    )
    head = _HEAD.format(width_px=width_px, height_px=height_px, style=style_line)
    lines = [
        f"Dialogue: 0,{_ass_time(c.start_s)},{_ass_time(c.end_s)},Default{_BEFORE_TEXT}{_ass_text(c)}"
        for c in captions.cues
    ]
    return "\n".join([head, *lines, ""])


def _ass_text(cue: Caption) -> str:
    r"""Markup to tags of our own; braces and backslashes of the text would open tags, so full-width forms stand in."""
    text = cue.text.replace("\\", "＼").replace("{", "｛").replace("}", "｝")
    text = _MARKUP.sub(lambda tag: f"{{\\{tag[2].lower()}{0 if tag[1] else 1}}}", text)
    return text.replace("\n", r"\N")


def _ass_time(seconds: float) -> str:
    cs = round(seconds * 100)
    return f"{cs // 360_000}:{cs // 6000 % 60:02d}:{cs // 100 % 60:02d}.{cs % 100:02d}"


_SPOKEN = re.compile(r"(\{[^}]*\})|(\\[Nnh])")


def with_fonts(ass: str, faces: Mapping[str, Face]) -> str:
    r"""The same file with a font named for every run of letters: libass's own choice is not to be relied on.

    Args:
        ass: From `to_ass`.
        faces: The face of each character, from `fonts.assign`.
    """
    rows = []
    for row in ass.split("\n"):
        if row.startswith("Dialogue:"):
            head, text = row.split(_BEFORE_TEXT, 1)
            rows.append(f"{head}{_BEFORE_TEXT}{_runs(text, faces)}")
        else:
            rows.append(row)
    return "\n".join(rows)


def _runs(text: str, faces: Mapping[str, Face]) -> str:
    family = ""
    parts: list[str] = []
    for piece in _SPOKEN.split(text):
        if not piece:
            continue
        if _SPOKEN.fullmatch(piece):
            parts.append(piece)
            continue
        for char in piece:
            face = faces.get(char)
            if face is not None and face.family != family:
                family = face.family
                parts.append(f"{{\\fn{family}}}")
            parts.append(char)
    return "".join(parts)


def spoken(ass: str) -> str:
    """Every letter that an ASS file of ours draws."""
    rows = (row.split(_BEFORE_TEXT, 1)[1] for row in ass.split("\n") if row.startswith("Dialogue:"))
    return "".join(piece for row in rows for piece in _SPOKEN.split(row) if piece and not _SPOKEN.fullmatch(piece))

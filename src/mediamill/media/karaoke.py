r"""Cues to styled ASS and back. Pure text.

Only text, times and a validated style ever leave `parse_ass`, so an uploaded ASS file cannot bring fonts, drawings or
transforms with it: `to_ass(parse_ass(upload), style)` is safe to burn in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import pysubs2
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mediamill.errors import UnsupportedMedia
from mediamill.media.speech_subtitles import Cue, Word, cues_of, is_cjk, is_rtl

DEFAULT_FONT = "Noto Sans CJK SC"
WIDTH_PX, HEIGHT_PX = 1920, 1080
MAX_EVENTS = 20_000
_STYLE_MARK = "mediamill-style:"
_STYLE_FORMAT = (
    "Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, "
    "Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, "
    "MarginR, MarginV, Encoding"
)
_REFERENCE_HEIGHT_PX = 1080
_GAP_CLOSED_CS = 30
"""In `word_by_word` a word stays until the next one when the pause is shorter, so that the screen does not flicker."""

StyleName = Literal["classic", "karaoke", "highlight", "word_by_word"]
Colour = Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$")]


class SubtitleStyle(BaseModel):
    """How subtitles look. A bare name stands for that style with its defaults."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    name: StyleName = Field(
        default="karaoke",
        description="classic: plain text. karaoke: words change colour as they are spoken and stay so. "
        "highlight: only the word being spoken is coloured. word_by_word: one word at a time.",
    )
    position: Literal["bottom", "middle", "top"] = Field(default="bottom", description="Where the text stands.")
    font: str | None = Field(
        default=None,
        pattern=r"^[^\x00-\x1f,{}\\;]{1,64}$",
        description="Font family; unset: Noto Sans and, for letters it has not, Noto Sans CJK.",
    )
    size_px: int | None = Field(
        default=None, ge=8, le=300, description="Letter size in a picture 1080 pixels high; unset: so that lines fit."
    )
    color: Colour = Field(default="#FFFFFF", description="Colour of the text, #RRGGBB.")
    highlight_color: Colour = Field(default="#FFD400", description="Colour of spoken words, #RRGGBB.")
    outline_color: Colour = Field(default="#000000", description="Colour of the outline, #RRGGBB.")
    outline_px: float = Field(default=3.0, ge=0, le=20, description="Width of the outline at 1080 lines, pixels.")
    bold: bool = Field(default=True, description="Whether letters are bold.")

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


def to_ass(
    cues: Sequence[Cue], style: SubtitleStyle | None = None, *, width_px: int = WIDTH_PX, height_px: int = HEIGHT_PX
) -> str:
    r"""A complete ASS file: one Dialogue a cue (one a word in `word_by_word`), `\k` centiseconds for each word.

    The `\k` values of a Dialogue add up exactly to its length, gaps included, and are rounded from absolute times, so
    the highlight never drifts. Without cues the file is valid and empty.

    Args:
        cues: In order, without overlap.
        style: None: karaoke with its defaults.
        width_px: Width of the picture the text will stand on.
        height_px: Its height.
    """
    style = style or SubtitleStyle()
    rtl = any(is_rtl(cue.text) for cue in cues[:5])
    events = (line for cue in cues for line in _dialogues(cue, style))
    return "\n".join([*_header(style, width_px, height_px, rtl=rtl), *events, ""])


def _header(style: SubtitleStyle, width_px: int, height_px: int, *, rtl: bool) -> list[str]:
    scale = height_px / _REFERENCE_HEIGHT_PX
    spoken = style.highlight_color if style.name == "karaoke" else style.color
    size_px = style.size_px * scale if style.size_px else _size_px(style, width_px, height_px)
    fields = [
        "Default",
        style.font or DEFAULT_FONT,
        round(size_px),
        _bgr(spoken),
        _bgr(style.color),
        _bgr(style.outline_color),
        "&H80000000",
        -1 if style.bold else 0,
        *(0, 0, 0, 100, 100, 0, 0, 1),
        f"{style.outline_px * scale:g}",
        0,
        {"bottom": 2, "middle": 5, "top": 8}[style.position],
        *(round(width_px * 0.05), round(width_px * 0.05), round(height_px * 0.06)),
        # libass takes -1 as "find the direction of the text"; 1 would set RTL lines as if they ran left to right.
        -1 if rtl else 1,
    ]
    return [
        "[Script Info]",
        "; Made by mediamill",
        f"; {_STYLE_MARK} {style.model_dump_json(exclude_defaults=True)}",
        "ScriptType: v4.00+",
        f"PlayResX: {width_px}",
        f"PlayResY: {height_px}",
        "WrapStyle: 0",
        "ScaledBorderAndShadow: yes",
        "",
        "[V4+ Styles]",
        _STYLE_FORMAT,
        "Style: " + ",".join(map(str, fields)),
        "",
        "[Events]",
        "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text",
    ]


def _size_px(style: SubtitleStyle, width_px: int, height_px: int) -> float:
    """So that a line of 42 Latin or 16 wide letters fits nine tenths of the width, in tall pictures too."""
    if style.name == "word_by_word":
        return min(height_px * 0.1, width_px * 0.09)
    return max(8.0, min(height_px * 0.056, width_px * 0.9 / 22))


def _bgr(colour: str) -> str:
    return f"&H00{colour[5:7]}{colour[3:5]}{colour[1:3]}".upper()


def _dialogues(cue: Cue, style: SubtitleStyle) -> Iterator[str]:
    if style.name != "word_by_word":
        yield _dialogue(cue.start_s, cue.end_s, _karaoke_text(cue, style))
        return
    words = cue.words
    for i, word in enumerate(words):
        end_cs = max(_cs(word.end_s), _cs(word.start_s) + 1)
        next_cs = _cs(words[i + 1].start_s) if i + 1 < len(words) else _cs(cue.end_s)
        if next_cs - end_cs <= _GAP_CLOSED_CS:
            end_cs = next_cs
        if end_cs > _cs(word.start_s):
            yield _dialogue(
                word.start_s, end_cs / 100, f"{{\\k{end_cs - _cs(word.start_s)}}}{_escaped(word.text.strip())}"
            )


def _dialogue(start_s: float, end_s: float, text: str) -> str:
    return f"Dialogue: 0,{_ass_time(start_s)},{_ass_time(end_s)},Default,,0,0,0,,{text}"


def _karaoke_text(cue: Cue, style: SubtitleStyle) -> str:
    start_cs, end_cs = _cs(cue.start_s), _cs(cue.end_s)
    cursor_cs = start_cs
    parts: list[str] = []
    for number, line in enumerate(cue.lines):
        if number:
            parts.append(r"\N")
        for index, word in enumerate(line):
            body = word.text.lstrip()
            if index:
                parts.append(" " * (len(word.text) - len(body)))
            from_cs = min(max(_cs(word.start_s), cursor_cs), end_cs)
            to_cs = min(max(_cs(word.end_s), from_cs), end_cs)
            if from_cs > cursor_cs:
                parts.append(f"{{\\k{from_cs - cursor_cs}}}")
            extra = _lit(style, from_cs - start_cs, to_cs - start_cs) if style.name == "highlight" else ""
            parts.append(f"{{\\k{to_cs - from_cs}{extra}}}{_escaped(body)}")
            cursor_cs = to_cs
    if end_cs > cursor_cs:
        parts.append(f"{{\\k{end_cs - cursor_cs}}}")
    return "".join(parts)


def _lit(style: SubtitleStyle, from_cs: int, to_cs: int) -> str:
    """Override tags that colour a word from one moment (centiseconds into the line) to another."""
    base, lit = _bgr(style.color)[4:], _bgr(style.highlight_color)[4:]
    on_ms, off_ms = from_cs * 10, max(to_cs, from_cs + 1) * 10
    return f"\\1c&H{base}&\\t({max(0, on_ms - 1)},{max(1, on_ms)},\\1c&H{lit}&)\\t({off_ms - 1},{off_ms},\\1c&H{base}&)"


def _escaped(text: str) -> str:
    """Text that no renderer takes for a tag: braces and backslashes would open one."""
    return text.replace("\\", "/").replace("{", "(").replace("}", ")").replace("\r", "").replace("\n", " ")


def _cs(seconds: float) -> int:
    return round(seconds * 100)


def _ass_time(seconds: float) -> str:
    cs = _cs(seconds)
    return f"{cs // 360_000}:{cs // 6000 % 60:02d}:{cs // 100 % 60:02d}.{cs % 100:02d}"


def style_of(text: str) -> SubtitleStyle | None:
    """The style an ASS file of ours was made with, or None for any other file."""
    match = re.search(rf"^;\s*{_STYLE_MARK}\s*(\{{.*\}})\s*$", text[:4096], re.MULTILINE)
    if match is None:
        return None
    try:
        raw: Mapping[str, Any] = json.loads(match.group(1))
        return SubtitleStyle.model_validate(raw)
    except (ValueError, ValidationError):
        return None


_TAG = re.compile(r"\{([^{}]*)\}")
_KARAOKE = re.compile(r"\\[kK][fot]?\s*(\d{1,7})")
_DRAWING = re.compile(r"\\p\s*[1-9]")


def parse_ass(text: str) -> list[Cue]:
    r"""Text and times of an ASS file; everything else of it (fonts, drawings, moves, its styles) is left behind.

    `\k` times become word times; a line without them gets word times in proportion to the words' lengths.
    Events of one word each (`word_by_word`) are put together again.

    Raises: UnsupportedMedia: not ASS, or more than 20,000 events.
    """
    if "[events]" not in text.lower():
        raise UnsupportedMedia("The file is not ASS: it has no [Events] section.")
    try:
        parsed = pysubs2.SSAFile.from_string(text, format_="ass")
    except (pysubs2.exceptions.Pysubs2Error, ValueError, KeyError, IndexError) as error:
        raise UnsupportedMedia(f"The ASS file cannot be read: {error}.") from error
    events = [e for e in parsed.events if e.type == "Dialogue" and not _DRAWING.search(e.text)]
    if len(events) > MAX_EVENTS:
        raise UnsupportedMedia(f"The ASS file has {len(events)} events; at most {MAX_EVENTS} are accepted.")
    events.sort(key=lambda e: (e.start, e.end))
    cues = [_parsed_cue(e.start / 1000, e.end / 1000, e.text) for e in events if e.end > e.start]
    cues = [cue for cue in cues if cue.words]
    style = style_of(text)
    if style is not None and style.name == "word_by_word":
        return cues_of([word for cue in cues for word in _spaced(cue.words)])
    return cues


def _spaced(words: Sequence[Word]) -> Iterator[Word]:
    for word in words:
        lead = "" if is_cjk(word.text[:1]) or word.text[:1].isspace() else " "
        yield Word(lead + word.text, word.start_s, word.end_s, word.probability)


def _parsed_cue(start_s: float, end_s: float, text: str) -> Cue:
    if not _KARAOKE.search(text):
        plain = _TAG.sub("", text)
        return plain_cue(start_s, end_s, re.sub(r"\\N", "\n", plain).replace(r"\n", " ").replace(r"\h", " "))
    lines: list[list[Word]] = [[]]
    cursor_cs, length_cs = _cs(start_s), 0
    lead = before = ""
    for tags, chunk in re.findall(r"((?:\{[^{}]*\})*)([^{}]*)", text):
        lengths = [int(n) for n in _KARAOKE.findall(tags)]
        if lengths:
            cursor_cs += length_cs + sum(lengths[:-1])
            length_cs = lengths[-1]
        for number, piece in enumerate(re.split(r"\\N", chunk)):
            if number:
                lines.append([])
                lead = "" if before and is_cjk(before) else " "
            body = piece.replace(r"\n", " ").replace(r"\h", " ")
            if body.strip():
                end_cs = cursor_cs + length_cs
                lines[-1].append(Word(lead + body.rstrip(), cursor_cs / 100, min(end_cs / 100, max(end_s, 0.0))))
                lead, before = "", body.rstrip()[-1]
            lead += body[len(body.rstrip()) :] if body.strip() else body
    return Cue(start_s, end_s, tuple(tuple(line) for line in lines if line))


def plain_cue(start_s: float, end_s: float, text: str) -> Cue:
    """A cue from text without word times: its lines are kept, words share the time by their lengths."""
    rows = [row for row in (_split_words(row) for row in text.splitlines()) if row]
    total = sum(len(word) for row in rows for word in row) or 1
    lines: list[tuple[Word, ...]] = []
    done = 0
    for row in rows:
        line: list[Word] = []
        for word in row:
            from_s = start_s + (end_s - start_s) * done / total
            done += len(word)
            line.append(Word(word, round(from_s, 2), round(start_s + (end_s - start_s) * done / total, 2)))
        lines.append(tuple(line))
    return Cue(start_s, end_s, tuple(lines))


def _split_words(row: str) -> list[str]:
    """Words with their leading space; wide characters are words of their own."""
    pieces = re.findall(r"\s*\S+", row.strip())
    return [part for piece in pieces for part in (_single(piece) if any(map(is_cjk, piece)) else [piece])]


def _single(piece: str) -> list[str]:
    """Wide characters one by one, other runs and closing marks kept together; leading space stays in front."""
    parts: list[str] = []
    for char in piece:
        begun = bool(parts) and not parts[-1].isspace()
        narrow = begun and not is_cjk(char) and not is_cjk(parts[-1][-1])
        if parts and (not begun or narrow or not char.isalnum()):
            parts[-1] += char
        else:
            parts.append(char)
    return parts

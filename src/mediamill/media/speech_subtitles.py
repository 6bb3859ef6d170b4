"""Timed words to subtitle cues and SRT: pure text and arithmetic.

A word's text carries its leading space where the script has one, so joining the texts gives the sentence back.
"""

from __future__ import annotations

import bisect
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

LINE_CHARS = 42
CJK_LINE_CHARS = 16
MAX_LINES = 2
MIN_CUE_S = 1.0
MAX_CUE_S = 7.0
PAUSE_BREAK_S = 1.0
"""A pause this long always ends a cue: the text would otherwise stand over silence."""
_PAUSE_S = 0.3
_SENTENCE_END = frozenset(".!?…。！？؟۔।॥")
_CLAUSE_END = frozenset(",;:—、，；：،؛")
_CLOSING = frozenset("\"'”’»)]}」』）】》")
_OPENING = frozenset("\"'“‘«([{「『（【《¿¡")
_MAX_WORDS = 60
"""Words a cue may hold at most; bounds the search."""


@dataclass(frozen=True)
class Word:
    """One spoken word. `text` with its leading space, if any; times in seconds from the start of the file."""

    text: str
    start_s: float
    end_s: float
    probability: float = 1.0


@dataclass(frozen=True)
class Cue:
    """What is on screen at once: at most two lines and the words in them. Times are whole centiseconds."""

    start_s: float
    end_s: float
    lines: tuple[tuple[Word, ...], ...]

    @property
    def words(self) -> tuple[Word, ...]:
        """All words, in order."""
        return tuple(itertools.chain.from_iterable(self.lines))

    @property
    def text(self) -> str:
        """The lines as read, joined by a line feed."""
        return "\n".join("".join(w.text for w in line).strip() for line in self.lines)


def is_cjk(char: str) -> bool:
    """Whether a character is as wide as two Latin ones: Chinese, Japanese, Korean and their punctuation."""
    return unicodedata.east_asian_width(char) in {"W", "F"}


def is_rtl(text: str) -> bool:
    """Whether the first letter with a direction runs right to left."""
    directions = (unicodedata.bidirectional(char) for char in text)
    return next((d for d in directions if d in {"L", "R", "AL"}), "L") != "L"


def line_chars(text: str) -> int:
    """Characters that a line of this text may hold."""
    return CJK_LINE_CHARS if any(map(is_cjk, text)) else LINE_CHARS


def joined(pieces: Iterable[Word]) -> list[Word]:
    """Whole words from what a recogniser splits: `1` + `,000`, `twenty` + `-five`, `don` + `'t`, closing marks.

    Scripts without spaces keep one word a character group; combining marks never start a word.
    """
    words: list[Word] = []
    for piece in pieces:
        if not piece.text.strip():
            continue
        if words and _belongs(words[-1].text, piece.text):
            last = words[-1]
            words[-1] = Word(
                last.text + piece.text,
                last.start_s,
                max(last.end_s, piece.end_s),
                min(last.probability, piece.probability),
            )
        else:
            words.append(piece)
    return words


def _belongs(before: str, piece: str) -> bool:
    """Whether `piece` is the continuation of the word `before`."""
    if before[-1:].isspace() or piece[0].isspace():
        return False
    if unicodedata.category(piece[0]).startswith("M"):
        return True
    if _spaceless(before[-1]) or _spaceless(piece[0]):
        return before.strip()[-1] in _OPENING or not any(c.isalnum() for c in piece)
    return True


def _spaceless(char: str) -> bool:
    """Whether the script of a character writes no spaces between words: Han, kana, Thai, Lao, Khmer, Myanmar."""
    name = unicodedata.name(char, "")
    scripts = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "IDEOGRAPHIC", "FULLWIDTH")
    return name.startswith(scripts) or char in "。、，！？：；「」『』（）【】《》"


def monotonic(words: Iterable[Word]) -> list[Word]:
    """The same words with times that never run backwards or overlap; whole centiseconds, plain floats."""
    ordered: list[Word] = []
    cursor_cs = 0
    for word in words:
        start_cs = max(cursor_cs, round(float(word.start_s) * 100))
        end_cs = max(start_cs, round(float(word.end_s) * 100))
        ordered.append(Word(word.text, start_cs / 100, end_cs / 100, float(word.probability)))
        cursor_cs = end_cs
    return ordered


def cues_of(words: Sequence[Word]) -> list[Cue]:
    """Readable cues: two lines at most, 1 to 7 s, cut at punctuation and pauses, never overlapping.

    Every word is in exactly one cue. A cue is shorter than a second only where the next words leave no room.

    Args:
        words: Monotonic, as `monotonic` returns them.
    """
    blocks = _blocks(_short_enough(words))
    cues = [_cue(group) for block in blocks for group in _grouped(block)]
    return _timed(cues)


def _short_enough(words: Iterable[Word]) -> Iterator[Word]:
    """Words longer than a line, and words held for longer than a cue, in pieces that fit."""
    for word in words:
        limit = line_chars(word.text)
        text = word.text
        if len(text.strip()) <= limit:
            yield word
            continue
        pieces = [text[i : i + limit] for i in range(0, len(text), limit)]
        step_s = (word.end_s - word.start_s) / len(pieces)
        for i, piece in enumerate(pieces):
            start_s = round(word.start_s + i * step_s, 2)
            end_s = word.end_s if i == len(pieces) - 1 else round(word.start_s + (i + 1) * step_s, 2)
            yield replace(word, text=piece, start_s=start_s, end_s=end_s)


def _blocks(words: Iterable[Word]) -> Iterator[list[Word]]:
    """Runs of words without a long pause."""
    block: list[Word] = []
    for word in words:
        if block and word.start_s - block[-1].end_s >= PAUSE_BREAK_S:
            yield block
            block = []
        block.append(word)
    if block:
        yield block


def _grouped(words: list[Word]) -> list[list[Word]]:
    """The cheapest cut of a run into cues, by dynamic programming over the cut points."""
    run = _Run(words)
    best: list[float] = [0.0, *[float("inf")] * len(words)]
    cut_before: list[int] = [0] * (len(words) + 1)
    for end in range(1, len(words) + 1):
        ending = 1.0 + _break_cost(words[end - 1], words[end] if end < len(words) else None)
        for start in range(end - 1, max(-1, end - 1 - _MAX_WORDS), -1):
            if start < end - 1 and not run.fits(start, end):
                break
            cost = best[start] + ending + run.cost(start, end)
            if cost < best[end]:
                best[end], cut_before[end] = cost, start
    groups: list[list[Word]] = []
    end = len(words)
    while end:
        groups.append(words[cut_before[end] : end])
        end = cut_before[end]
    return groups[::-1]


class _Run:
    """Words without a long pause, with running sums, so that any stretch of them is judged in a moment."""

    def __init__(self, words: Sequence[Word]) -> None:
        self._words = words
        self._chars = [0, *itertools.accumulate(len(w.text) for w in words)]
        self._wide = [0, *itertools.accumulate(any(map(is_cjk, w.text)) for w in words)]
        self._ends = [0, *itertools.accumulate(_ends_with(w, _SENTENCE_END) for w in words)]

    def fits(self, start: int, end: int) -> bool:
        """Whether words `start` to `end` (exclusive) are at most 7 s and two lines."""
        if self._words[end - 1].end_s - self._words[start].start_s > MAX_CUE_S:
            return False
        limit = self._line_chars(start, end)
        if self._length(start, end) <= limit:
            return True
        # The first line as full as it gets leaves the least for the second.
        cut = bisect.bisect_right(self._chars, self._chars[start] + _lead(self._words[start]) + limit) - 1
        return start < cut < end and self._length(cut, end) <= limit

    def cost(self, start: int, end: int) -> float:
        """How badly the stretch reads as one cue: sentences that end inside, too short to read, hardly filled."""
        cost = 1.2 * (self._ends[end - 1] - self._ends[start])
        duration_s = self._words[end - 1].end_s - self._words[start].start_s
        if end < len(self._words):
            duration_s = max(duration_s, min(MIN_CUE_S, self._words[end].start_s - self._words[start].start_s))
        if duration_s < MIN_CUE_S:
            cost += 6.0 * (MIN_CUE_S - duration_s)
        if self._length(start, end) < MAX_LINES * self._line_chars(start, end) / 8:
            cost += 1.0
        return cost

    def _length(self, start: int, end: int) -> int:
        return self._chars[end] - self._chars[start] - _lead(self._words[start])

    def _line_chars(self, start: int, end: int) -> int:
        return CJK_LINE_CHARS if self._wide[end] > self._wide[start] else LINE_CHARS


def _break_cost(last: Word, following: Word | None) -> float:
    """0 at a sentence's end or the end of a run; dearer the less natural the cut is."""
    if following is None or _ends_with(last, _SENTENCE_END):
        return 0.0
    pause = following.start_s - last.end_s >= _PAUSE_S
    if _ends_with(last, _CLAUSE_END):
        return 0.3 if pause else 0.8
    return 1.0 if pause else 3.0


def _ends_with(word: Word, marks: frozenset[str]) -> bool:
    text = word.text.rstrip()
    while text and text[-1] in _CLOSING:
        text = text[:-1]
    return bool(text) and text[-1] in marks


def _wrapped(group: Sequence[Word]) -> tuple[tuple[Word, ...], ...] | None:
    """One line, or the two most balanced ones that fit (cut after punctuation where near), or None."""
    text = "".join(w.text for w in group)
    limit = line_chars(text)
    total = len(text.strip())
    if total <= limit:
        return (tuple(group),)
    if total > MAX_LINES * limit + 1:
        return None
    best: tuple[float, int] | None = None
    length = 0
    for i, word in enumerate(group[:-1]):
        length += len(word.text)
        first, second = length - _lead(group[0]), total - (length - _lead(group[0])) - _lead(group[i + 1])
        if first > limit or second > limit:
            continue
        bonus = 8 if _ends_with(word, _SENTENCE_END | _CLAUSE_END) else 0
        score = abs(first - second) - bonus
        if best is None or score < best[0]:
            best = (score, i + 1)
    return None if best is None else (tuple(group[: best[1]]), tuple(group[best[1] :]))


def _lead(word: Word) -> int:
    return len(word.text) - len(word.text.lstrip())


def _cue(group: Sequence[Word]) -> Cue:
    start_s = group[0].start_s
    lines = _wrapped(group) or (tuple(group),)
    return Cue(start_s, min(group[-1].end_s, round(start_s + MAX_CUE_S, 2)), lines)


def _timed(cues: list[Cue]) -> list[Cue]:
    """Stretch short cues to a second where the neighbours leave room: first at the end, then at the start."""
    timed: list[Cue] = []
    for i, cue in enumerate(cues):
        limit_s = cues[i + 1].start_s if i + 1 < len(cues) else float("inf")
        end_s = min(max(cue.end_s, round(cue.start_s + MIN_CUE_S, 2)), max(limit_s, cue.end_s))
        start_s = cue.start_s
        if end_s - start_s < MIN_CUE_S:
            floor_s = timed[-1].end_s if timed else 0.0
            start_s = min(start_s, max(floor_s, round(end_s - MIN_CUE_S, 2)))
        timed.append(replace(cue, start_s=start_s, end_s=max(end_s, start_s)))
    return timed


def to_srt(cues: Sequence[Cue]) -> str:
    """SubRip text, numbered from 1, UTF-8 without BOM, LF. No cues: an empty (and valid) file."""
    blocks = [
        f"{i}\n{srt_time(cue.start_s)} --> {srt_time(cue.end_s)}\n{cue.text}\n" for i, cue in enumerate(cues, start=1)
    ]
    return "\n".join(blocks)


def srt_time(seconds: float) -> str:
    """`HH:MM:SS,mmm`."""
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d},{ms % 1000:03d}"


def words_json(cues: Sequence[Cue]) -> list[dict[str, object]]:
    """The public word list; `segment` is the 0-based number of the cue that shows the word."""
    return [
        {
            "word": word.text.strip(),
            "start": word.start_s,
            "end": word.end_s,
            "probability": round(word.probability, 4),
            "segment": i,
        }
        for i, cue in enumerate(cues)
        for word in cue.words
    ]

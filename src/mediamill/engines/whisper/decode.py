"""Parts of a recording to timed text: each part decoded in sequence, several at once, and checked for what is missing."""

from __future__ import annotations

import bisect
import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mediamill.engines.whisper.audio import RATE_HZ, Sound
from mediamill.engines.whisper.residency import as_engine_error
from mediamill.engines.whisper.speech import HOP, Part, Span, spoken_s, unheard
from mediamill.errors import Cancelled
from mediamill.media.speech_subtitles import Word, is_cjk

_POLL_S = 0.1
_LEAST_UNHEARD_S = 1.2
_COVER_PAD_S = 0.3
_CONTEXT_S = 1.0
_JOIN_S = 4.0
_MAX_AGAIN_S = 25.0
_CARRIED_TOKENS = 224
_FORGET_TEMPERATURE = 0.5
_MIN_LOGPROB = -1.0
_MAX_NO_SPEECH = 0.6
_MAX_REPETITION = 2.4
_LONG_WORD_S = 0.6
_HELD_S, _HELD_PER_LETTER_S = 0.5, 0.12
"""Time a word may take; one that takes longer was stretched over speech that the model left out."""
_DIGIT_LETTERS = 4
_TIMELESS_RUN = 4
"""So many words in a row without any length were not spoken: the model ran on past the end of its window."""
_PREFIX_LETTERS = 4
_ROUNDS = 2
_WINDOW_S = 30.0
_TAIL_S = 0.25
"""Speech left at the end that is shorter than this is within the tolerance of segment times."""
_SPOKEN = 0.35
"""Below this probability Silero hears silence."""


@dataclass(frozen=True)
class Options:
    """How to decode; the names are faster-whisper's."""

    language: str
    task: Literal["transcribe", "translate"] = "transcribe"
    beam_size: int = 5
    word_timestamps: bool = True


@dataclass(frozen=True)
class Segment:
    """A stretch of text. Times in seconds of the whole recording. `words` is empty without word timestamps."""

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...] = ()


@dataclass
class _PartState:
    """What is known of a part under way."""

    heard_s: float = 0.0
    segments: list[Segment] = field(default_factory=list)
    again: int = 0
    _tokens: list[int] = field(default_factory=list)
    _latest: Any = None

    def follow(self, segment: Any, length_s: float) -> None:
        """Note how far it is, and what was said, as faster-whisper carries it from window to window."""
        self.heard_s = max(self.heard_s, min(float(segment.end), length_s))
        if self._latest is not None and self._latest.seek != segment.seek:
            self._tokens = self.carried()
        self._tokens += segment.tokens
        self._latest = segment

    def carried(self) -> list[int]:
        """What the next window continues: nothing after one that was decoded by chance."""
        by_chance = self._latest is None or self._latest.temperature > _FORGET_TEMPERATURE
        return [] if by_chance else self._tokens[-_CARRIED_TOKENS:]


class Decode:
    """Decodes while being iterated; then `segments` are there, in order."""

    def __init__(
        self,
        model: Any,
        sound: Sound,
        parts: Sequence[Part],
        *,
        probabilities: npt.NDArray[np.float32],
        options: Options,
        workers: int,
        cancelled: threading.Event,
    ) -> None:
        """Args: `workers`: parts decoded at once; with 1 each part continues the text of the one before."""
        self._model, self._sound, self._parts = model, sound, parts
        self._probabilities, self._options = probabilities, options
        self._workers, self._cancelled = workers, cancelled
        self._states = {part.number: _PartState() for part in parts}
        self._stop = threading.Event()
        self._before: list[int] = []
        self.again = 0
        """Stretches that were decoded a second time because no word was found in them."""
        self.segments: list[Segment] = []

    def __iter__(self) -> Iterator[float]:
        """Yield the share of audio seconds done. Raises Cancelled within a moment: what is in a C call ends later."""
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="whisper")
        pending = {pool.submit(self._decode_part, part) for part in self._parts}
        told = -1.0
        try:
            while pending:
                done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                _raise_first(done)
                if self._cancelled.is_set():
                    raise Cancelled
                if (share := self._share()) > told:
                    told = share
                    yield share
        finally:
            self._stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        states = [self._states[part.number] for part in self._parts]
        self.again = sum(state.again for state in states)
        self.segments = list(itertools.chain.from_iterable(state.segments for state in states))

    def _share(self) -> float:
        total_s = sum(part.heard_s for part in self._parts)
        return sum(state.heard_s for state in self._states.values()) / total_s if total_s > 0 else 1.0

    def _decode_part(self, part: Part) -> None:
        state = self._states[part.number]
        heard = self._heard(part.pieces, state=state)
        if self._workers == 1:
            self._before = state.carried()
        segments = [_snapped(segment, self._probabilities) for segment in heard]
        if self._options.task == "transcribe":
            segments = _without(segments, _timeless(segments))
        if segments or part.heard_s <= _WINDOW_S:  # a long part without any text is no speech of this language
            segments = self._completed(segments, part, state)
        state.segments = segments
        state.heard_s = part.heard_s

    def _completed(self, segments: list[Segment], part: Part, state: _PartState) -> list[Segment]:
        """With what is found where somebody speaks and no word is."""
        tried: set[Span] = set()
        for _ in range(_ROUNDS):
            stretches = [s for s in _joined_stretches(self._unheard(part, segments)) if s not in tried]
            for stretch in stretches:
                if self._stop.is_set():
                    return segments
                state.again += 1
                segments = self._with_missing(segments, stretch, part)
            tried.update(stretches)
        return segments

    def _heard(self, pieces: Sequence[Span], *, state: _PartState | None = None, sure: bool = False) -> list[Segment]:
        """Decode pieces as one recording without the pauses between, and put the times back.

        Args:
            pieces: Samples to hear.
            state: Of the part they are, which continues the one before; None: by themselves.
            sure: Only segments the model is confident of.
        """
        audio = np.concatenate([self._sound.read(start, end) for start, end in pieces])
        clock = _Clock(pieces)
        spoken_until_s = clock.joined_s(_last_voiced(self._probabilities, pieces)) - _TAIL_S
        found: list[Segment] = []
        try:
            segments, _ = self._model.transcribe(
                audio,
                language=self._options.language,
                task=self._options.task,
                beam_size=self._options.beam_size,
                word_timestamps=self._options.word_timestamps,
                vad_filter=False,
                initial_prompt=self._before if state is not None and self._before else None,
            )
            for segment in segments:
                if self._stop.is_set():
                    break
                if state is not None:
                    state.follow(segment, audio.size / RATE_HZ)
                if not sure or _confident(segment):
                    found.append(clock.segment(segment))
                if float(segment.end) >= spoken_until_s:
                    break  # the next window would be a silent one, at the price of a full one
        except RuntimeError as error:
            raise as_engine_error(error, "The model failed while decoding") from error
        return found

    def _unheard(self, part: Part, segments: Sequence[Segment]) -> list[Span]:
        """Where somebody speaks and no word is; words held too long cover nothing."""
        covered: list[tuple[float, float]] = []
        for segment in segments:
            timed = [w for w in segment.words if not self._held_too_long(w)] if segment.words else [segment]
            covered += [(w.start_s - _COVER_PAD_S, w.end_s + _COVER_PAD_S) for w in timed]
        return unheard(self._probabilities, part, covered, least_s=_LEAST_UNHEARD_S)

    def _held_too_long(self, word: Word) -> bool:
        letters = sum(_DIGIT_LETTERS if c.isdigit() else 2 if is_cjk(c) else 1 for c in word.text.strip())
        most_s = _HELD_S + _HELD_PER_LETTER_S * letters
        return word.end_s - word.start_s > most_s < spoken_s(self._probabilities, word.start_s, word.end_s)

    def _with_missing(self, segments: list[Segment], stretch: Span, part: Part) -> list[Segment]:
        """Decode a stretch without words by itself and put in what is found there, and nothing twice.

        Words held too long in it give way to more and shorter ones.
        """
        pad = round(_CONTEXT_S * RATE_HZ)
        wide = (max(part.span[0], stretch[0] - pad), min(part.span[1], stretch[1] + pad))
        start_s, end_s = stretch[0] / RATE_HZ - _COVER_PAD_S, stretch[1] / RATE_HZ + _COVER_PAD_S
        found = [_snapped(segment, self._probabilities) for segment in self._heard([wide], sure=True)]
        held = [w for s in segments for w in s.words if start_s <= _middle_s(w) <= end_s and self._held_too_long(w)]
        new_words = sum(start_s < w.end_s and w.start_s < end_s for s in found for w in s.words)
        kept = _without(segments, held) if new_words > len(held) else segments
        inside = [_within(s, start_s, end_s, kept) for s in found]
        added = [s for s in inside if s is not None]
        for segment in added:
            kept = _parted(kept, _middle_s(segment))
        return sorted([*kept, *added], key=_middle_s) if added else segments


def _middle_s(timed: Word | Segment) -> float:
    return (timed.start_s + timed.end_s) / 2


def _timeless(segments: Sequence[Segment]) -> list[Word]:
    """Words in long runs of words without length."""
    found: list[list[Word]] = []
    for segment in segments:
        runs = itertools.groupby(segment.words, key=lambda w: w.end_s <= w.start_s)
        found += [list(run) for timeless, run in runs if timeless]
    return [word for run in found if len(run) >= _TIMELESS_RUN for word in run]


def _parted(segments: Sequence[Segment], at_s: float) -> list[Segment]:
    """The same segments; one with words on both sides of a moment becomes two."""
    parted: list[Segment] = []
    for segment in segments:
        before = tuple(w for w in segment.words if _middle_s(w) < at_s)
        after = segment.words[len(before) :]
        parted += [_of_words(before), _of_words(after)] if before and after else [segment]
    return parted


def _of_words(words: tuple[Word, ...]) -> Segment:
    return Segment(words[0].start_s, words[-1].end_s, "".join(w.text for w in words), words)


def _without(segments: Sequence[Segment], words: Sequence[Word]) -> list[Segment]:
    """The segments without these words, and without those of which nothing is left."""
    gone = set(map(id, words))
    kept: list[Segment] = []
    for segment in segments:
        left = tuple(w for w in segment.words if id(w) not in gone)
        if len(left) == len(segment.words):
            kept.append(segment)
        elif left:
            kept.append(_of_words(left))
    return kept


def _last_voiced(probabilities: npt.NDArray[np.float32], pieces: Sequence[Span]) -> int:
    """The last sample that sounds like speech; the last one of all when none does."""
    for start, end in reversed(pieces):
        voiced = np.flatnonzero(probabilities[start // HOP : -(-end // HOP)] >= _SPOKEN)
        if voiced.size:
            return min(end, (start // HOP + int(voiced[-1]) + 1) * HOP)
    return pieces[-1][1]


def _raise_first(done: Iterable[Future[None]]) -> None:
    for future in done:
        future.result()


class _Clock:
    """From seconds in the joined pieces to seconds in the recording."""

    def __init__(self, pieces: Sequence[Span]) -> None:
        self._pieces = pieces
        self._joins_s = [0.0, *itertools.accumulate((end - start) / RATE_HZ for start, end in pieces)]

    def joined_s(self, sample: int) -> float:
        """Seconds in the joined pieces of a sample of the recording that one of them holds."""
        at = next(i for i, (start, end) in enumerate(self._pieces) if start <= sample <= end)
        return self._joins_s[at] + (sample - self._pieces[at][0]) / RATE_HZ

    def span(self, start_s: float, end_s: float) -> tuple[float, float]:
        """Both ends in the piece that holds the middle."""
        middle_s = (start_s + end_s) / 2
        at = min(max(0, bisect.bisect_right(self._joins_s, middle_s) - 1), len(self._pieces) - 1)
        first_s, last_s = self._pieces[at][0] / RATE_HZ, self._pieces[at][1] / RATE_HZ
        shift_s = first_s - self._joins_s[at]
        low_s, high_s = (min(max(t + shift_s, first_s), last_s) for t in (start_s, end_s))
        return low_s, max(low_s, high_s)

    def segment(self, segment: Any) -> Segment:
        """faster-whisper's segment as ours; numpy's floats end here."""
        words = tuple(
            Word(str(w.word), *self.span(float(w.start), float(w.end)), float(w.probability))
            for w in segment.words or ()
        )
        if words:
            return Segment(words[0].start_s, words[-1].end_s, str(segment.text), words)
        start_s, _ = self.span(float(segment.start), float(segment.start))
        _, end_s = self.span(float(segment.end), float(segment.end))
        return Segment(start_s, max(start_s, end_s), str(segment.text))


def _confident(segment: Any) -> bool:
    likely = segment.avg_logprob > _MIN_LOGPROB and segment.no_speech_prob < _MAX_NO_SPEECH
    return bool(likely and segment.compression_ratio < _MAX_REPETITION)


def _joined_stretches(stretches: Sequence[Span]) -> list[Span]:
    """Near ones are decoded together, up to what fits one window of the model."""
    joined: list[Span] = []
    for start, end in stretches:
        near = joined and start - joined[-1][1] <= _JOIN_S * RATE_HZ
        if near and end - joined[-1][0] <= _MAX_AGAIN_S * RATE_HZ:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _within(found: Segment, start_s: float, end_s: float, segments: Sequence[Segment]) -> Segment | None:
    """The words of a segment whose middle lies in a stretch and in no gap that another word already fills."""
    if not found.words:
        middle_s = _middle_s(found)
        taken = any(s.start_s <= middle_s <= s.end_s for s in segments)
        return found if start_s <= middle_s <= end_s and not taken else None
    near = [w for s in segments for w in s.words if w.end_s > start_s - 2 and w.start_s < end_s + 2]
    words = [w for w in found.words if start_s < w.end_s and w.start_s < end_s and not _taken(w, near)]
    if not words:
        return None
    return _of_words(tuple(words))


def _taken(word: Word, near: Sequence[Word]) -> bool:
    """Whether the same moment, or the same word a moment apart, is there already."""
    middle_s = _middle_s(word)
    return any(
        w.start_s <= middle_s <= w.end_s
        or (_alike(w.text, word.text) and min(abs(w.end_s - word.start_s), abs(word.end_s - w.start_s)) < _JOIN_S / 8)
        for w in near
    )


def _alike(one: str, other: str) -> bool:
    """The same word, or one cut off."""
    short, long = sorted((_plain(one), _plain(other)), key=len)
    return short == long or (len(short) >= _PREFIX_LETTERS and long.startswith(short))


def _plain(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


def _snapped(segment: Segment, probabilities: npt.NDArray[np.float32]) -> Segment:
    """Long words without the silence before and after that the model's alignment gives them."""
    if not segment.words:
        return segment
    words = tuple(_tight(word, probabilities) for word in segment.words)
    return replace(segment, words=words, start_s=words[0].start_s, end_s=words[-1].end_s)


def _tight(word: Word, probabilities: npt.NDArray[np.float32]) -> Word:
    if word.end_s - word.start_s < _LONG_WORD_S:
        return word
    first, last = int(word.start_s * RATE_HZ) // HOP, -(-int(word.end_s * RATE_HZ) // HOP)
    voiced = np.flatnonzero(probabilities[first:last] >= _SPOKEN)
    if voiced.size == 0:
        return word
    start_s = max(word.start_s, (first + int(voiced[0])) * HOP / RATE_HZ - 0.1)
    end_s = min(word.end_s, (first + int(voiced[-1]) + 1) * HOP / RATE_HZ + 0.1)
    return replace(word, start_s=start_s, end_s=max(start_s, end_s))


def detect_language(model: Any, sound: Sound, pieces: Sequence[Span], *, sure: float) -> list[tuple[str, float]]:
    """Languages by falling probability, from 30 s of speech; from three places when the first leaves doubt.

    Args:
        model: A WhisperModel.
        sound: The recording.
        pieces: Where somebody speaks.
        sure: Probability from which the first place is enough.
    """
    if not model.model.is_multilingual:
        return [("en", 1.0)]
    window = 30 * RATE_HZ
    total = sum(end - start for start, end in pieces)
    starts = [0] if total <= window else [0, total // 2, max(0, total - window)]
    summed: dict[str, float] = {}
    for count, start in enumerate(starts, start=1):
        audio = _speech_at(sound, pieces, start, window)
        try:
            _, _, found = model.detect_language(audio=audio)
        except RuntimeError as error:
            raise as_engine_error(error, "The model failed while detecting the language") from error
        for language, probability in found:
            summed[language] = summed.get(language, 0.0) + float(probability)
        ranked = sorted(((name, p / count) for name, p in summed.items()), key=lambda pair: -pair[1])
        if ranked[0][1] >= sure:
            break
    return ranked


def _speech_at(sound: Sound, pieces: Sequence[Span], skip: int, count: int) -> npt.NDArray[np.float32]:
    """`count` samples of speech after the first `skip`, pauses left out."""
    chosen: list[npt.NDArray[np.float32]] = []
    for start, end in pieces:
        if skip >= end - start:
            skip -= end - start
            continue
        begin = start + skip
        skip = 0
        chosen.append(sound.read(begin, min(end, begin + count)))
        count -= chosen[-1].size
        if count <= 0:
            break
    return np.concatenate(chosen) if chosen else np.zeros(RATE_HZ, np.float32)


def left_s(started_s: float, share: float) -> float | None:
    """Seconds until the end at the pace so far; None while it is too early to say."""
    if share < 0.02:  # noqa: PLR2004 - the first window tells nothing
        return None
    return (time.monotonic() - started_s) * (1 - share) / share

"""Where somebody speaks, and where a long recording may be cut: Silero's probabilities, read in windows."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mediamill.engines.whisper.audio import RATE_HZ, Sound
from mediamill.errors import Cancelled

HOP = 512
"""Samples for each probability: 32 ms."""
_CONTEXT = 64
_WINDOW_HOPS = 3750
"""Two minutes at a time: 8 MB of samples."""
_SPEECH = 0.5
_SILENCE = 0.35
_MIN_SILENCE_S = 2.0
_PAD_S = 0.4
_CUT_PAUSE_S = 0.2
_PAUSE_HOPS = round(2.0 * RATE_HZ / HOP)

Span = tuple[int, int]
"""Samples, first inclusive and last exclusive."""


@dataclass(frozen=True)
class Part:
    """A stretch of the recording decoded by itself. `pieces` are what of it is heard: pauses are left out."""

    number: int
    span: Span
    pieces: tuple[Span, ...]

    @property
    def heard_s(self) -> float:
        """Seconds of all pieces."""
        return sum(end - start for start, end in self.pieces) / RATE_HZ


class Listening:
    """Computes speech probabilities while being iterated; then `probabilities` are there, one for each 32 ms."""

    def __init__(self, sound: Sound, cancelled: threading.Event) -> None:
        """Reads `sound` in windows, so memory does not grow with it."""
        self._sound, self._cancelled = sound, cancelled
        self.probabilities: npt.NDArray[np.float32] = np.zeros(0, np.float32)

    def __iter__(self) -> Iterator[float]:
        """Yield the share done, 0 to 1. Raises Cancelled."""
        from faster_whisper.vad import get_vad_model

        session: Any = get_vad_model().session
        memory: Any = np.zeros((1, 1, 128), np.float32)
        cell: Any = np.zeros((1, 1, 128), np.float32)
        before = np.zeros(_CONTEXT, np.float32)
        found: list[npt.NDArray[np.float32]] = []
        step = _WINDOW_HOPS * HOP
        for start in range(0, self._sound.samples, step):
            if self._cancelled.is_set():
                raise Cancelled
            samples = self._sound.read(start, start + step)
            samples = np.pad(samples, (0, -samples.size % HOP))
            rows = samples.reshape(-1, HOP)
            contexts = np.vstack([before, rows[:-1, -_CONTEXT:]])
            fed = {"input": np.concatenate([contexts, rows], axis=1), "h": memory, "c": cell}
            output, memory, cell = session.run(None, fed)
            before = rows[-1, -_CONTEXT:]
            found.append(np.asarray(output, np.float32).reshape(-1))
            yield min(1.0, (start + step) / self._sound.samples)
        self.probabilities = np.concatenate(found) if found else np.zeros(0, np.float32)


def speech_spans(
    probabilities: npt.NDArray[np.float32],
    samples: int,
    *,
    min_silence_s: float = _MIN_SILENCE_S,
    pad_s: float = _PAD_S,
) -> list[Span]:
    """Stretches of speech: they start above 0.5, end below 0.35 for `min_silence_s`, and are padded without overlap."""
    spans: list[list[int]] = []
    quiet_hops = max(1, round(min_silence_s * RATE_HZ / HOP))
    speaking, quiet_from = False, -1
    for i, p in enumerate(probabilities.tolist()):
        if p >= _SPEECH:
            if not speaking:
                spans.append([i * HOP, samples])
            speaking, quiet_from = True, -1
        elif speaking and p < _SILENCE and quiet_from < 0:
            quiet_from = i
        if speaking and quiet_from >= 0 and i - quiet_from >= quiet_hops:
            spans[-1][1] = quiet_from * HOP
            speaking, quiet_from = False, -1
    if spans and speaking and quiet_from >= 0:
        spans[-1][1] = quiet_from * HOP
    return _padded([(start, end) for start, end in spans], samples, round(pad_s * RATE_HZ))


def _padded(spans: Sequence[Span], samples: int, pad: int) -> list[Span]:
    wide = [[max(0, start - pad), min(samples, end + pad)] for start, end in spans]
    for left, right in itertools.pairwise(wide):
        if left[1] > right[0]:
            left[1] = right[0] = (left[1] + right[0]) // 2
    return [(start, end) for start, end in wide]


def parts_of(
    probabilities: npt.NDArray[np.float32], samples: int, *, most_s: float, spans: Sequence[Span] | None
) -> list[Part]:
    """Cut a recording into parts with at most `most_s` of sound to hear, in the middle of pauses where there are any.

    Args:
        probabilities: One for each 32 ms.
        samples: Length of the recording.
        most_s: A part is cut at the longest pause after 0.65 times this.
        spans: What to hear; None: everything.
    """
    heard = [(0, samples)] if spans is None else list(spans)
    counted = np.zeros(len(probabilities) + 1, np.int64)
    for start, end in heard:
        counted[start // HOP + 1 : -(-end // HOP) + 1] = 1
    counted = np.cumsum(counted)
    most_hops, least_hops = int(most_s * RATE_HZ / HOP), int(0.65 * most_s * RATE_HZ / HOP)
    cuts = [0]
    while counted[-1] - counted[cuts[-1] // HOP] > most_hops:
        before = counted[cuts[-1] // HOP]
        low, high = (int(np.searchsorted(counted, before + hops, "left")) for hops in (least_hops, most_hops))
        cuts.append(_best_cut(probabilities, low, high) * HOP)
    edges = itertools.pairwise([*cuts, samples])
    pieces = [(edge, tuple(_overlaps(heard, edge))) for edge in edges]
    return [Part(i, edge, inside) for i, (edge, inside) in enumerate((e, p) for e, p in pieces if p)]


def first_of(spans: Sequence[Span], length_s: float) -> list[Span]:
    """The first `length_s` seconds of spans."""
    left, chosen = round(length_s * RATE_HZ), list[Span]()
    for start, end in spans:
        if left <= 0:
            break
        chosen.append((start, min(end, start + left)))
        left -= end - start
    return chosen


def _overlaps(spans: Sequence[Span], edge: Span) -> Iterator[Span]:
    for start, end in spans:
        if start < edge[1] and end > edge[0]:
            yield max(start, edge[0]), min(end, edge[1])


def _best_cut(probabilities: npt.NDArray[np.float32], low: int, high: int) -> int:
    """The middle of the longest pause between two hops; without one, the hop least likely to be speech."""
    quiet = probabilities[low:high] < _SILENCE
    best_length, best_middle = 0, -1
    at = 0
    for is_quiet, group in itertools.groupby(quiet.tolist()):
        length = sum(1 for _ in group)
        if is_quiet and length > best_length:
            best_length, best_middle = length, at + length // 2
        at += length
    if best_length * HOP >= _CUT_PAUSE_S * RATE_HZ:
        return low + best_middle
    return low + int(np.argmin(probabilities[low:high]))


def unheard(
    probabilities: npt.NDArray[np.float32], part: Part, covered: Sequence[tuple[float, float]], *, least_s: float
) -> list[Span]:
    """Stretches of a part in which somebody speaks for at least `least_s` and no word was found.

    A stretch goes on over pauses of up to two seconds, so that slow single words count together.

    Args:
        probabilities: One for each 32 ms of the whole recording.
        part: The part in question.
        covered: Seconds, start and end, that words or segments cover.
        least_s: Less speech than that is within the tolerance of word times.
    """
    first, last = part.span[0] // HOP, -(-part.span[1] // HOP)
    heard = np.ones(len(probabilities[first:last]), bool)
    for start, end in part.pieces:
        heard[start // HOP - first : -(-end // HOP) - first] = False
    for start_s, end_s in covered:
        low = int(start_s * RATE_HZ) // HOP - first
        high = -(-int(end_s * RATE_HZ) // HOP) - first
        heard[max(0, low) : max(0, high)] = True
    words_until = np.cumsum(heard)
    found: list[_Stretch] = []
    for hop in np.flatnonzero((probabilities[first:last] >= _SPEECH) & ~heard).tolist():
        last_one = found[-1] if found else None
        if last_one and hop - last_one.last <= _PAUSE_HOPS and words_until[hop] == words_until[last_one.last]:
            last_one.last, last_one.spoken = hop, last_one.spoken + 1
        else:
            found.append(_Stretch(hop, hop, 1))
    least = least_s * RATE_HZ / HOP
    long_enough = [s for s in found if s.spoken >= least]
    return [((first + s.first) * HOP, min((first + s.last + 1) * HOP, part.span[1])) for s in long_enough]


@dataclass
class _Stretch:
    """Hops, both inclusive, and how many of them are speech."""

    first: int
    last: int
    spoken: int


def spoken_s(probabilities: npt.NDArray[np.float32], start_s: float, end_s: float) -> float:
    """Seconds of speech between two moments."""
    first, last = int(start_s * RATE_HZ) // HOP, -(-int(end_s * RATE_HZ) // HOP)
    return float(np.count_nonzero(probabilities[first:last] >= _SPEECH)) * HOP / RATE_HZ

"""Progress and the seconds left, from what was measured in this very call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from mediamill.model import Phase, Progress

LOADED = 0.05
DENOISED = 0.90
_RECENT = 5


class Pace:
    """Fractions and seconds left of one call. The first step is no measure: it holds the text encoder and warm-up."""

    def __init__(self, steps: int, *, tail_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Count from now.

        Args:
            steps: Denoising steps to come.
            tail_s: What decoding and encoding took last time at this size; None: not known, counted as one step.
            clock: Seconds.
        """
        self._steps = steps
        self._tail_s = tail_s
        self._clock = clock
        self._at_s = clock()
        self._took_s: list[float] = []
        self._tail_start_s = self._at_s

    def step(self) -> Progress:
        """One more denoising step is done."""
        now_s = self._clock()
        self._took_s.append(now_s - self._at_s)
        self._at_s = self._tail_start_s = now_s
        done = len(self._took_s)
        fraction = LOADED + (DENOISED - LOADED) * min(1.0, done / self._steps)
        return Progress(fraction, Phase.GENERATING, f"step {done} of {self._steps}", self._eta_s(self._steps - done))

    def _eta_s(self, left: int) -> float | None:
        measured = self._took_s[1:][-_RECENT:]
        if not measured:
            return None
        step_s = statistics.median(measured)
        return max(0, left) * step_s + (step_s if self._tail_s is None else self._tail_s)

    def frame(self, done: int, total: int) -> Progress:
        """`done` of `total` frames went to the encoder."""
        share, spent_s = done / total, self.tail_s()
        fraction = DENOISED + (0.99 - DENOISED) * share
        if self._tail_s is not None:
            eta_s: float | None = max(0.0, self._tail_s - spent_s)
        else:  # frames come in bursts: nothing is known before half of them are there
            eta_s = spent_s / share - spent_s if share > 0.5 else None  # noqa: PLR2004 - half
        return Progress(fraction, Phase.ENCODING, f"frame {done} of {total}", eta_s)

    def tail_s(self) -> float:
        """Seconds since the last denoising step."""
        return self._clock() - self._tail_start_s

"""Cutting, putting times back, finding what was missed: on probabilities and a stand-in model, without weights."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mediamill.engines.whisper.audio import RATE_HZ, Sound
from mediamill.engines.whisper.decode import Decode, Options, detect_language
from mediamill.engines.whisper.residency import Key, Residency
from mediamill.engines.whisper.speech import HOP, Part, parts_of, speech_spans, unheard
from mediamill.engines.whisper.weights import at_hand, locate
from mediamill.errors import Cancelled, ModelUnavailable


def voiced(*seconds: tuple[float, float], total_s: float) -> np.ndarray:
    """Probabilities of a recording in which somebody speaks during `seconds`."""
    found = np.full(-(-round(total_s * RATE_HZ) // HOP), 0.02, np.float32)
    for start_s, end_s in seconds:
        found[round(start_s * RATE_HZ / HOP) : round(end_s * RATE_HZ / HOP)] = 0.95
    return found


def in_seconds(spans: Any) -> list[tuple[float, float]]:
    return [(round(a / RATE_HZ, 1), round(b / RATE_HZ, 1)) for a, b in spans]


def test_speech_is_padded_and_short_pauses_stay_inside() -> None:
    probabilities = voiced((1, 3), (4, 6), (10, 12), total_s=15)
    assert in_seconds(speech_spans(probabilities, 15 * RATE_HZ)) == [(0.6, 6.4), (9.6, 12.4)]


def test_padding_never_overlaps() -> None:
    probabilities = voiced((1, 3), (3.5, 6), total_s=8)
    spans = speech_spans(probabilities, 8 * RATE_HZ, min_silence_s=0.3)
    assert spans[0][1] == spans[1][0]


def test_speech_to_the_end_ends_with_the_file() -> None:
    assert in_seconds(speech_spans(voiced((1, 5), total_s=5), 5 * RATE_HZ)) == [(0.6, 5.0)]


def test_parts_are_cut_in_pauses_and_cover_everything() -> None:
    speech = [(i * 10 + 0.5, i * 10 + 9.0) for i in range(30)]
    probabilities = voiced(*speech, total_s=300)
    parts = parts_of(probabilities, 300 * RATE_HZ, most_s=60, spans=None)
    edges = [part.span for part in parts]
    assert edges[0][0] == 0
    assert edges[-1][1] == 300 * RATE_HZ
    assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))
    assert 5 <= len(parts) <= 8
    assert max(part.heard_s for part in parts) <= 60.1
    for _, end in edges[:-1]:
        assert probabilities[end // HOP] < 0.35


def test_speech_without_any_pause_is_cut_all_the_same() -> None:
    parts = parts_of(voiced((0, 200), total_s=200), 200 * RATE_HZ, most_s=60, spans=None)
    assert sum(part.heard_s for part in parts) == pytest.approx(200)
    assert max(part.heard_s for part in parts) <= 60.1


def test_parts_without_speech_are_left_out() -> None:
    probabilities = voiced((0, 30), (170, 199), total_s=200)
    spans = speech_spans(probabilities, 200 * RATE_HZ)
    parts = parts_of(probabilities, 200 * RATE_HZ, most_s=40, spans=spans)
    assert [part.number for part in parts] == list(range(len(parts)))
    assert sum(part.heard_s for part in parts) == pytest.approx(30.4 + 29.8, abs=0.1)


def test_speech_with_no_word_in_it_is_found() -> None:
    probabilities = voiced((0, 4), (5, 9), total_s=10)
    part = Part(0, (0, 10 * RATE_HZ), ((0, 10 * RATE_HZ),))
    assert unheard(probabilities, part, [(0.0, 4.2), (4.8, 9.0)], least_s=1.2) == []
    assert in_seconds(unheard(probabilities, part, [(0.0, 4.2)], least_s=1.2)) == [(5.0, 9.0)]
    assert in_seconds(unheard(probabilities, part, [(0.0, 4.2), (4.8, 8.0)], least_s=1.2)) == []


SURE = {"avg_logprob": -0.2, "no_speech_prob": 0.1, "compression_ratio": 1.0}


@dataclass
class StandIn:
    """Says one word a second, named by the loudness of that second; deaf to seconds listed, unless heard alone.

    It stands for a model that loses speech in long windows and finds it in short ones.
    """

    deaf: frozenset[int] = frozenset()
    languages: tuple[tuple[str, float], ...] = (("en", 0.9),)
    calls: list[float] = field(default_factory=list)
    gate: threading.Event | None = None
    asked: dict[str, Any] = field(default_factory=dict)
    temperature: float = 0.0

    @property
    def model(self) -> Any:
        return SimpleNamespace(is_multilingual=True)

    def transcribe(self, audio: np.ndarray, **options: Any) -> tuple[Iterator[Any], None]:
        self.calls.append(audio.size / RATE_HZ)
        self.asked = options
        return self._segments(audio), None

    def _segments(self, audio: np.ndarray) -> Iterator[Any]:
        alone = audio.size < 6 * RATE_HZ
        for at in range(audio.size // RATE_HZ + 1):
            second = audio[at * RATE_HZ : (at + 1) * RATE_HZ]
            loud = round(float(np.abs(second).max() * 1000)) if second.size else 0
            if self.gate is not None:
                self.gate.wait(5)
            if loud == 0 or (loud in self.deaf and not alone):
                continue
            first = int(np.flatnonzero(np.abs(second) * 1000 > loud - 0.5)[0]) / RATE_HZ
            word = SimpleNamespace(
                word=f" w{loud}", start=at + first, end=at + first + 0.6, probability=np.float64(0.9)
            )
            yield SimpleNamespace(
                start=word.start,
                end=word.end,
                text=word.word,
                words=[word],
                **SURE,
                seek=at,
                temperature=self.temperature,
                tokens=[at],
            )

    def detect_language(self, *, audio: np.ndarray) -> tuple[str, float, list[tuple[str, float]]]:
        self.calls.append(audio.size / RATE_HZ)
        return (*self.languages[0], list(self.languages))


def numbered(tmp_path: Path, seconds: int) -> Sound:
    """Second n is a click of loudness n+1 thousandths, held for 0.7 s."""
    samples = np.zeros(seconds * RATE_HZ, np.int16)
    for n in range(seconds):
        samples[n * RATE_HZ + 1600 : n * RATE_HZ + 12800] = round((n + 1) * 32.768)
    path = tmp_path / "samples"
    path.write_bytes(samples.tobytes())
    return Sound(path, samples.size)


def decode(model: StandIn, sound: Sound, *, workers: int, most_s: float, cancelled: threading.Event) -> Decode:
    total_s = sound.samples / RATE_HZ
    probabilities = voiced(*((n + 0.1, n + 0.8) for n in range(int(total_s))), total_s=total_s)
    parts = parts_of(probabilities, sound.samples, most_s=most_s, spans=None)
    options = Options("en")
    return Decode(
        model, sound, parts, probabilities=probabilities, options=options, workers=workers, cancelled=cancelled
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_parts_decoded_at_once_come_back_in_order_with_their_times(tmp_path: Path, workers: int) -> None:
    run = decode(StandIn(), numbered(tmp_path, 60), workers=workers, most_s=10, cancelled=threading.Event())
    shares = list(run)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert [s.text for s in run.segments] == [f" w{n + 1}" for n in range(60)]
    starts = [s.words[0].start_s for s in run.segments]
    assert starts == pytest.approx([n + 0.1 for n in range(60)], abs=0.05)
    assert {type(w.probability) for s in run.segments for w in s.words} == {float}


@pytest.mark.parametrize(("temperature", "carried"), [(0.0, list(range(7))), (0.8, None)])
def test_a_part_continues_what_was_said_before_unless_that_was_guessed(
    tmp_path: Path, temperature: float, carried: list[int] | None
) -> None:
    model = StandIn(temperature=temperature)
    list(decode(model, numbered(tmp_path, 20), workers=1, most_s=10, cancelled=threading.Event()))
    assert model.asked["initial_prompt"] == carried


def test_what_the_model_missed_is_heard_again_and_nothing_twice(tmp_path: Path) -> None:
    model = StandIn(deaf=frozenset({8, 9, 10, 25}))
    run = decode(model, numbered(tmp_path, 40), workers=2, most_s=20, cancelled=threading.Event())
    list(run)
    # One second alone is within the tolerance of word times; three in a row are not.
    assert [s.text for s in run.segments] == [f" w{n + 1}" for n in range(40) if n + 1 != 25]
    assert run.again == 1


@dataclass
class Dictated:
    """Answers each call with the next of these: segments of (word, start, end), in seconds of what it is given."""

    answers: list[list[list[tuple[str, float, float]]]]
    calls: list[float] = field(default_factory=list)

    def transcribe(self, audio: np.ndarray, **_options: Any) -> tuple[Iterator[Any], None]:
        self.calls.append(round(audio.size / RATE_HZ, 1))
        return iter([self._segment(words) for words in self.answers.pop(0)]), None

    @staticmethod
    def _segment(words: list[tuple[str, float, float]]) -> Any:
        timed = [SimpleNamespace(word=f" {w}", start=a, end=b, probability=0.9) for w, a, b in words]
        text = "".join(w.word for w in timed)
        told = {**SURE, "seek": 0, "temperature": 0.0, "tokens": []}
        return SimpleNamespace(start=timed[0].start, end=timed[-1].end, text=text, words=timed, **told)


def dictated(model: Dictated, folder: Path, probabilities: np.ndarray) -> list[str]:
    sound = numbered(folder, len(probabilities) * HOP // RATE_HZ)
    parts = parts_of(probabilities, sound.samples, most_s=60, spans=None)
    options = Options("en")
    run = Decode(
        model,
        sound,
        parts,
        probabilities=probabilities,
        options=options,
        workers=1,
        cancelled=threading.Event(),
    )
    list(run)
    ordered = [w for s in run.segments for w in s.words]
    assert all(a.start_s <= b.start_s for a, b in itertools.pairwise(ordered))
    return [w.text.strip() for w in ordered]


def test_words_missing_in_the_middle_of_a_segment_are_put_in_their_place(tmp_path: Path) -> None:
    first = [[("one", 1.0, 1.4), ("two", 1.5, 1.9), ("seven", 8.0, 8.4)]]
    again = [[("two", 0.1, 0.3), ("three", 1.2, 1.6), ("four", 1.9, 2.3)], [("five", 3.7, 4.1)]]
    model = Dictated([first, again])
    spoken = voiced((1, 2), (3, 6.4), (8, 8.5), total_s=10)
    assert dictated(model, tmp_path, spoken) == ["one", "two", "three", "four", "five", "seven"]
    assert model.calls == [10.0, 5.4]


def test_a_word_stretched_over_lost_speech_gives_way_to_what_was_said(tmp_path: Path) -> None:
    first = [[("it", 1.0, 1.3), ("the", 1.4, 5.5), ("end", 5.6, 6.0)]]
    again = [[("was", 1.1, 1.5), ("the", 1.6, 2.0), ("very", 2.2, 2.9), ("very", 3.0, 3.7), ("slow", 4.0, 4.8)]]
    spoken = voiced((1, 6), total_s=8)
    assert dictated(Dictated([first, again]), tmp_path, spoken) == ["it", "was", "the", "very", "very", "slow", "end"]
    sung = [[("looove", 1.1, 5.0)]]
    assert dictated(Dictated([first, sung]), tmp_path, spoken) == ["it", "the", "end"]


def test_words_without_any_length_were_not_spoken(tmp_path: Path) -> None:
    ran_on = [("of", 1.9, 1.9), ("the", 1.9, 1.9), ("age", 1.9, 1.9), ("of", 1.9, 1.9)]
    first = [[("one", 1.0, 1.4), ("two", 1.5, 1.9), *ran_on], [("it", 2.0, 2.0), ("was", 2.1, 2.5)]]
    assert dictated(Dictated([first]), tmp_path, voiced((1, 2.6), total_s=4)) == ["one", "two", "it", "was"]


def test_slow_single_words_that_are_missing_count_together(tmp_path: Path) -> None:
    spoken = voiced((1, 2), *((n + 0.2, n + 0.7) for n in range(4, 9)), (11, 12), total_s=14)
    first = [[("begin", 1.1, 1.9), ("end", 11.1, 11.9)]]
    again = [[(f"w{n}", n - 2.8, n - 2.4) for n in range(4, 9)]]
    model = Dictated([first, again])
    assert dictated(model, tmp_path, spoken) == ["begin", "w4", "w5", "w6", "w7", "w8", "end"]
    assert model.calls == [14.0, 6.5]


def test_what_was_asked_reaches_the_model(tmp_path: Path) -> None:
    model = StandIn()
    sound = numbered(tmp_path, 5)
    probabilities = voiced(total_s=5)
    parts = parts_of(probabilities, sound.samples, most_s=10, spans=None)
    options = Options("pt", "translate", beam_size=2, word_timestamps=False)
    cancelled = threading.Event()
    list(Decode(model, sound, parts, probabilities=probabilities, options=options, workers=1, cancelled=cancelled))
    assert model.asked == {
        "language": "pt",
        "task": "translate",
        "beam_size": 2,
        "word_timestamps": False,
        "vad_filter": False,
        "initial_prompt": None,
    }


def test_a_cancel_ends_it_while_the_model_is_busy(tmp_path: Path) -> None:
    gate = threading.Event()
    model = StandIn(gate=gate)
    cancelled = threading.Event()
    run = iter(decode(model, numbered(tmp_path, 20), workers=2, most_s=10, cancelled=cancelled))
    assert next(run) == 0.0
    cancelled.set()
    with pytest.raises(Cancelled):
        next(run)
    gate.set()


def test_a_sure_language_takes_one_look_and_a_doubtful_one_three(tmp_path: Path) -> None:
    sound = numbered(tmp_path, 120)
    sure, doubtful = StandIn(), StandIn(languages=(("la", 0.5), ("pt", 0.4)))
    whole = [(0, sound.samples)]
    assert detect_language(sure, sound, whole, sure=0.6)[0] == ("en", pytest.approx(0.9))
    assert [name for name, _ in detect_language(doubtful, sound, whole, sure=0.6)] == ["la", "pt"]
    assert (len(sure.calls), doubtful.calls) == (1, [30.0, 30.0, 30.0])


def key(folder: Path, *, workers: int = 1) -> Key:
    return Key(folder, "cpu", "int8", threads=1, workers=workers)


def test_models_stay_until_memory_is_short_and_the_least_recent_goes_first(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").write_bytes(b"0" * 200)
    a, b, c = (key(tmp_path / name) for name in "abc")
    loads: list[Key] = []
    residency = Residency(ttl_s=60, budget_bytes=200, load=lambda k: loads.append(k) or object())
    for wanted in (a, b, a, c):
        with residency.using(wanted):
            pass
    assert loads == [a, b, c]
    assert residency.keys() == [a, c]
    residency.close()
    assert residency.keys() == []


def test_an_unused_model_goes_after_its_time_and_one_in_use_stays(tmp_path: Path) -> None:
    gone = threading.Event()

    class Model:
        def __del__(self) -> None:
            gone.set()

    residency = Residency(ttl_s=0.05, budget_bytes=0, load=lambda _: Model())
    with residency.using(key(tmp_path)) as model:
        assert not gone.wait(0.15)
        assert residency.holds(key(tmp_path))
    del model
    assert gone.wait(5)
    assert residency.keys() == []


@pytest.mark.parametrize(
    ("settings", "source"),
    [
        ({}, "Systran/faster-whisper-large-v3"),
        ({"MEDIAMILL_MODEL_WHISPER_LARGE_V3": "me/mine"}, "me/mine"),
        ({"MEDIAMILL_MODEL_LARGE_V3": "/models/l", "MEDIAMILL_MODEL_TRANSCRIBE": "x/y"}, "/models/l"),
        ({"MEDIAMILL_MODEL_TRANSCRIBE": "x/y"}, "x/y"),
    ],
)
def test_settings_place_a_model(settings: dict[str, str], source: str) -> None:
    assert locate("large-v3", settings).source == source


def test_a_cached_model_is_found_whole_and_a_partial_one_is_not(tmp_path: Path) -> None:
    location = locate("tiny", {})
    root = tmp_path / "models--Systran--faster-whisper-tiny"
    folder = root / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("abc")
    assert at_hand(location, tmp_path) is None
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (folder / name).touch()
    assert at_hand(location, tmp_path) == folder


def test_a_folder_that_is_no_model_is_named_with_its_setting(tmp_path: Path) -> None:
    location = locate("tiny", {"MEDIAMILL_MODEL_WHISPER_TINY": str(tmp_path)})
    with pytest.raises(ModelUnavailable, match=r"MEDIAMILL_MODEL_WHISPER_TINY=.*lacks model\.bin"):
        at_hand(location, tmp_path)

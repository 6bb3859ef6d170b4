"""The whole engine with real weights and recorded speech: words, times, files, and what cannot be transcribed."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pysubs2
import pytest
import srt

from mediamill.engines import whisper
from mediamill.engines.whisper.residency import Key
from mediamill.engines.whisper.weights import at_hand, locate
from mediamill.errors import Cancelled, EngineFailed, InvalidRequest, ModelUnavailable
from mediamill.media.karaoke import parse_ass
from mediamill.model import EngineContext, InputFile, OutputData, OutputFile, Phase, Progress, Work
from tests import speech
from tests.hub import hub
from tests.service import environment

NAMES = ["segments.srt", "karaoke.ass", "words.json"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[whisper.WhisperEngine]:
    """`tiny` is the English-only model, `base` the multilingual one."""
    settings = {
        "MEDIAMILL_MODEL_WHISPER_TINY": str(speech.tiny_en()),
        "MEDIAMILL_MODEL_WHISPER_BASE": str(speech.base(tmp_path_factory.getbasetemp())),
        "DEVICE": "cpu",
    }
    made = whisper.create(settings)
    yield made
    made.close()


class Ran:
    """What a run of the engine gave."""

    def __init__(self, engine: whisper.WhisperEngine, file: Path, scratch: Path, **params: object) -> None:
        scratch.mkdir(exist_ok=True)
        self.progress: list[Progress] = []
        self.files: dict[str, str] = {}
        self.output: Mapping[str, object] = {}
        source = InputFile("url_audio", file, "audio/wav", file.stat().st_size, "")
        work = Work("j", 1, "transcribe", {"url_audio": "file:x", "model": "tiny", **params}, {"url_audio": source})
        for event in engine.run(work, EngineContext(scratch, threading.Event())):
            match event:
                case Progress():
                    self.progress.append(event)
                case OutputFile():
                    self.files[event.name] = event.path.read_text("utf-8")
                case OutputData():
                    self.output = event.values

    @property
    def words(self) -> list[dict[str, float]]:
        found: list[dict[str, float]] = json.loads(self.files["words.json"])
        return found


def onsets(sound: np.ndarray) -> np.ndarray:
    """Seconds at which 20 ms blocks become loud."""
    blocks = np.abs(sound[: sound.size // 320 * 320].astype(float)).reshape(-1, 320).mean(axis=1)
    return np.flatnonzero(blocks > 300) * 0.02


@pytest.fixture(scope="module")
def dickens(engine: whisper.WhisperEngine, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """44 s of Dickens, decoded in parts, by the tiny model."""
    return Ran(engine, speech.recording("two_cities.wav"), tmp_path_factory.mktemp("d"), decoding="parallel")


def test_a_reading_is_understood(dickens: Ran) -> None:
    reference = speech.plain_words(speech.TWO_CITIES)
    found = speech.plain_words(str(dickens.output["text"]))
    assert speech.word_errors(reference, found) / len(reference) < 0.06
    assert speech.words_missing(reference, found) <= 3
    assert dickens.output["language"] == "en"
    assert dickens.output["audio_seconds"] == pytest.approx(44.374, abs=0.01)
    assert dickens.output["warnings"] == []


def test_the_three_files_hold_the_same_words(dickens: Ran) -> None:
    assert list(dickens.files) == NAMES
    cues = list(srt.parse(dickens.files["segments.srt"]))
    events = pysubs2.SSAFile.from_string(dickens.files["karaoke.ass"]).events
    assert [e.plaintext for e in events] == [c.content for c in cues]
    assert [e.start for e in events] == [round(c.start.total_seconds() * 1000) for c in cues]
    in_srt = " ".join(c.content.replace("\n", " ") for c in cues).split()
    assert [w["word"] for w in dickens.words] == in_srt
    assert [w["word"] for w in dickens.words] == str(dickens.output["text"]).split()
    assert {w["segment"] for w in dickens.words} == set(range(len(cues)))


def test_subtitles_can_be_read_in_time(dickens: Ran) -> None:
    cues = list(srt.parse(dickens.files["segments.srt"]))
    for cue in cues:
        assert 1.0 <= (cue.end - cue.start).total_seconds() <= 7.0
        assert len(cue.content.split("\n")) <= 2
        assert max(map(len, cue.content.split("\n"))) <= 42
    assert all(a.end <= b.start for a, b in itertools.pairwise(cues))


def test_word_times_are_in_order_and_match_the_sound(dickens: Ran) -> None:
    words = dickens.words
    assert all(a["start"] <= a["end"] <= b["start"] for a, b in itertools.pairwise(words))
    assert {type(v) for w in words for k, v in w.items() if k in {"start", "end", "probability"}} == {float}
    loud = onsets(speech.samples("two_cities.wav"))
    sentence_starts = [w["start"] for a, w in itertools.pairwise(words) if str(a["word"]).endswith(".")]
    off = [np.abs(loud - start).min() for start in sentence_starts]
    assert len(sentence_starts) >= 6
    assert np.median(off) < 0.1
    assert abs(words[0]["start"] - loud[0]) < 0.3


def test_progress_rises_through_its_phases(dickens: Ran) -> None:
    fractions = [p.fraction for p in dickens.progress]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    phases = [p.phase for p in dickens.progress if p.phase]
    assert [p for p, _ in itertools.groupby(phases)] == [Phase.LOADING, Phase.GENERATING, Phase.ENCODING]


def test_sequential_and_parallel_find_the_same_words(
    engine: whisper.WhisperEngine, dickens: Ran, tmp_path: Path
) -> None:
    one = Ran(engine, speech.recording("two_cities.wav"), tmp_path / "s")
    missing = speech.words_missing(
        speech.plain_words(str(one.output["text"])), speech.plain_words(str(dickens.output["text"]))
    )
    assert missing <= 3


def test_a_detected_language_and_a_style_from_a_video(engine: whisper.WhisperEngine, tmp_path: Path) -> None:
    video = _as_video(tmp_path / "v.mkv", speech.samples("beckett.wav"))
    ran = Ran(engine, video, tmp_path / "s", model="base", style="word_by_word")
    assert ran.output["language"] == "en"
    assert float(str(ran.output["language_probability"])) > 0.6
    assert speech.word_errors(speech.plain_words(speech.BECKETT), speech.plain_words(str(ran.output["text"]))) <= 1
    events = pysubs2.SSAFile.from_string(ran.files["karaoke.ass"]).events
    assert [e.plaintext for e in events] == [w["word"] for w in ran.words]
    again = parse_ass(ran.files["karaoke.ass"])
    assert [w.text.strip() for cue in again for w in cue.words] == [w["word"] for w in ran.words]


def _as_video(path: Path, sound: np.ndarray) -> Path:
    with av.open(str(path), "w") as out:
        pictures = out.add_stream("libx264", rate=1)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        stream = out.add_stream("libopus", rate=16_000, layout="mono")
        for i in range(sound.size // speech.RATE_HZ):
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            picture.pts = i
            out.mux(pictures.encode(picture))
        frame = av.AudioFrame.from_ndarray(sound[None, :], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packets in (pictures.encode(None), stream.encode(frame), stream.encode(None)):
            out.mux(packets)
    return path


def test_without_word_times_nothing_is_claimed_about_words(engine: whisper.WhisperEngine, tmp_path: Path) -> None:
    ran = Ran(engine, speech.recording("beckett.wav"), tmp_path / "s", word_timestamps=False)
    assert ran.words == []
    events = pysubs2.SSAFile.from_string(ran.files["karaoke.ass"]).events
    assert [e.text.count(r"\k") for e in events] == [len(e.plaintext.split("\n")) for e in events]
    content = " ".join(c.content for c in srt.parse(ran.files["segments.srt"]))
    assert speech.plain_words(content) == speech.plain_words(str(ran.output["text"]))


@pytest.mark.parametrize("kind", ["silence", "hum"])
def test_no_speech_gives_empty_valid_files_and_says_so(
    engine: whisper.WhisperEngine, tmp_path: Path, kind: str
) -> None:
    seconds = np.arange(4 * speech.RATE_HZ) / speech.RATE_HZ
    chord = sum(np.sin(2 * np.pi * hz * seconds) for hz in (220.0, 277.2, 329.6)) * (4000 if kind == "hum" else 0)
    ran = Ran(engine, speech.write_wav(tmp_path / "x.wav", np.asarray(chord).astype(np.int16)), tmp_path / "s")
    assert list(srt.parse(ran.files["segments.srt"])) == []
    assert pysubs2.SSAFile.from_string(ran.files["karaoke.ass"]).events == []
    assert ran.words == []
    assert ran.output["text"] == ""
    assert "No speech was found in 4.0 s" in str(ran.output["warnings"])


def test_a_language_the_model_does_not_know_is_refused(engine: whisper.WhisperEngine, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="does not know 'pt'"):
        Ran(engine, speech.recording("beckett.wav"), tmp_path / "s", language="pt")


class Polyglot:
    """Understands one language at most: a word every half second. Not sure which one it hears."""

    supported_languages = ("en", "la", "pt", "es", "ar", "zh", "th", "de")
    model = SimpleNamespace(is_multilingual=True, num_languages=99)

    def __init__(
        self, understands: str | None, heard: Sequence[tuple[str, float]], *, pieces: Sequence[str] = ()
    ) -> None:
        self.understands, self.heard = understands, list(heard)
        self.pieces = pieces or [f" {understands}{n}" for n in range(200)]
        self.asked: list[tuple[str, str, float]] = []

    def detect_language(self, *, audio: np.ndarray) -> tuple[str, float, list[tuple[str, float]]]:
        return (*self.heard[0], self.heard)

    def transcribe(self, audio: np.ndarray, *, language: str, task: str, **_: object) -> tuple[Iterator[object], None]:
        length_s = audio.size / speech.RATE_HZ
        self.asked.append((language, task, round(length_s)))
        words = [
            SimpleNamespace(word=self.pieces[n % len(self.pieces)], start=n / 2, end=n / 2 + 0.4, probability=0.9)
            for n in range(int(length_s * 2) if language == self.understands else 0)
        ]
        text = "".join(word.word for word in words)
        told = {"seek": 0, "temperature": 0.0, "tokens": [], "avg_logprob": -0.2, "no_speech_prob": 0.1}
        segment = SimpleNamespace(start=0.0, end=length_s, text=text, words=words, compression_ratio=1.0, **told)
        return iter([segment] if words else []), None


def _heard_by(model: Polyglot, tmp_path: Path, recording: str, **params: object) -> Ran:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (folder / name).touch()
    settings = {"MEDIAMILL_MODEL_WHISPER_BASE": str(folder), "DEVICE": "cpu"}
    engine = whisper.WhisperEngine(settings, load=lambda _: model)
    try:
        return Ran(engine, speech.recording(recording), tmp_path / "s", model="base", **params)
    finally:
        engine.close()


DOUBTFUL = [("la", 0.5), ("pt", 0.4), ("es", 0.06), ("en", 0.04)]


def test_a_doubtful_language_without_text_gives_way_to_the_next_and_is_reported(tmp_path: Path) -> None:
    model = Polyglot("pt", DOUBTFUL)
    ran = _heard_by(model, tmp_path, "two_cities.wav")
    assert (ran.output["language"], ran.output["language_probability"]) == ("pt", 0.4)
    assert str(ran.output["text"]).startswith("pt0 pt1 pt2")
    (warning,) = ran.output["warnings"]  # type: ignore[misc]
    assert "doubtful (la 0.50, pt 0.40, es 0.06); 'pt' was used because the first gave no text" in warning
    (_, _, whole_s), *others = model.asked
    assert whole_s > 40
    assert others == [("pt", "transcribe", 29), ("pt", "transcribe", whole_s)], "tried on its beginning first"
    fractions = [p.fraction for p in ran.progress]
    assert fractions == sorted(fractions)


def test_a_doubtful_language_that_gives_text_is_reported_too(tmp_path: Path) -> None:
    ran = _heard_by(Polyglot("la", DOUBTFUL), tmp_path, "beckett.wav")
    assert ran.output["language"] == "la"
    assert "'la' was used. Name it" in str(ran.output["warnings"])


def test_what_no_language_makes_sense_of_is_never_a_silent_success(tmp_path: Path) -> None:
    model = Polyglot(None, DOUBTFUL)
    ran = _heard_by(model, tmp_path, "two_cities.wav")
    assert ran.output["text"] == ""
    doubtful, nothing = ran.output["warnings"]  # type: ignore[misc]
    assert "doubtful (la 0.50, pt 0.40, es 0.06)" in doubtful
    assert "No words were recognised in 4" in nothing
    assert "music" in nothing
    assert {language for language, _, _ in model.asked} == {"la", "pt", "es"}
    assert {language for language, _, heard_s in model.asked if heard_s > 31} == {"la"}, "the others on the beginning"


def test_a_sure_or_forced_language_is_the_only_one_and_no_reason_for_a_warning(tmp_path: Path) -> None:
    (tmp_path / "sure").mkdir()
    sure, forced = Polyglot("pt", [("pt", 0.9), ("la", 0.1)]), Polyglot("es", DOUBTFUL)
    assert _heard_by(sure, tmp_path / "sure", "beckett.wav").output["warnings"] == []
    ran = _heard_by(forced, tmp_path, "beckett.wav", language="es", task="translate")
    assert (ran.output["language"], ran.output["language_probability"], ran.output["warnings"]) == ("es", 1.0, [])
    assert {asked[:2] for asked in forced.asked} == {("es", "translate")}


@pytest.mark.parametrize(
    ("language", "pieces", "words"),
    [
        ("en", [" 1", ",000", " don", "'t", " $", "5", ".", "99"], ["1,000", "don't", "$5.99"]),
        ("ar", [" مرحبا", "،", " كيف", " حالك"], ["مرحبا،", "كيف", "حالك"]),
        ("zh", ["今天", "是", "2", "0", "2", "6", "年", "。"], ["今天", "是", "2026", "年。"]),
        ("th", ["สวัส", "ดี", "ครับ"], ["สวัส", "ดี", "ครับ"]),
        ("de", [" Donau", "dampf", "schiff", "fahrt", "."], ["Donaudampfschifffahrt."]),
    ],
)
def test_every_script_is_right_in_all_three_files(
    tmp_path: Path, language: str, pieces: list[str], words: list[str]
) -> None:
    ran = _heard_by(Polyglot(language, [], pieces=pieces), tmp_path, "beckett.wav", language=language)
    listed = [str(w["word"]) for w in ran.words]
    assert listed[: len(words)] == words
    assert all(a["end"] <= b["start"] for a, b in itertools.pairwise(ran.words))
    shown = [c.content for c in srt.parse(ran.files["segments.srt"])]
    said = "".join(str(ran.output["text"]).split())
    assert "".join(listed) == said
    assert "".join("".join(shown).split()) == said
    assert [e.plaintext for e in pysubs2.SSAFile.from_string(ran.files["karaoke.ass"]).events] == shown


@pytest.mark.parametrize(
    ("settings", "device", "compute_type"),
    [
        ({"DEVICE": "cpu"}, "cpu", "int8"),
        ({"DEVICE": "cpu", "DTYPE": "float32"}, "cpu", "float32"),
        ({"DEVICE": "cpu", "DTYPE": "bfloat99"}, "cpu", "int8"),
        ({"DEVICE": "cuda:1"}, "cuda:1", "float16"),
        ({"DEVICE": "mps"}, "cpu", "int8"),
    ],
)
def test_a_cpu_counts_in_int8_and_a_gpu_in_float16(
    tmp_path: Path, settings: dict[str, str], device: str, compute_type: str
) -> None:
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).touch()
    keys: list[Key] = []
    everything = {"MEDIAMILL_MODEL_WHISPER_TINY": str(tmp_path), "MEDIAMILL_CPU_SLOTS": "1", **settings}
    engine = whisper.WhisperEngine(everything, load=lambda key: keys.append(key) or Polyglot("pt", DOUBTFUL))
    for decoding in ("sequential", "parallel"):
        Ran(engine, speech.recording("beckett.wav"), tmp_path / "s", language="pt", decoding=decoding)
    engine.close()
    assert {(key.device, key.compute_type) for key in keys} == {(device, compute_type)}
    assert keys[0].workers == 1
    assert keys[1].workers > 1


def test_a_device_that_is_none_says_so(tmp_path: Path) -> None:
    engine = whisper.create({"MEDIAMILL_MODEL_WHISPER_TINY": str(speech.tiny_en()), "DEVICE": "abacus"})
    with pytest.raises(EngineFailed, match=r"DEVICE='abacus'.*cpu, cuda"):
        Ran(engine, speech.recording("beckett.wav"), tmp_path / "s")


FETCH = """
import sys, threading
from pathlib import Path
from mediamill.engines import whisper
from mediamill.model import EngineContext, InputFile, OutputData, Progress, Work
engine = whisper.create({"MEDIAMILL_MODEL_WHISPER_TINY": "org/tiny", "DEVICE": "cpu"})
source = InputFile("url_audio", Path(sys.argv[1]), "audio/wav", 1, "")
work = Work("j", 1, "transcribe", {"url_audio": "file:x", "model": "tiny"}, {"url_audio": source})
for event in engine.run(work, EngineContext(Path.cwd(), threading.Event())):
    if isinstance(event, Progress):
        print(event.phase, event.fraction, event.message)
    elif isinstance(event, OutputData):
        print(event.values["text"])
"""


def test_weights_that_are_not_here_are_fetched_and_that_is_said(tmp_path: Path) -> None:
    with hub(speech.tiny_en(), "org/tiny", extra={"pytorch_model.bin": b"not needed"}) as served:
        variables = environment({"HF_ENDPOINT": served.url, "HF_HUB_CACHE": str(tmp_path / "hub")})
        told = _printed(FETCH, variables, tmp_path)
    fetching = [line for line in told if "download" in line]
    assert all(line.startswith("loading ") for line in fetching)
    assert fetching[-1].endswith(f"downloaded org/tiny: {sum(p.stat().st_size for p in _needed()) / 1e6:.0f} MB")
    assert float(fetching[-1].split()[1]) > float(fetching[0].split()[1])
    assert sorted(set(served.asked)) == sorted(p.name for p in _needed())
    assert speech.plain_words(told[-2]) == speech.plain_words(speech.BECKETT)
    here = at_hand(locate("tiny", {"MEDIAMILL_MODEL_WHISPER_TINY": "org/tiny"}), tmp_path / "hub")
    assert here is not None
    assert (here / "model.bin").stat().st_size == (speech.tiny_en() / "model.bin").stat().st_size


def _needed() -> list[Path]:
    return [p for p in speech.tiny_en().iterdir() if p.name.startswith(("config", "preproc", "model", "token", "voc"))]


def _printed(script: str, variables: dict[str, str], folder: Path) -> list[str]:
    command = [sys.executable, "-c", script, str(speech.recording("beckett.wav"))]
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_missing_weights_say_how_to_get_them(tmp_path: Path) -> None:
    engine = whisper.create({"MEDIAMILL_MODEL_WHISPER_SMALL": str(tmp_path / "nowhere")})
    with pytest.raises(ModelUnavailable, match="MEDIAMILL_MODEL_WHISPER_SMALL"):
        Ran(engine, speech.recording("beckett.wav"), tmp_path / "s", model="small")


def test_a_cancel_stops_at_once_and_keeps_the_model(engine: whisper.WhisperEngine, tmp_path: Path) -> None:
    sound = np.concatenate([speech.samples("two_cities.wav")] * 4)
    file = speech.write_wav(tmp_path / "long.wav", sound)
    source = InputFile("url_audio", file, "audio/wav", file.stat().st_size, "")
    work = Work("j", 1, "transcribe", {"url_audio": "file:x", "model": "base", "language": "en"}, {"url_audio": source})
    cancelled = threading.Event()
    events = engine.run(work, EngineContext(tmp_path, cancelled))
    while True:
        event = next(events)
        if isinstance(event, Progress) and event.phase is Phase.GENERATING:
            break
    cancelled.set()
    with pytest.raises(Cancelled):
        next(events)
    assert engine.held() == ["transcribe"]


def test_a_model_stays_loaded_between_jobs(engine: whisper.WhisperEngine, tmp_path: Path) -> None:
    Ran(engine, speech.recording("beckett.wav"), tmp_path / "a")
    second = Ran(engine, speech.recording("beckett.wav"), tmp_path / "b")
    assert not any("loading model" in (p.message or "") for p in second.progress)

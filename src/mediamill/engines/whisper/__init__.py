"""Speech to timed text with faster-whisper; int8 on a CPU, float16 on a GPU.

The cheap checks come first: a file without sound fails, and one without speech ends, before any weights are loaded.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from mediamill.catalog.transcribe import TranscribeRequest
from mediamill.engines.whisper.audio import RATE_HZ, Decoding, Sound
from mediamill.engines.whisper.decode import Decode, Options, Segment, detect_language, left_s
from mediamill.engines.whisper.residency import Key, Residency, as_engine_error
from mediamill.engines.whisper.speech import Listening, Part, Span, first_of, parts_of, speech_spans
from mediamill.engines.whisper.weights import Download, Location, at_hand, locate, unavailable
from mediamill.errors import Cancelled, EngineFailed, InvalidRequest, ModelUnavailable
from mediamill.media.karaoke import plain_cue, to_ass
from mediamill.media.speech_subtitles import Cue, Word, cues_of, joined, monotonic, to_srt, words_json
from mediamill.model import EngineContext, Event, OutputData, OutputFile, Phase, Progress, Work

SURE_LANGUAGE = 0.6
SEQUENTIAL_PART_S = 600.0
PARALLEL_PART_S = 29.0
"""The model hears 30 s at a time, at the same price however little of it is filled."""
MAX_TEXT_BYTES = 160 * 1024
"""Longer text is cut in the job's output (which is bounded); the files hold all of it."""
_READ, _LISTENED, _FETCHED, _DECODED = 0.03, 0.06, 0.3, 0.97
"""Shares of the whole at which the file is read, listened through, its model fetched (if need be), and decoded."""
TRIAL_S = 29.0
"""Speech from which it is judged whether another language gives any text."""
_OTHER_LANGUAGES = 2
"""Languages tried besides a doubtful one when it gives no text."""
_LANGUAGES_WITH_CANTONESE = 100
_DEFAULT_TTL_S = 600.0


def create(settings: Mapping[str, str]) -> WhisperEngine:
    """The engine; `settings` by upper-case name (DEVICE, MEDIAMILL_MODEL_TTL_SECONDS, MEDIAMILL_MODEL_WHISPER_...)."""
    return WhisperEngine(settings)


@dataclass
class _Heard:
    """One job's recording and what is found in it."""

    request: TranscribeRequest
    sound: Sound
    probabilities: Any = None
    spans: list[Span] = field(default_factory=list)
    language: str | None = None
    language_probability: float | None = None
    segments: list[Segment] = field(default_factory=list)
    again: int = 0
    warnings: list[str] = field(default_factory=list)
    fraction: float = _LISTENED
    """How far the job was when the latest step ended."""

    @property
    def pieces(self) -> list[Span]:
        """What is to be heard: the speech, or everything."""
        return self.spans if self.request.vad else [(0, self.sound.samples)]

    @property
    def speech_s(self) -> float:
        """Seconds in which somebody speaks."""
        return sum(end - start for start, end in self.spans) / RATE_HZ


class WhisperEngine:
    """Transcribes. Holds models between jobs."""

    def __init__(self, settings: Mapping[str, str], *, load: Callable[[Key], Any] | None = None) -> None:
        """Reads nothing but `settings`; loads nothing yet. `load`: how a model is loaded; None: faster-whisper's."""
        ttl_s = float(settings.get("MEDIAMILL_MODEL_TTL_SECONDS") or _DEFAULT_TTL_S)
        given = settings.get("MEDIAMILL_MODEL_MEMORY_BYTES")
        budget_bytes = int(given) if given else psutil.virtual_memory().available // 2
        self._settings = dict(settings)
        self._residency = Residency(ttl_s=ttl_s, budget_bytes=budget_bytes, load=load)

    def held(self) -> Sequence[str]:
        """`transcribe` while any model is loaded."""
        return ["transcribe"] if self._residency.keys() else []

    def close(self) -> None:
        """Drop the loaded models and their timers."""
        self._residency.close()

    def run(self, work: Work, ctx: EngineContext) -> Iterator[Event]:
        """Transcribe `url_audio`: segments.srt, karaoke.ass, words.json, and the text with what was found out.

        Raises:
            UnsupportedMedia, TooLarge, InvalidRequest (a language the configured model does not know),
            ModelUnavailable, OutOfMemory, EngineFailed, Cancelled.
        """
        _need("faster_whisper")
        request = TranscribeRequest.model_validate(work.params)
        settings = {**self._settings, **ctx.settings}
        location = locate(request.model, settings)
        heard = _Heard(request, Sound(ctx.scratch / "samples.s16", 0))
        yield from self._listen(work.inputs["url_audio"].path, heard, ctx)
        if heard.pieces:
            folder = yield from self._weights(location, heard, ctx)
            yield from self._transcribe(heard, _key(folder, request, settings), ctx)
        yield Progress(0.98, Phase.ENCODING, "writing the subtitles")
        _note_what_is_missing(heard)
        yield from _files(heard, ctx.scratch)
        yield OutputData(_output(heard))
        yield Progress(1.0)

    def _listen(self, source: Path, heard: _Heard, ctx: EngineContext) -> Iterator[Event]:
        """Decode the sound and find where somebody speaks."""
        yield Progress(0.0, Phase.LOADING, "reading the sound")
        decoding = Decoding(source, heard.sound.path, ctx.cancelled)
        for share in decoding:
            yield Progress(_READ * share, Phase.LOADING, "reading the sound")
        heard.sound = decoding.sound
        if decoding.damaged:
            heard.warnings.append(
                f"{decoding.damaged} packets of the sound are damaged and were left out: what was said there is not in "
                "the text."
            )
        listening = Listening(heard.sound, ctx.cancelled)
        for share in listening:
            yield Progress(_READ + (_LISTENED - _READ) * share, Phase.LOADING, "listening for speech")
        heard.probabilities = listening.probabilities
        heard.spans = speech_spans(heard.probabilities, heard.sound.samples)

    def _weights(self, location: Location, heard: _Heard, ctx: EngineContext) -> Generator[Event, None, Path]:
        """Returns the model's folder; fetches it, saying so, when it is not here."""
        from huggingface_hub import constants

        hub_cache = Path(constants.HF_HUB_CACHE)
        folder = at_hand(location, hub_cache)
        if folder is None:
            if constants.HF_HUB_OFFLINE:
                raise ModelUnavailable(unavailable(location))
            yield Progress(_LISTENED, Phase.LOADING, f"downloading {location.source}")
            download = Download(location, hub_cache, ctx.cancelled)
            for share, sentence in download:
                heard.fraction = _LISTENED + (_FETCHED - _LISTENED) * share
                yield Progress(heard.fraction, Phase.LOADING, sentence)
            folder = download.folder
        if folder is None:
            raise ModelUnavailable(unavailable(location))
        return folder

    def _transcribe(self, heard: _Heard, key: Key, ctx: EngineContext) -> Iterator[Event]:
        if not self._residency.holds(key):
            yield Progress(heard.fraction, Phase.LOADING, f"loading model {heard.request.model}")
        with self._residency.using(key) as model:
            if ctx.cancelled.is_set():
                raise Cancelled
            languages = _languages(model, heard)
            used = yield from self._first_that_gives_text(model, heard, [name for name, _ in languages], key, ctx)
            _note_language(heard, languages, used)

    def _first_that_gives_text(
        self, model: Any, heard: _Heard, languages: Sequence[str], key: Key, ctx: EngineContext
    ) -> Generator[Event, None, int]:
        """Decode in the likeliest language, and in the next ones while there is no text; returns which gave some.

        Of a long recording another language must first give text for its beginning.
        """
        beginning = first_of(heard.pieces, TRIAL_S)
        for attempt, language in enumerate(languages):
            options = replace(_options(heard.request), language=language)
            if attempt and beginning != heard.pieces:
                trial = yield from self._decode(model, heard, options, key, ctx, beginning)
                if not trial:
                    continue
            heard.segments = yield from self._decode(model, heard, options, key, ctx, heard.pieces)
            if heard.segments:
                return attempt
        return 0

    def _decode(
        self, model: Any, heard: _Heard, options: Options, key: Key, ctx: EngineContext, pieces: Sequence[Span]
    ) -> Generator[Event, None, list[Segment]]:
        """The segments with text in `pieces` of the recording."""
        parts = _parts(heard, pieces)
        decode = Decode(
            model,
            heard.sound,
            parts,
            probabilities=heard.probabilities,
            options=options,
            workers=key.workers,
            cancelled=ctx.cancelled,
        )
        started_s, begun = time.monotonic(), heard.fraction
        for share in decode:
            done_s = share * sum(part.heard_s for part in parts)
            heard.fraction = begun + (_DECODED - begun) * share
            yield Progress(heard.fraction, Phase.GENERATING, f"{done_s:.0f} s transcribed", left_s(started_s, share))
        heard.again += decode.again
        return [s for s in decode.segments if s.text.strip()]


def _need(library: str) -> None:
    """Raises EngineFailed naming the extra to install."""
    import importlib.util

    if importlib.util.find_spec(library) is None:
        raise EngineFailed("Transcription needs faster-whisper: install mediamill[whisper].")


def _key(folder: Path, request: TranscribeRequest, settings: Mapping[str, str]) -> Key:
    """Device, number type and threads of this request's model."""
    import ctranslate2

    device = (settings.get("DEVICE") or "").lower()
    if not device:
        device = "cuda" if ctranslate2.get_cuda_device_count() > 0 else "cpu"
    device = "cpu" if device == "mps" else device  # CTranslate2 knows no Apple GPU
    kind = device.partition(":")[0]
    if kind not in {"cpu", "cuda"}:
        raise EngineFailed(f"DEVICE={device!r} cannot transcribe; accepted are cpu, cuda and cuda:N.")
    compute_type = "float16" if kind == "cuda" else "int8"
    try:
        if (wanted := settings.get("DTYPE")) and wanted in ctranslate2.get_supported_compute_types(kind):
            compute_type = wanted
    except RuntimeError as error:
        raise as_engine_error(error, f"DEVICE={device!r} cannot be used") from error
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slots = int(settings.get("MEDIAMILL_CPU_SLOTS") or max(1, cores // 2))
    threads = max(1, cores // slots)
    if request.decoding == "sequential":
        return Key(folder, device, compute_type, threads=threads, workers=1)
    return Key(folder, device, compute_type, threads=1, workers=max(2, threads))


def _parts(heard: _Heard, pieces: Sequence[Span]) -> list[Part]:
    """Long parts that pass their text on, or as many as keep every core busy, each within one window of the model."""
    most_s = PARALLEL_PART_S if heard.request.decoding == "parallel" else SEQUENTIAL_PART_S
    return parts_of(heard.probabilities, heard.sound.samples, most_s=most_s, spans=pieces)


def _options(request: TranscribeRequest) -> Options:
    return Options("en", request.task, request.beam_size, request.word_timestamps)


def _languages(model: Any, heard: _Heard) -> list[tuple[str, float]]:
    """Languages to try, in order. A forced one is the only one.

    Raises: InvalidRequest: the model at hand knows English only, or not this language.
    """
    wanted = heard.request.language
    known = set(model.supported_languages)
    if model.model.num_languages < _LANGUAGES_WITH_CANTONESE:
        known.discard("yue")
    if wanted is not None:
        if wanted not in known:
            raise InvalidRequest(f"language: the model at hand for {heard.request.model!r} does not know {wanted!r}.")
        return [(wanted, 1.0)]
    ranked = detect_language(model, heard.sound, heard.spans or heard.pieces, sure=SURE_LANGUAGE)
    return ranked[:1] if ranked[0][1] >= SURE_LANGUAGE else ranked[: 1 + _OTHER_LANGUAGES]


def _note_language(heard: _Heard, languages: Sequence[tuple[str, float]], used: int) -> None:
    heard.language, heard.language_probability = languages[used][0], round(languages[used][1], 4)
    if heard.request.language is not None or languages[0][1] >= SURE_LANGUAGE:
        return
    ranked = ", ".join(f"{language} {probability:.2f}" for language, probability in languages)
    tried = f"{languages[used][0]!r} was used" + (" because the first gave no text" if used else "")
    heard.warnings.append(f"The language is doubtful ({ranked}); {tried}. Name it with `language` if it is wrong.")


def _note_what_is_missing(heard: _Heard) -> None:
    if not heard.spans and not heard.segments:
        heard.warnings.append(
            f"No speech was found in {heard.sound.duration_s:.1f} s of sound; the subtitle files are valid and empty."
        )
    elif not heard.segments:
        heard.warnings.append(
            f"No words were recognised in {heard.speech_s:.1f} s that sound like speech (music, noise, or another "
            "language than assumed); the subtitle files are valid and empty."
        )


def _files(heard: _Heard, scratch: Path) -> Iterator[OutputFile]:
    """The three files, from the same cues."""
    exact = heard.request.word_timestamps
    cues = cues_of(monotonic(joined(_words(heard.segments))))
    timed = cues if exact else [_one_word_a_line(cue) for cue in cues]
    contents = {
        "segments.srt": ("application/x-subrip", to_srt(cues)),
        "karaoke.ass": ("text/x-ssa", to_ass(timed, heard.request.style)),
        "words.json": ("application/json", json.dumps(words_json(cues) if exact else [], ensure_ascii=False)),
    }
    for name, (media_type, text) in contents.items():
        path = scratch / name
        path.write_text(text, encoding="utf-8", newline="\n")
        yield OutputFile(name, path, media_type)


def _words(segments: Sequence[Segment]) -> Iterator[Word]:
    """Timed words; without word timestamps, the words of each segment share its time by their lengths."""
    for segment in segments:
        if segment.words:
            yield from segment.words
            continue
        for word in plain_cue(segment.start_s, segment.end_s, segment.text.replace("\n", " ")).words:
            spaced = word.text if word.text[:1].isspace() or not segment.text[:1].isspace() else f" {word.text}"
            yield replace(word, text=spaced)


def _one_word_a_line(cue: Cue) -> Cue:
    """Lines that light up as wholes: nothing is claimed about words that were not timed."""
    lines = [Word("".join(w.text for w in line), line[0].start_s, line[-1].end_s) for line in cue.lines]
    return replace(cue, lines=tuple((line,) for line in lines))


def _output(heard: _Heard) -> dict[str, Any]:
    text = "".join(segment.text for segment in heard.segments).strip()
    whole = len(text.encode()) <= MAX_TEXT_BYTES
    if not whole:
        text = text.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
        heard.warnings.append("The text in this reply is cut; segments.srt and words.json hold all of it.")
    return {
        "language": heard.language or heard.request.language,
        "language_probability": heard.language_probability,
        "audio_seconds": round(heard.sound.duration_s, 3),
        "speech_seconds": round(heard.speech_s, 3),
        "text": text,
        "decoded_again": heard.again,
        "warnings": heard.warnings,
    }

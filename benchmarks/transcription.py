"""Speed, words found and word error rate of ours beside faster-whisper, on one file in one run.

    python benchmarks/transcription.py [--model base] [--rounds 3] [--minutes 5] [--service]

With --service also through a service: upload, queue, child process, storage, reply. Every row has the same file, model,
int8, beam 5, VAD, word times and two threads. "windows" are the stretches of up to 30 s that the model encoded, which
is what the work depends on. "missing" counts words of the known text that have no counterpart in order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from faster_whisper import BatchedInferencePipeline, WhisperModel

from mediamill.engines import whisper
from mediamill.model import EngineContext, InputFile, OutputData, Work

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests import speech
from tests.service import a_folder, serving

THREADS = 2


def long_recording(path: Path, minutes: float) -> tuple[Path, list[str]]:
    """Two readings at several speeds with pauses between, and their words."""
    rng = np.random.default_rng(1)
    pieces: list[Any] = []
    words: list[str] = []
    for turn in range(200):
        if sum(p.size for p in pieces) >= minutes * 60 * speech.RATE_HZ:
            break
        speed = (1.0, 0.94, 1.06, 0.97, 1.03)[turn % 5]
        for name, text in (("two_cities.wav", speech.TWO_CITIES), ("beckett.wav", speech.BECKETT)):
            sound = speech.samples(name)
            at = np.arange(0, sound.size - 1, speed)
            pieces.append(np.interp(at, np.arange(sound.size), sound).astype(np.int16))
            pieces.append(rng.normal(0, 20, round((0.8 + 5 * rng.random()) * speech.RATE_HZ)).astype(np.int16))
            words += speech.plain_words(text)
    return speech.write_wav(path, np.concatenate(pieces)), words


def library(model: WhisperModel, file: Path, **options: Any) -> str:
    """faster-whisper's own call."""
    segments, _ = model.transcribe(
        str(file), language="en", beam_size=5, vad_filter=True, word_timestamps=True, **options
    )
    return "".join(segment.text for segment in segments)


def batched(model: WhisperModel, file: Path) -> str:
    """faster-whisper's batched pipeline with its defaults."""
    segments, _ = BatchedInferencePipeline(model).transcribe(
        str(file), language="en", beam_size=5, batch_size=8, word_timestamps=True
    )
    return "".join(segment.text for segment in segments)


def ours(engine: whisper.WhisperEngine, file: Path, model: str, decoding: str) -> str:
    """The engine as a job runs it: decoding, all three files."""
    source = InputFile("url_audio", file, "audio/wav", file.stat().st_size, "")
    params = {"url_audio": "file:x", "model": model, "language": "en", "decoding": decoding}
    text = ""
    with tempfile.TemporaryDirectory() as scratch:
        context = EngineContext(Path(scratch), threading.Event())
        for event in engine.run(Work("bench", 1, "transcribe", params, {"url_audio": source}), context):
            if isinstance(event, OutputData):
                text = str(event.values["text"])
    return text


def service(server: str, file: Path, model: str, decoding: str) -> str:
    """`POST /transcribe` of a running service."""

    async def call() -> str:
        form = aiohttp.FormData({"model": model, "language": "en", "decoding": decoding})
        form.add_field("file", file.read_bytes(), filename=file.name, content_type="audio/wav")
        async with aiohttp.ClientSession() as http, http.post(f"{server}/transcribe", data=form) as reply:
            return str((await reply.json())["text"])

    return asyncio.run(call())


@dataclass
class Row:
    """What one way of transcribing took in each round, and the text of the last one."""

    call: Callable[[], str]
    walls_s: list[float] = field(default_factory=list)
    cpus_s: list[float] = field(default_factory=list)
    windows: int = 0
    text: str = ""


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("tiny", "base"), default="base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--service", action="store_true", help="also through a service that is started for it")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(a_folder())
        weights = speech.tiny_en() if given.model == "tiny" else speech.base(folder)
        file, words = long_recording(folder / "long.wav", given.minutes)
        settings = {f"MEDIAMILL_MODEL_WHISPER_{given.model.upper()}": str(weights), "DEVICE": "cpu"}
        engine = whisper.create(settings)
        stack.callback(engine.close)
        model = WhisperModel(str(weights), device="cpu", compute_type="int8", cpu_threads=THREADS)
        rows = {
            "faster-whisper sequential": Row(lambda: library(model, file)),
            "faster-whisper, no context": Row(lambda: library(model, file, condition_on_previous_text=False)),
            "faster-whisper batched 8": Row(lambda: batched(model, file)),
            "mediamill sequential": Row(lambda: ours(engine, file, given.model, "sequential")),
            "mediamill parallel": Row(lambda: ours(engine, file, given.model, "parallel")),
        }
        if given.service:
            server = stack.enter_context(serving(folder, extra=settings)).url
            rows["service sequential"] = Row(lambda: service(server, file, given.model, "sequential"))
            rows["service parallel"] = Row(lambda: service(server, file, given.model, "parallel"))
        measure(rows, given.rounds)
        duration_s = (file.stat().st_size - 44) / 2 / speech.RATE_HZ
        report(rows, words, duration_s=duration_s, model=given.model)


def measure(rows: Mapping[str, Row], rounds: int) -> None:
    """Interleaved rounds after one that is not counted."""
    windows = counted_windows()
    for number in range(rounds + 1):
        for row in rows.values():
            before = windows[0]
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            row.text = row.call()
            row.windows = windows[0] - before
            if number:
                row.walls_s.append(time.perf_counter() - wall_s)
                row.cpus_s.append(time.process_time() - cpu_s)


def counted_windows() -> list[int]:
    """One number: the 30-second windows that were encoded in this process from now on."""
    count = [0]
    encode = WhisperModel.encode

    def counting(self: WhisperModel, features: Any) -> Any:
        count[0] += features.shape[0] if features.ndim == 3 else 1
        return encode(self, features)

    WhisperModel.encode = counting
    return count


def report(rows: Mapping[str, Row], words: list[str], *, duration_s: float, model: str) -> None:
    """One table. "faster" is the median of each round's own ratio to the first row."""
    base = next(iter(rows.values())).walls_s
    versions = f"faster-whisper {version('faster-whisper')}, CTranslate2 {version('ctranslate2')}"
    print(f"whisper {model} int8, beam 5, {THREADS} threads, {duration_s:.0f} s of audio, {len(words)} words")
    print(f"{versions}, {len(base)} rounds, load at the end {', '.join(f'{x:.1f}' for x in os.getloadavg())}\n")
    print(f"| {'':26} | wall s | best | CPU s | windows | x real time | faster | words | missing | WER |")
    print(f"| {'-' * 26} |{' ---: |' * 9}")
    for name, row in rows.items():
        found = speech.plain_words(row.text)
        wall_s = statistics.median(row.walls_s)
        faster = statistics.median(b / own for b, own in zip(base, row.walls_s, strict=True))
        here = (f"{statistics.median(row.cpus_s):.1f}", str(row.windows)) if row.windows else ("", "")
        print(
            f"| {name:26} | {wall_s:.1f} | {min(row.walls_s):.1f} | {here[0]} | {here[1]} | {duration_s / wall_s:.1f} "
            f"| {faster:.2f} | {len(found)} | {speech.words_missing(words, found)} "
            f"| {100 * speech.word_errors(words, found) / len(words):.1f} % |"
        )


if __name__ == "__main__":
    main()

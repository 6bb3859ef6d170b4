"""Speed, words found and word error rate of ours beside faster-whisper, on one file in one run.

    python benchmarks/transcription.py [--model base] [--rounds 3] [--minutes 5] [--server http://127.0.0.1:8000]

With --server also through a running service that has the same weights: upload, queue, child process, storage, reply.
Every row has the same file, model, int8, beam 5, VAD, word times and two threads. "missing" counts words of the known
text that have no counterpart in order.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from faster_whisper import BatchedInferencePipeline, WhisperModel

from mediamill.engines import whisper
from mediamill.model import EngineContext, InputFile, OutputData, Work

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests import speech

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


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("tiny", "base"), default="base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--server", help="URL of a running service to measure too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = speech.tiny_en() if given.model == "tiny" else speech.base(Path(folder))
        file, words = long_recording(Path(folder) / "long.wav", given.minutes)
        engine = whisper.create({f"MEDIAMILL_MODEL_WHISPER_{given.model.upper()}": str(weights), "DEVICE": "cpu"})
        model = WhisperModel(str(weights), device="cpu", compute_type="int8", cpu_threads=THREADS)
        rows: dict[str, Callable[[], str]] = {
            "faster-whisper sequential": lambda: library(model, file),
            "faster-whisper, no context": lambda: library(model, file, condition_on_previous_text=False),
            "faster-whisper batched 8": lambda: batched(model, file),
            "mediamill sequential": lambda: ours(engine, file, given.model, "sequential"),
            "mediamill parallel": lambda: ours(engine, file, given.model, "parallel"),
        }
        if given.server:
            rows["service sequential"] = lambda: service(given.server, file, given.model, "sequential")
            rows["service parallel"] = lambda: service(given.server, file, given.model, "parallel")
        table = measured(rows, given.rounds)
        engine.close()
        duration_s = (file.stat().st_size - 44) / 2 / speech.RATE_HZ
        report(table, words, duration_s=duration_s, model=given.model)


def measured(rows: dict[str, Callable[[], str]], rounds: int) -> dict[str, tuple[list[float], list[float], str]]:
    """Wall and CPU seconds of each round, interleaved, after one unmeasured round; and the last text."""
    table: dict[str, tuple[list[float], list[float], str]] = {name: ([], [], "") for name in rows}
    for number in range(rounds + 1):
        for name, call in rows.items():
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            text = call()
            walls, cpus, _ = table[name]
            if number:
                walls.append(time.perf_counter() - wall_s)
                cpus.append(time.process_time() - cpu_s)
            table[name] = (walls, cpus, text)
    return table


def report(
    table: dict[str, tuple[list[float], list[float], str]], words: list[str], *, duration_s: float, model: str
) -> None:
    """One table; the ratio is against the first row."""
    base_s = statistics.median(next(iter(table.values()))[0])
    print(f"whisper {model} int8, beam 5, {THREADS} threads, {duration_s:.0f} s of audio, {len(words)} words\n")
    print(f"| {'':26} | wall s | CPU s | x real time | faster | words | missing | WER |")
    print(f"| {'-' * 26} | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (walls, cpus, text) in table.items():
        found = speech.plain_words(text)
        wall_s = statistics.median(walls)
        print(
            f"| {name:26} | {wall_s:.1f} | {statistics.median(cpus):.1f} | {duration_s / wall_s:.1f} "
            f"| {base_s / wall_s:.2f} | {len(found)} | {speech.words_missing(words, found)} "
            f"| {100 * speech.word_errors(words, found) / len(words):.1f} % |"
        )


if __name__ == "__main__":
    main()

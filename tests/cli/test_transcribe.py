"""`mediamill transcribe`, as a user runs it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import srt

from tests import speech
from tests.service import PATIENCE_S, alive, environment, eventually, mediamill

TINY = {"MEDIAMILL_MODEL_WHISPER_TINY": str(speech.tiny_en()), "DEVICE": "cpu"}


def test_a_recording_becomes_three_files_and_its_text(tmp_path: Path) -> None:
    asked = ["transcribe", str(speech.recording("beckett.wav")), "--model", "tiny", "--style", "highlight", "-o", "out"]
    done = mediamill(*asked, cwd=tmp_path, extra=TINY)
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


def test_silence_gives_empty_files_and_a_warning(tmp_path: Path) -> None:
    speech.write_wav(tmp_path / "quiet.wav", np.zeros(2 * speech.RATE_HZ, np.int16))
    done = mediamill("transcribe", "quiet.wav", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: No speech was found in 2.0 s of sound")
    assert (tmp_path / "out" / "segments.srt").read_text("utf-8") == ""


def test_a_bar_shows_the_seconds_done_and_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    sound = np.concatenate([speech.samples("two_cities.wav")] * 8)
    speech.write_wav(tmp_path / "long.wav", sound)
    terminal, its_end = pty.openpty()
    command = subprocess.Popen(
        [sys.executable, "-m", "mediamill", "transcribe", "long.wav", "--model", "tiny", "--out", "out"],
        cwd=tmp_path,
        env=environment(TINY | {"COLUMNS": "120", "TERM": "xterm"}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=its_end,
    )
    os.close(its_end)
    try:
        shown = _shown(terminal, until="s transcribed")
        working = psutil.Process(command.pid).children(recursive=True)
    finally:
        command.send_signal(signal.SIGINT)
        shown += _shown(terminal, until=None)
        os.close(terminal)
        command.wait(PATIENCE_S)
    assert "%" in shown
    assert shown.rstrip().endswith("cancelled")
    assert command.returncode == 130
    eventually(lambda: not alive(working))
    assert not (tmp_path / "out").exists()


def _shown(terminal: int, *, until: str | None) -> str:
    """What a terminal shows, up to some text or to its end."""
    shown = ""
    while until is None or until not in shown:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # how Linux tells that nobody has the other end
            break
        if not chunk:
            break
        shown += chunk.decode(errors="replace")
    return shown

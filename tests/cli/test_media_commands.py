from __future__ import annotations

import signal
import subprocess
import sys
import wave
from pathlib import Path

import psutil
import pytest
from PIL import Image

from mediamill.media.probe import probe
from tests.service import PATIENCE_S, alive, environment, eventually, mediamill

SUBTITLES = "1\n00:00:00,000 --> 00:00:00,400\nHello\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos, subtitles, a sound, and a file that is nothing."""
    for name in ("one", "two"):
        Image.linear_gradient("L").resize((320, 180)).convert("RGB").save(tmp_path / f"{name}.png")
    (tmp_path / "words.srt").write_text(SUBTITLES)
    (tmp_path / "junk.jpg").write_text("junk")
    with wave.open(str(tmp_path / "tune.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\0\x10" * 8000)
    return tmp_path


def test_photos_become_clips_that_are_captioned_and_given_a_sound(folder: Path) -> None:
    made = mediamill("img2vid", "one.png", "two.png", "--seconds", "0.5", "--out", "clips", cwd=folder)
    assert made.returncode == 0, made.stderr
    assert sorted(p.name for p in (folder / "clips").iterdir()) == ["one.mp4", "two.mp4"]
    drawn = mediamill("caption", "clips/one.mp4", "words.srt", "--out", "drawn.mp4", cwd=folder)
    assert drawn.returncode == 0, drawn.stderr
    sounding = mediamill("addaudio", "clips/two.mp4", "tune.wav", "--out", "new/sounding.mp4", cwd=folder)
    assert sounding.returncode == 0, sounding.stderr
    found = [probe(folder / name) for name in ("clips/one.mp4", "drawn.mp4", "new/sounding.mp4")]
    assert [facts.frames for facts in found] == [12, 12, 12]
    assert [facts.has_audio for facts in found] == [False, False, True]
    assert (folder / "drawn.mp4").read_bytes() != (folder / "clips" / "one.mp4").read_bytes()
    assert "one.mp4" in made.stdout
    assert "1920x1080 12 frames at 24/s h264" in made.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["img2vid", "one.png", "--seconds", "0"], "images.0.duracao: Input should be greater than 0 (got 0.0)"),
        (["img2vid", "one.png", "--seconds", "nan"], "images.0.duracao: Input should be a"),
        (["img2vid", "one.png", "--quality", "wow"], "quality: Input should be 'fast', 'balanced' or 'best'"),
        (["img2vid", "one.png", "junk.jpg"], "images.1.image_url: 'junk.jpg': The file is not a picture"),
        (["img2vid", "one.png", "two.png", "--out", "clip.mp4"], "--out: 'clip.mp4' is one file and there are 2"),
        (["addaudio", "one.png", "tune.wav"], "url_video: "),
    ],
)
def test_a_wrong_file_or_value_is_refused_by_name(folder: Path, arguments: list[str], sentence: str) -> None:
    before = sorted(folder.rglob("*"))
    done = mediamill(*arguments, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sentence}")
    assert sorted(folder.rglob("*")) == before


def test_ctrl_c_ends_the_work_and_every_process_and_leaves_no_file(folder: Path) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "mediamill", "img2vid", "one.png", "--seconds", "600", "--out", "clips"],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        working = eventually(lambda: len(found := psutil.Process(command.pid).children(recursive=True)) > 1 and found)
    finally:
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=PATIENCE_S)
    assert (command.returncode, said) == (130, "cancelled\n")
    eventually(lambda: not alive(working))
    assert not (folder / "clips").exists()

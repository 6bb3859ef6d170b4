"""`mediamill generate`, as a user runs it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from mediamill.cli.generate import _draw
from mediamill.media.probe import probe
from tests.hub import hub
from tests.service import mediamill
from tests.terminal import in_terminal, plain

SMALL = ("--width", "72", "--height", "64")
HALF_BLOCK = "\u2580"


def test_a_person_sees_progress_the_time_left_previews_and_the_file(tmp_path: Path, tiny_zimage: Path) -> None:
    with hub(tiny_zimage, "org/tiny") as served:
        extra = {
            "HF_ENDPOINT": served.url,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "MEDIAMILL_MODEL_ZIMAGE": "org/tiny",
            "DEVICE": "cpu",
        }
        asked = ["generate", "zimage", "a red fox", *SMALL, "--steps", "100", "-o", "fox.png"]  # long enough to be seen
        offline = mediamill(*asked, cwd=tmp_path, extra={**extra, "HF_HUB_OFFLINE": "1"})
        assert offline.returncode == 1
        assert "mediamill models pull zimage" in offline.stderr
        assert served.asked == []
        status, screen = in_terminal(*asked, cwd=tmp_path, extra=extra)
        assert status == 0, plain(screen)
        assert "model_index.json" in served.asked
    facts = probe(tmp_path / "fox.png")
    assert (facts.width_px, facts.height_px) == (72, 64)
    shown = plain(screen)
    assert "downloading org/tiny, once: 0.0 of 0.0 GiB" in shown
    assert re.search(r"zimage step \d+ of 100, \d+ s left", shown)
    drawn = [line for line in re.split(r"[\r\n]+", screen) if HALF_BLOCK in line]
    assert len(drawn) == 3 * 19  # steps 25, 50 and 75: 48 columns of 80x64, two pixels a character
    assert "fox.png" in shown
    first = re.search(r"seed (\d+)", shown)
    again = mediamill(*asked[:-1], "again.png", cwd=tmp_path, extra=extra)
    assert again.returncode == 0, again.stderr
    second = re.search(r"seed (\d+)", again.stdout)
    assert first is not None
    assert second is not None
    assert first[1] != second[1]  # drawn anew each time


def test_a_result_is_not_put_under_a_name_of_another_kind(tmp_path: Path) -> None:
    extra = {"MEDIAMILL_FAKE_ENGINES": "all"}
    for model, wrong, right in (("zimage", "fox.jpg", ".png"), ("ltx-video", "fox.gif", ".mp4")):
        refused = mediamill("generate", model, "a fox", "-o", wrong, cwd=tmp_path, extra=extra)
        assert refused.returncode == 2
        assert f"--out: {wrong!r} must end in {right}" in refused.stderr
    assert list(tmp_path.iterdir()) == []
    done = mediamill("generate", "zimage", "a fox", *SMALL, "-o", "FOX.PNG", cwd=tmp_path, extra=extra)
    assert done.returncode == 0, done.stderr


def test_a_clip_can_start_from_a_local_picture(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "in.png")
    asked = ["generate", "ltx-video", "a cat", "--image", "in.png", "--width", "64", "--height", "64"]
    done = mediamill(*asked, "--num-frames", "9", cwd=tmp_path, extra={"MEDIAMILL_FAKE_ENGINES": "all"})
    assert done.returncode == 0, done.stderr
    assert probe(tmp_path / "output.mp4").frames == 9


def test_options_come_from_the_catalog_and_wrong_ones_are_named(tmp_path: Path) -> None:
    shown = mediamill("generate", "zimage", "--help", cwd=tmp_path).stdout
    assert "--guidance-scale" in shown
    assert "0 for turbo" in shown
    listed = mediamill("generate", "--help", cwd=tmp_path).stdout
    assert all(name in listed for name in ("zimage", "ltx-video", "ltx2"))
    wrong = mediamill("generate", "zimage", "x", "--steps", "0", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "steps: Input should be greater than or equal to 1 (got 0)" in wrong.stderr
    missing = mediamill("generate", "ltx2", "x", cwd=tmp_path)
    assert missing.returncode == 1
    assert "MEDIAMILL_FAKE_ENGINES=ltx2" in missing.stderr


def test_a_preview_is_drawn_in_two_colours_a_character(tmp_path: Path, capsys) -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:8] = (255, 0, 0)
    Image.fromarray(picture).save(tmp_path / "p.png")
    _draw(tmp_path / "p.png")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 24
    assert lines[0].startswith("\x1b[38;2;255;0;0;48;2;255;0;0m")
    assert "48;2;0;0;0m" in lines[-1]

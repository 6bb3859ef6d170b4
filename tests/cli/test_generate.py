"""`mediamill generate`, as a user runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from mediamill.cli.generate import _draw
from mediamill.media.probe import probe
from tests.hub import hub
from tests.service import mediamill


def test_a_picture_is_made_where_it_was_asked_for(tmp_path: Path, tiny_settings: Mapping[str, str]) -> None:
    asked = ["generate", "zimage", "a red fox", "--width", "72", "--height", "64", "--steps", "2", "--seed", "7"]
    done = mediamill(*asked, "-o", "fox.png", cwd=tmp_path, extra=tiny_settings)
    assert done.returncode == 0, done.stderr
    facts = probe(tmp_path / "fox.png")
    assert (facts.width_px, facts.height_px) == (72, 64)
    assert "seed 7" in done.stdout
    assert "fox.png" in done.stdout


def test_a_clip_can_start_from_a_local_picture(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "in.png")
    asked = ["generate", "ltx-video", "a cat", "--image", "in.png", "--width", "64", "--height", "64"]
    done = mediamill(*asked, "--num-frames", "9", cwd=tmp_path, extra={"MEDIAMILL_FAKE_ENGINES": "all"})
    assert done.returncode == 0, done.stderr
    assert probe(tmp_path / "output.mp4").frames == 9


def test_weights_that_are_not_here_are_fetched_by_the_first_job(tmp_path: Path, tiny_zimage: Path) -> None:
    with hub(tiny_zimage, "org/tiny") as served:
        extra = {
            "HF_ENDPOINT": served.url,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "MEDIAMILL_MODEL_ZIMAGE": "org/tiny",
        }
        asked = ["generate", "zimage", "a fox", "--width", "64", "--height", "64", "--steps", "1", "-o", "a.png"]
        offline = mediamill(*asked, cwd=tmp_path, extra={**extra, "HF_HUB_OFFLINE": "1"})
        assert offline.returncode == 1
        assert "mediamill models pull zimage" in offline.stderr
        assert served.asked == []
        done = mediamill(*asked, cwd=tmp_path, extra=extra)
        assert done.returncode == 0, done.stderr
        assert "model_index.json" in served.asked


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

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mediamill.media.probe import probe
from tests.service import environment

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_the_demo_makes_clips_a_captioned_one_and_a_sounding_one(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(DEMO), "--out", str(tmp_path / "out"), "--clip-s", "1"],
        cwd=tmp_path,
        env=environment({"X_API_KEY": "not for the demo", "COLUMNS": "200"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = {path.name: probe(path) for path in (tmp_path / "out").iterdir()}
    assert sorted(found) == ["dawn.mp4", "dawn_captioned.mp4", "dawn_with_sound.mp4", "dusk.mp4", "noon.mp4"]
    for facts in found.values():
        assert (facts.width_px, facts.height_px, facts.frames) == (1920, 1080, 24)
        assert facts.duration_s == pytest.approx(1.0, abs=0.06)
    assert [name for name, facts in found.items() if facts.has_audio] == ["dawn_with_sound.mp4"]
    table = [line for line in ran.stdout.splitlines() if ".mp4" in line]
    assert len(table) == 5
    assert all("1920x1080 h264" in line and "24 at 24/s" in line for line in table)
    assert "the service has stopped" in ran.stdout

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mediamill.media.probe import probe
from tests.service import environment, serving

PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"
MARKED = re.compile(r"<!-- run -->\n```bash\n(.*?)```", re.DOTALL)


@pytest.mark.timeout(300)
def test_the_quickstart_does_what_it_says(tmp_path: Path, folder: Path) -> None:
    blocks = MARKED.findall(PAGE.read_text())
    assert len(blocks) >= 5
    with serving(folder) as service:
        script = "set -euo pipefail\n" + "\n".join(blocks).replace("http://127.0.0.1:8000", service.url)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ran = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={**environment(), "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads((tmp_path / "job.json").read_text())["status"] == "succeeded"
    fake, clip = probe(tmp_path / "fake.mp4"), probe(next((tmp_path / "clips").iterdir()))
    assert (fake.width_px, fake.height_px, fake.duration_s) == (320, 180, pytest.approx(1.0, abs=0.1))
    assert (clip.width_px, clip.height_px, clip.frames) == (1920, 1080, 24)
    assert '"code": 200' in ran.stdout or '"code":200' in ran.stdout

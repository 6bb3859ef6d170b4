from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.service import environment, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def python_of_wheel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an empty environment that has the built wheel, and our libraries but not our checkout.

    The libraries are seen through a path file instead of being installed again; the wheel goes before them.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
    (wheel,) = folder.glob("mediamill-*.whl")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=120)
    (site,) = venv.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    libraries = Path(sysconfig.get_path("purelib"))
    (site / "libraries.pth").write_text(f"{libraries}\n")
    return str(venv / "bin" / "python")


def test_the_built_wheel_serves_a_job_from_an_empty_environment(
    python_of_wheel: str, tmp_path: Path, folder: Path
) -> None:
    where = [python_of_wheel, "-c", "import mediamill; print(mediamill.__file__)"]
    run = subprocess.run(where, cwd=tmp_path, env=environment(), check=True, capture_output=True, text=True, timeout=60)
    assert not Path(run.stdout.strip()).is_relative_to(ROOT)
    with serving(folder, python=python_of_wheel) as service:
        job = service.ended(service.submit())
    assert job["status"] == "succeeded", job
    assert job["artifacts"][0]["media_type"] == "image/png"

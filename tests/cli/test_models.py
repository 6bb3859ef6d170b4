"""`mediamill models`, as a user runs it, against a hub on loopback."""

from __future__ import annotations

import re
from pathlib import Path

from tests.hub import hub
from tests.service import mediamill
from tests.tiny_pipelines import as_hub_cache

REPO = "org/tiny-zimage"
NOT_NEEDED = {
    "single-file.safetensors": b"x" * 1000,
    "transformer/diffusion_pytorch_model.bin": b"x" * 1000,
    "README.md": b"# tiny",
    "assets/demo.png": b"x",
}


def test_pulled_weights_are_listed_checked_and_removed(tmp_path: Path, tiny_zimage: Path) -> None:
    cache = tmp_path / "cache"
    with hub(tiny_zimage, REPO, extra=NOT_NEEDED) as served:
        extra = {
            "HF_ENDPOINT": served.url,
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "MEDIAMILL_MODEL_ZIMAGE": REPO,
            "COLUMNS": "40",  # a narrow terminal's; what goes into a pipe has whole lines
        }

        def run(*arguments: str) -> tuple[int, str]:
            done = mediamill("models", *arguments, cwd=tmp_path, extra=extra)
            return done.returncode, done.stdout + done.stderr

        status, said = run("check", "zimage")
        assert status == 1
        assert "mediamill models pull zimage" in said
        status, said = run("pull", "zimage")
        assert status == 0, said
        assert "Apache-2.0" in said
        assert "Fetching" not in said  # the hub's own bar, beside ours
        assert set(served.asked).isdisjoint(NOT_NEEDED)
        said = run("list")[1]
        assert re.search(rf"zimage +{REPO} +complete +1\.\d MiB", said), said
        next(cache.rglob("transformer/*.safetensors")).unlink()
        assert re.search(rf"zimage +{REPO} +incomplete: transformer/\*.safetensors +\d", run("list")[1])
        assert run("pull", "zimage")[0] == 0
        status, said = run("check", "zimage")
        assert (status, "complete" in said, "transformer" in said) == (0, True, True)
        status, said = run("remove", "zimage", "--yes")
        assert (status, "deleted" in said) == (0, True)
        assert "not here" in run("list")[1]
        status, said = run("pull", "zimage", "--source", "org/other")
        assert status == 1
        assert "org/other is not there" in said


def test_a_hub_that_cannot_be_asked_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    extra = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = mediamill("models", "pull", "zimage", cwd=tmp_path, extra=extra)
    assert done.returncode == 1
    assert "The hub cannot be reached to fetch Tongyi-MAI/Z-Image-Turbo" in done.stderr
    assert "MEDIAMILL_MODEL_<NAME>" in done.stderr
    assert "model_index.json" not in done.stderr


def test_a_local_folder_of_the_user_is_never_pulled_or_removed(tmp_path: Path, tiny_zimage: Path) -> None:
    extra = {"MEDIAMILL_MODEL_ZIMAGE": str(tiny_zimage)}
    for command in (("pull", "zimage"), ("remove", "zimage", "--yes")):
        done = mediamill("models", *command, cwd=tmp_path, extra=extra)
        assert done.returncode == 2
        assert "local path" in done.stderr
    assert (tiny_zimage / "model_index.json").is_file()


def test_weights_of_another_model_are_said_to_be_so(tmp_path: Path, tiny_ltx_video: Path) -> None:
    done = mediamill("models", "check", "zimage", cwd=tmp_path, extra={"MEDIAMILL_MODEL_ZIMAGE": str(tiny_ltx_video)})
    assert done.returncode == 1
    assert "LTXPipeline; accepted: ZImagePipeline" in done.stderr


def test_removing_asks_first(tmp_path: Path, tiny_zimage: Path) -> None:
    as_hub_cache(tiny_zimage, tmp_path, REPO)
    extra = {"MEDIAMILL_MODEL_ZIMAGE": REPO, "HF_HUB_CACHE": str(tmp_path)}
    done = mediamill("models", "remove", "zimage", cwd=tmp_path, extra=extra)
    assert done.returncode == 130
    assert list(tmp_path.glob("models--*"))

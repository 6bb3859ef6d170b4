"""Which weights an entry runs on, MODEL_NAME above all: what it names is meant, or refused, never left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mediamill import catalog
from mediamill.engines.diffusers import chosen
from mediamill.errors import ModelUnavailable
from tests.hub import hub
from tests.service import mediamill
from tests.tiny_pipelines import as_hub_cache

TURBO = "Tongyi-MAI/Z-Image-Turbo"
ZIMAGE, LTX = catalog.get("zimage"), catalog.get("ltx-video")


def test_model_name_counts_for_the_entry_whose_family_runs_it(tiny_ltx_video: Path) -> None:
    settings = {"MODEL_NAME": str(tiny_ltx_video)}
    assert chosen.configured(LTX, settings) == str(tiny_ltx_video)
    assert chosen.configured(ZIMAGE, settings) == TURBO
    assert chosen.configured(LTX, {**settings, "MEDIAMILL_MODEL_LTX_VIDEO": "org/mine"}) == "org/mine"


def test_the_default_repo_of_one_model_leaves_the_others_theirs() -> None:
    assert LTX.weights is not None
    settings = {"MODEL_NAME": TURBO, "HF_HUB_CACHE": "nowhere"}
    assert chosen.configured(ZIMAGE, settings) == TURBO
    assert chosen.configured(LTX, settings) == LTX.weights.repo


def not_there(folder: Path) -> str:
    return str(folder / "nothing")


def without_index(folder: Path) -> str:
    return str(folder)


def of_a_strange_class(folder: Path) -> str:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PaintPipeline"}))
    return str(folder)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (lambda _: "org/not-cached", "'org/not-cached' is not in the model cache"),
        (not_there, "nothing' is no folder"),
        (without_index, "has no model_index.json"),
        (of_a_strange_class, "is of class PaintPipeline, .* ZImagePipeline"),
    ],
    ids=["not cached", "no folder", "no pipeline", "no class of ours"],
)
def test_what_names_no_model_is_an_error_and_not_another_model(tmp_path: Path, name, says: str) -> None:
    settings = {"MODEL_NAME": name(tmp_path), "HF_HUB_CACHE": "nowhere"}
    for entry in (ZIMAGE, LTX):
        with pytest.raises(ModelUnavailable, match=f"^MODEL_NAME: .*{says}"):
            chosen.configured(entry, settings, ask_hub=False)
        own = {**settings, f"MEDIAMILL_MODEL_{entry.name.upper().replace('-', '_')}": "org/mine"}
        assert chosen.configured(entry, own, ask_hub=False) == "org/mine"


def test_a_repo_that_is_not_here_is_asked_what_it_is(tmp_path: Path, tiny_zimage: Path) -> None:
    with hub(tiny_zimage, "org/mine") as served:
        extra = {
            "HF_ENDPOINT": served.url,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "MODEL_NAME": "org/mine",
            "DEVICE": "cpu",
        }
        asked = ["generate", "zimage", "a red fox", "--width", "64", "--height", "64", "--steps", "1", "-o", "a.png"]
        offline = {**extra, "HF_HUB_OFFLINE": "1"}
        refused = mediamill(*asked, cwd=tmp_path, extra=offline)
        assert refused.returncode == 1
        assert "MODEL_NAME: 'org/mine' is not in the model cache" in refused.stderr
        assert "org/mine" in mediamill("models", "list", cwd=tmp_path, extra=offline).stdout
        assert served.asked == []

        done = mediamill(*asked, cwd=tmp_path, extra=extra)
        assert done.returncode == 0, done.stderr
        assert served.asked[0] == "model_index.json"
        others = mediamill("models", "list", cwd=tmp_path, extra=offline).stdout.splitlines()
    assert next(row for row in map(str.split, others) if row[0] == "ltx-video")[1] == LTX.weights.repo
    assert (tmp_path / "a.png").is_file()


def test_a_repo_that_is_no_pipeline_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    with hub(tmp_path / "repo", "org/text", extra={"README.md": b"# text"}) as served:
        extra = {"HF_ENDPOINT": served.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "MODEL_NAME": "org/text"}
        done = mediamill("models", "pull", "zimage", cwd=tmp_path, extra=extra)
    assert done.returncode == 1
    assert "MODEL_NAME: The repo org/text has no model_index.json" in done.stderr


def test_what_a_pull_had_just_begun_is_known_by_its_index(tmp_path: Path, tiny_zimage: Path) -> None:
    snapshot = as_hub_cache(tiny_zimage, tmp_path, "org/mine")
    for path in snapshot.iterdir():
        if path.is_dir():
            path.rename(tmp_path / path.name)
    assert chosen.configured(ZIMAGE, {"MODEL_NAME": "org/mine", "HF_HUB_CACHE": str(tmp_path)}) == "org/mine"

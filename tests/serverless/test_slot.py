"""One container's slot, and what a RunPod worker makes of a job, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mediamill import catalog
from mediamill.config import Settings
from mediamill.engines.diffusers import entries_for
from mediamill.errors import (
    Detail,
    InvalidRequest,
    MediamillError,
    Misconfigured,
    ModelUnavailable,
    StorageUnavailable,
    TooLarge,
)
from mediamill.model import Phase, Progress
from mediamill.serverless.slot import Slot, attempted, checked
from mediamill.serverless.worker import Handler, Telling, asked, served_model
from tests.fixtures_s3 import S3Server
from tests.tiny_pipelines import as_hub_cache

IMAGE = {"kind": "image", "width": 32, "height": 32}


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(_env_file=None, data_dir=folder, **more)


@contextlib.asynccontextmanager
async def slot_with(found: Settings) -> AsyncIterator[Slot]:
    slot = Slot(found)
    try:
        yield slot
    finally:
        await slot.close()


@pytest.mark.parametrize(
    ("given", "served", "operation", "fields"),
    [
        ({"model": "zimage", "prompt": "x"}, None, "zimage", {"prompt": "x"}),
        ({"prompt": "x"}, "zimage", "zimage", {"prompt": "x"}),
        ({"model": "fake", "prompt": "x"}, "zimage", "fake", {"prompt": "x"}),
        ({"operation": "caption", "url_video": "u"}, None, "caption", {"url_video": "u"}),
        ({"operation": "transcribe", "model": "turbo"}, None, "transcribe", {"model": "turbo"}),
        ({"model": "turbo"}, "transcribe", "transcribe", {"model": "turbo"}),
        ({"operation": "test"}, "zimage", "test", {}),
        ({"operation": None, "prompt": "x"}, "zimage", "zimage", {"prompt": "x"}),
    ],
)
def test_an_input_names_its_model_or_its_operation_or_neither(
    given: dict[str, Any], served: str | None, operation: str, fields: dict[str, Any]
) -> None:
    found = asked({"id": "a-1", "input": {**given, "job_id": "mine"}}, served)
    assert (found.operation, found.fields, found.job_id) == (operation, fields, "mine")
    assert asked({"id": "a-1", "input": given}, served).job_id == "a-1"


@pytest.mark.parametrize(
    ("given", "served", "path", "words"),
    [
        ("a fox", "zimage", "input", ("'a fox'", "object")),
        (None, "zimage", "input", ("None", "object")),
        ({"prompt": "x"}, None, "model", ("required", "MEDIAMILL_SERVE_MODEL", "zimage", "test")),
        ({"model": "sora"}, "zimage", "model", ("'sora'", "zimage", "ltx-video")),
        ({"model": ["zimage"]}, None, "model", ("['zimage']", "zimage")),
        ({"operation": "burn"}, "zimage", "operation", ("'burn'", "caption")),
        ({"job_id": "../up"}, "zimage", "job_id", ("'../up'", "letters")),
        ({"job_id": 7}, "zimage", "job_id", ("7", "letters")),
        ({"job_id": "x" * 65}, "zimage", "job_id", ("letters",)),
    ],
)
def test_a_wrong_input_is_told_with_its_field_and_value(
    given: Any, served: str | None, path: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked({"id": "a-1", "input": given}, served)
    assert [d.path for d in caught.value.details] == [path]
    assert caught.value.message.startswith(path)
    assert all(word in caught.value.message for word in words), caught.value.message


def test_the_served_model_is_named_or_told_by_the_weights(tmp_path: Path, tiny_zimage: Path) -> None:
    as_hub_cache(tiny_zimage, tmp_path / "hub", "somebody/fine-tuned")
    for given, expected in (
        ({"serve_model": "ltx-video", "model_name": str(tiny_zimage)}, "ltx-video"),
        ({"model_name": str(tiny_zimage)}, "zimage"),
        ({"model_name": "Lightricks/LTX-Video"}, "ltx-video"),
        ({"model_name": "somebody/fine-tuned", "hf_hub_cache": tmp_path / "hub"}, "zimage"),
        ({"model_name": "somebody/../not-a-repo"}, None),
        ({}, None),
    ):
        assert served_model(settings(tmp_path, **given)) == expected
    with pytest.raises(Misconfigured, match=r"MEDIAMILL_SERVE_MODEL.*'sora'.*zimage"):
        served_model(settings(tmp_path, serve_model="sora"))


def test_weights_of_no_known_family_belong_to_no_entry(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=re.escape(repr(str(tmp_path)))):
        entries_for(str(tmp_path), {})


def test_progress_is_told_by_phase_and_else_seldom() -> None:
    told: list[Mapping[str, Any]] = []
    tell = Telling(told.append)
    for progress in (
        Progress(0.0, Phase.FETCHING),
        Progress(0.0, Phase.LOADING, "loading 20 GiB"),
        *(Progress(n / 1000, Phase.GENERATING, f"step {n}", eta_s=1.5) for n in range(300)),
        Progress(1.0, Phase.UPLOADING),
    ):
        tell(progress)
    assert [t["phase"] for t in told] == ["fetching", "loading", "generating", "uploading"]
    assert told[1] == {"progress": 0.0, "phase": "loading", "message": "loading 20 GiB"}
    assert told[2] == {"progress": 0.0, "phase": "generating", "message": "step 0", "eta_s": 1.5}


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, "memory"),
        ({"storage_mode": "memory"}, "memory"),
        ({"s3_bucket": "b", "s3_access_key_id": "k", "s3_secret_access_key": "s"}, "s3"),
        ({"r2_account_id": "a", "r2_bucket": "b", "r2_access_key_id": "k", "r2_secret_access_key": "s"}, "s3"),
    ],
)
def test_results_go_to_the_bucket_that_is_named_else_into_the_reply(
    tmp_path: Path, given: dict[str, Any], mode: str
) -> None:
    slot = Slot(settings(tmp_path, **given))
    assert slot.settings.storage_mode == mode
    assert slot.has_bucket == (mode == "s3")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"storage_mode": "file"}, r"STORAGE_MODE=file.*S3_BUCKET"),
        ({"s3_bucket": "b"}, r"S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY"),
        ({"fake_engines": ("sora",)}, r"MEDIAMILL_FAKE_ENGINES names 'sora'"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(Misconfigured, match=words):
        Slot(settings(tmp_path, **given))


async def test_a_result_in_memory_comes_back_whole_or_not_at_all(tmp_path: Path) -> None:
    async with slot_with(settings(tmp_path)) as slot:
        order = checked(slot.settings, "fake", IMAGE, job_id="j1")
        done = await slot.do(order, inline=True)
        (artifact,) = done.job.artifacts
        assert len(done.files["output.png"]) == artifact.size_bytes
        assert done.job.warnings == ()
        with pytest.raises(TooLarge, match=rf"has {artifact.size_bytes} bytes.*at most 100 .*S3_BUCKET.*R2_"):
            await slot.do(order, inline=True, inline_bytes=100)
    assert list((tmp_path / "work").iterdir()) == []


async def test_jobs_wait_for_their_turn(tmp_path: Path) -> None:
    running = 0

    def told(progress: Progress) -> None:
        nonlocal running
        if progress.phase is Phase.FETCHING:
            running += 1
            assert running == 1
        if progress.phase is Phase.UPLOADING:
            running -= 1

    async with slot_with(settings(tmp_path)) as slot:
        orders = [checked(slot.settings, "fake", IMAGE, job_id=f"j{n}") for n in range(3)]
        assert not slot.busy
        done = await asyncio.gather(*(slot.do(order, inline=True, on_progress=told) for order in orders))
        assert [d.job.id for d in done] == ["j0", "j1", "j2"]


async def test_with_a_bucket_files_lie_under_the_job_and_urls_come_back(tmp_path: Path, s3_settings: Settings) -> None:
    found = s3_settings.model_copy(update={"data_dir": tmp_path, "serve_model": "fake", "fake_engines": ("fake",)})
    told: list[Any] = []
    handler = Handler(found, lambda job, progress: told.append((job["id"], progress["phase"])))
    try:
        tested = await handler.handle({"id": "t", "input": {"operation": "test"}})
        assert tested["output"]["storage"] == "s3: wrote, read and deleted an object"
        made = await handler.handle({"id": "runpod-1", "input": {**IMAGE, "job_id": "0123"}})
        failed = await handler.handle({"id": "runpod-2", "input": {**IMAGE, "misbehave": "crash"}})
        (artifact,) = made["artifacts"]
        assert "base64" not in artifact
        assert artifact["url"].endswith("/outputs/0123/output.png")
        still = {"id": 1, "image_url": artifact["url"], "duracao": 0.2}
        moved = await handler.handle(
            {"id": "runpod-3", "input": {"operation": "img2vid", "images": [still], "path": "P/"}}
        )
    finally:
        await handler.close()
    assert "died" in failed["error"]
    assert moved["artifacts"][0]["url"].endswith("/P/video_1.mp4"), (
        "the own bucket's URL was read, no address was asked"
    )
    assert ("runpod-1", "encoding") in told
    server = S3Server(found.s3_endpoint or "", _text(found.s3_access_key_id), _text(found.s3_secret_access_key))
    sizes = {meta["path"]: meta["size"] for meta in server.store(found.s3_bucket or "").list().collect()}
    assert sizes == {
        "P/video_1.mp4": moved["artifacts"][0]["size_bytes"],
        "outputs/0123/output.png": artifact["size_bytes"],
    }


def _text(secret: SecretStr | None) -> str:
    assert secret is not None
    return secret.get_secret_value()


async def test_what_is_about_this_container_is_told_without_its_addresses(tmp_path: Path) -> None:
    away = StorageUnavailable("http://10.0.0.7:9000/private does not answer.")

    async def fails(error: Exception) -> None:
        raise error

    with pytest.raises(StorageUnavailable) as caught:
        await attempted(fails(away), job_id="j")
    assert "10.0.0.7" not in caught.value.message
    with pytest.raises(ModelUnavailable, match="set MODEL_NAME") as lacking:
        await attempted(fails(ModelUnavailable("'/runpod-volume/z' is no folder; set MODEL_NAME.")), job_id="j")
    assert "runpod-volume" not in lacking.value.message
    with pytest.raises(MediamillError, match=r"unexpectedly \(KeyError\)"):
        await attempted(fails(KeyError("a secret")), job_id="j")
    wrong = InvalidRequest("width: too small", details=[Detail("width", "too small")])
    with pytest.raises(InvalidRequest) as same:
        await attempted(fails(wrong), job_id="j")
    assert same.value is wrong


def test_a_request_is_checked_before_anything_starts(tmp_path: Path) -> None:
    found = settings(tmp_path)
    with pytest.raises(InvalidRequest, match="width"):
        checked(found, "fake", {"width": 5}, job_id="j")
    with pytest.raises(InvalidRequest, match="MEDIAMILL_FAKE_ENGINES"):
        checked(found, "fake", {"misbehave": "oom"}, job_id="j")
    order = checked(found, "fake", {**IMAGE, "glow": 1}, job_id="j")
    assert order.warnings == ("Unknown field 'glow' was ignored.",)
    assert order.input["fps"] == 24.0
    assert order.entry is catalog.get("fake")

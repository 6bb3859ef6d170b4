"""The worker image's process with the real SDK, against a host on loopback that speaks RunPod's worker side."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import av
from PIL import Image

from tests.runpod_worker_host import WorkerHost, worker_host
from tests.serverless.conftest import RUNPOD, Started, clean_environment, started
from tests.tiny_pipelines import poison


@contextlib.asynccontextmanager
async def worker(folder: Path, **settings: str) -> AsyncIterator[tuple[WorkerHost, Started]]:
    """A host, and the worker image's process taking its jobs."""
    async with worker_host() as host:
        environment = {**clean_environment(folder, **settings), **host.environment()}
        command = ("-u", "rp_handler.py")
        async with started(*command, cwd=RUNPOD, log=folder / "log", environment=environment) as process:
            yield host, process
    assert host.refused == 0


def content(artifact: Mapping[str, Any]) -> bytes:
    """The bytes that came along, checked against what is said of them."""
    found = base64.b64decode(artifact["base64"], validate=True)
    assert len(found) == artifact["size_bytes"]
    assert hashlib.sha256(found).hexdigest() == artifact["sha256"]
    return found


async def test_two_jobs_on_one_worker_load_the_weights_once(
    tmp_path: Path, tiny_zimage: Path, tiny_ltx_video: Path
) -> None:
    weights = tmp_path / "zimage"
    shutil.copytree(tiny_zimage, weights)
    places = {"MODEL_NAME": str(weights), "MEDIAMILL_MODEL_LTX_VIDEO": str(tiny_ltx_video)}
    async with worker(tmp_path, **places) as (host, process):
        asked = {"prompt": "a red fox", "width": 64, "height": 80, "steps": 3, "seed": 7}
        first_id = host.put(asked)
        ended = await host.ended(first_id)
        assert "output" in ended, ended
        first = ended["output"]
        held_by = process.child().pid
        poison(weights, "transformer")  # loaded again, these would fail the job
        second = (await host.done({**asked, "model": "zimage", "job_id": "mine", "sharpness": 3}))["output"]
        clip = (await host.done({"model": "ltx-video", "prompt": "x", "num_frames": 5, "width": 64, "height": 64}))[
            "output"
        ]
        assert process.child().pid == held_by
        assert await process.end() == 0
        assert await process.left() == []

    assert first["output"]["seed"] == 7
    picture = first["artifacts"][0]
    assert (picture["name"], picture["media_type"], picture["width"], picture["height"]) == (
        "output.png",
        "image/png",
        64,
        80,
    )
    assert Image.open(io.BytesIO(content(picture))).size == (64, 80)
    assert content(second["artifacts"][0]) == content(picture), "same request, same bytes"
    assert second["warnings"] == ["Unknown field 'sharpness' was ignored."]
    with av.open(io.BytesIO(content(clip["artifacts"][0]))) as video:
        assert sum(1 for _ in video.decode(video=0)) == 5
    assert clip["artifacts"][0]["duration_s"] == 5 / 8
    told = host.progress[first_id]
    assert {"loading", "generating"} <= {p["phase"] for p in told}
    assert all(0 <= p["progress"] <= 1 for p in told)
    assert first_id in {p for p in host.pings if p} or None in host.pings


async def test_what_goes_wrong_ends_one_job_and_the_next_one_works(tmp_path: Path) -> None:
    async with worker(tmp_path, MEDIAMILL_FAKE_ENGINES="fake") as (host, process):
        plain = {"model": "fake", "kind": "image", "width": 32, "height": 32}
        for asked, code, words in (
            ({**plain, "width": 5}, "invalid_request", ("width", "5", "16")),
            ({**plain, "misbehave": "crash"}, "crashed", ("died",)),
            ({**plain, "misbehave": "oom"}, "out_of_memory", ("memory", "lower")),
            (
                {"model": "zimage", "prompt": "x", "image_url": "http://127.0.0.1:1/a.png"},
                "invalid_request",
                ("image_url", "127.0.0.1"),
            ),
            ({"model": "fake", "kind": "audio", "duration_s": 90}, "too_large", ("bytes", "S3_BUCKET")),
        ):
            ended = await host.done(asked)
            assert ended["output"] == {"code": code}
            assert all(word in ended["error"] for word in words), ended
            assert "Traceback" not in ended["error"]
        ended = await host.done(plain)
        assert ended["output"]["artifacts"][0]["name"] == "output.png"
        assert Image.open(io.BytesIO(content(ended["output"]["artifacts"][0]))).size == (32, 32)
        assert list((tmp_path / "work").iterdir()) == []
        assert await process.end() == 0
        assert await process.left() == []


async def test_a_stopped_job_stops_its_work_and_a_killed_worker_its_child(tmp_path: Path) -> None:
    async with worker(tmp_path, MEDIAMILL_SERVE_MODEL="fake") as (host, process):
        plain = {"kind": "image", "width": 32, "height": 32}
        await host.done(plain)
        child = process.child().pid
        long = host.put({**plain, "work_s": 3000})
        await host.working(long)
        host.to_stop.put_nowait(long)
        assert "output" in await host.done(plain)
        assert process.child().pid == child
        assert long not in host.results
        await host.working(host.put({**plain, "work_s": 3000}))
        held_by = process.child()
        process.process.kill()
        await process.process.wait()
        assert held_by not in await process.left()


async def test_a_worker_that_is_told_to_go_ends_its_job_first(tmp_path: Path) -> None:
    async with worker(tmp_path) as (host, process):
        job = host.put({"model": "fake", "kind": "image", "width": 32, "height": 32, "work_s": 2})
        await host.working(job)
        never = host.put({"operation": "test"})
        assert await process.end() == 0
        assert await process.left() == []
        assert "output" in host.results[job][-1]
    assert never not in host.results


async def test_the_operation_test_tells_what_works(tmp_path: Path) -> None:
    async with worker(tmp_path) as (host, process):
        output = (await host.done({"operation": "test"}))["output"]
        assert await process.end() == 0
    assert output["artifacts"] == []
    found = output["output"]
    assert found["ffmpeg"].startswith("ffmpeg version")
    assert found["encoder"] in {"libx264", "h264_nvenc"}
    assert "S3_BUCKET" in found["storage"]


async def test_both_file_names_do_one_job_of_a_file_or_an_argument(tmp_path: Path) -> None:
    environment = clean_environment(tmp_path)
    log = tmp_path / "log"
    async with started("-u", "rp_handler.py", cwd=RUNPOD, log=log, environment=environment) as local:
        assert await local.process.wait() == 0
    assert "ffmpeg version" in log.read_text(), "test_input.json lies beside it"
    given = json.dumps({"input": {"model": "fake", "kind": "image", "width": 32, "height": 32}})
    async with started("handler.py", "--test_input", given, cwd=RUNPOD, log=log, environment=environment) as local:
        assert await local.process.wait() == 0
    assert "output.png" in log.read_text()
    given = json.dumps({"input": {"model": "fake", "width": 5}})
    async with started("handler.py", "--test_input", given, cwd=RUNPOD, log=log, environment=environment) as local:
        assert await local.process.wait() == 1
    assert "width" in log.read_text()


async def test_a_storage_that_nobody_could_reach_stops_the_start(tmp_path: Path) -> None:
    environment = clean_environment(tmp_path, STORAGE_MODE="file")
    log = tmp_path / "log"
    async with started("handler.py", cwd=RUNPOD, log=log, environment=environment) as local:
        assert await local.process.wait() == 1
    assert "error: STORAGE_MODE=file" in log.read_text()
    assert "S3_BUCKET" in log.read_text()

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mediamill.cli import _work
from mediamill.cli._work import Order, here, targets
from mediamill.config import Settings
from mediamill.errors import EngineFailed, InvalidRequest, OutOfMemory
from mediamill.media.probe import probe

FAKE = {"kind": "video", "width": 64, "height": 48, "duration_s": 0.5, "fps": 10, "seed": 3}


async def test_an_order_is_carried_out_here_with_rising_progress(tmp_path: Path) -> None:
    told: list[float] = []
    out = tmp_path / "new" / "clip.mp4"
    delivered = await here(Order("fake", FAKE | {"work_s": 0.3}, {}), Settings(), out, lambda f, _: told.append(f))
    assert delivered.files == [out]
    assert (probe(out).width_px, probe(out).frames) == (64, 5)
    assert delivered.output["seed"] == 3
    assert told == sorted(told)
    assert len(told) > 2


async def test_a_wrong_field_and_a_failing_engine_raise_their_own_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="width"):
        await here(Order("fake", FAKE | {"width": -1}, {}), Settings(), tmp_path, lambda *_: None)
    settings = Settings(fake_engines=("all",))
    with pytest.raises(OutOfMemory):
        await here(Order("fake", FAKE | {"misbehave": "oom"}, {}), settings, tmp_path, lambda *_: None)
    assert list(tmp_path.iterdir()) == []


async def test_cancelling_ends_the_work_and_leaves_nothing(tmp_path: Path) -> None:
    begun = asyncio.Event()
    order = Order("fake", FAKE | {"work_s": 600}, {})
    task = asyncio.create_task(here(order, Settings(), tmp_path, lambda *_: begun.set()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "names", "expected"),
    [
        ("clip.mp4", ["video_1.mp4"], ["clip.mp4"]),
        ("clips", ["video_1.mp4"], ["clips/video_1.mp4"]),
        ("clips", ["a.mp4", "b.mp4"], ["clips/a.mp4", "clips/b.mp4"]),
        ("a.folder", ["a.mp4"], ["a.folder/a.mp4"]),
        ("clip.mp4", [], []),
    ],
)
def test_results_go_to_the_file_or_folder_that_was_named(
    tmp_path: Path, out: str, names: list[str], expected: list[str]
) -> None:
    (tmp_path / "a.folder").mkdir()
    assert targets(tmp_path / out, names) == [tmp_path / path for path in expected]


def test_several_results_do_not_fit_one_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"clip\.mp4' is one file and there are 2 results"):
        targets(tmp_path / "clip.mp4", ["a.mp4", "b.mp4"])


@pytest.mark.parametrize(
    ("job", "kind", "message"),
    [
        ({"status": "failed", "error": {"code": "out_of_memory", "message": "lower it"}}, OutOfMemory, "lower it"),
        ({"status": "failed", "error": {"code": "new_code", "message": "what"}}, EngineFailed, "what"),
    ],
)
def test_a_failed_job_raises_its_own_error(job: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        _work.raise_failure({"id": "1", **job})

"""One child a slot: what it relays, how it stops, how it dies, and that nothing it started outlives anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from mediamill.config import Settings
from mediamill.errors import (
    Cancelled,
    Crashed,
    DeadlineExceeded,
    EngineFailed,
    MediamillError,
    OutOfMemory,
    UnsupportedMedia,
)
from mediamill.model import Event, OutputData, OutputFile, Phase, Progress, Work
from mediamill.providers import _wire as wire
from mediamill.providers import local
from mediamill.providers.local import LocalProvider
from tests.fixtures_tiny import work_of


def work(model: str = "fake", **params: Any) -> Work:
    return Work("job", 1, model, params)


async def events_of(provider: LocalProvider, what: Work, scratch: Path, *, deadline_s: float = 60) -> list[Event]:
    async with contextlib.aclosing(provider.run(what, scratch=scratch, deadline_s=deadline_s)) as events:
        return [event async for event in events]


@contextlib.asynccontextmanager
async def running(
    provider: LocalProvider, what: Work, scratch: Path, until: Phase = Phase.LOADING
) -> AsyncIterator[Progress]:
    """Work that has told this phase; leaving the context cancels it."""
    async with contextlib.aclosing(provider.run(what, scratch=scratch, deadline_s=60)) as events:
        async for event in events:
            if isinstance(event, Progress) and event.phase == until:
                yield event
                return
    raise AssertionError("it ended")


async def until_gone(pids: Sequence[int], limit_s: float = 20.0) -> list[int]:
    """Those of the processes that are still there after `limit_s`."""
    end_s = time.monotonic() + limit_s
    while (left := [pid for pid in pids if _lives(pid)]) and time.monotonic() < end_s:
        await asyncio.sleep(0.02)
    return left


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_child_imports_before_its_first_job_where_weights_are_at_hand(
    tmp_path: Path, tiny_zimage: Path
) -> None:
    settings = Settings(device="cpu", model_locations={"ZIMAGE": str(tiny_zimage)}, data_dir=tmp_path)
    provider = local.create(settings, pool="gpu")
    try:
        await provider.prepare()
        prepared = provider.child_pid
        assert prepared is not None
        assert provider.held() == ()  # libraries, no weights
        libraries = "site-packages/torch/lib/"
        async with asyncio.timeout(120):
            while libraries not in Path(f"/proc/{prepared}/maps").read_text():
                await asyncio.sleep(0.1)
        asked = work_of("zimage", prompt="a fox", width=64, height=64, steps=1)
        events = await events_of(provider, asked, tmp_path, deadline_s=300)
        assert [e.facts.width_px for e in events if isinstance(e, OutputFile)] == [64]
        assert provider.child_pid == prepared
    finally:
        await provider.close()


@pytest.mark.parametrize(
    ("pool", "settings"),
    [
        ("cpu", {"model_locations": {"ZIMAGE": "."}}),
        ("gpu", {"model_locations": {"ZIMAGE": "no/such/folder"}}),
        ("gpu", {"fake_engines": "all"}),
    ],
)
async def test_no_child_waits_for_jobs_without_weights(
    pool: str, settings: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("HOME", str(tmp_path))
    provider = local.create(Settings(data_dir=tmp_path, **settings), pool=pool)
    await provider.prepare()
    assert provider.child_pid is None
    await provider.close()


async def test_files_come_with_the_facts_that_a_probe_found(provider: LocalProvider, tmp_path: Path) -> None:
    what = work(kind="video", width=64, height=48, duration_s=0.5, fps=20, seed=1)
    (file,) = (e for e in await events_of(provider, what, tmp_path) if isinstance(e, OutputFile))
    facts = file.facts
    assert (facts.width_px, facts.height_px, facts.frames, facts.fps) == (64, 48, 10, 20)
    assert (facts.video_codec, facts.audio_codec, facts.has_audio) == ("h264", "aac", True)
    assert file.path.parent == tmp_path


async def test_the_child_and_what_it_holds_stay_between_jobs(provider: LocalProvider, tmp_path: Path) -> None:
    assert provider.held() == ()
    await events_of(provider, work(kind="image"), tmp_path)
    first = provider.child_pid
    await events_of(provider, work(kind="audio"), tmp_path)
    assert provider.child_pid == first is not None
    assert provider.held() == ("fake",)


async def test_a_cancelled_child_stops_and_is_kept(provider: LocalProvider, tmp_path: Path) -> None:
    async with running(provider, work(work_s=600), tmp_path, Phase.GENERATING):
        first = provider.child_pid
    assert provider.child_pid == first
    assert await events_of(provider, work(kind="image"), tmp_path)
    assert provider.child_pid == first


@pytest.mark.parametrize("misbehave", ["ignore_cancel", "gil", "hang"])
async def test_a_child_that_does_not_stop_is_killed_and_replaced(
    strict: LocalProvider, tmp_path: Path, misbehave: str
) -> None:
    async with running(strict, work(kind="image", work_s=30, misbehave=misbehave), tmp_path):
        first = strict.child_pid
        assert first is not None
    assert strict.child_pid is None
    assert not _lives(first)
    assert strict.held() == ()
    assert await events_of(strict, work(kind="image"), tmp_path)


async def test_a_cancelled_task_cancels_the_work(provider: LocalProvider, tmp_path: Path) -> None:
    started = asyncio.Event()

    async def consume() -> None:
        async with running(provider, work(work_s=600), tmp_path, Phase.GENERATING):
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(consume())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert provider.child_pid is not None, "it stopped by itself and was kept"


async def test_work_past_its_deadline_is_stopped(provider: LocalProvider, tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        await events_of(provider, work(work_s=600), tmp_path, deadline_s=0.3)
    assert provider.child_pid is not None


async def test_work_that_hangs_past_its_deadline_is_killed(strict: LocalProvider, tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        await events_of(strict, work(misbehave="hang"), tmp_path, deadline_s=0.3)
    assert strict.child_pid is None


async def test_a_crash_says_how_the_child_died_and_the_next_job_gets_another(
    provider: LocalProvider, tmp_path: Path
) -> None:
    with pytest.raises(Crashed, match="SIGSEGV"):
        await events_of(provider, work(misbehave="crash"), tmp_path)
    assert provider.held() == ()
    assert await events_of(provider, work(kind="image"), tmp_path)


async def test_a_killed_child_is_told_apart(provider: LocalProvider, tmp_path: Path) -> None:
    async with contextlib.aclosing(provider.run(work(misbehave="hang"), scratch=tmp_path, deadline_s=60)) as events:
        await anext(events)
        assert provider.child_pid is not None
        os.kill(provider.child_pid, signal.SIGKILL)
        with pytest.raises(Crashed, match="SIGKILL, most likely for lack of memory"):
            await anext(events)


async def test_a_child_that_died_while_idle_costs_the_next_job_nothing(provider: LocalProvider, tmp_path: Path) -> None:
    await events_of(provider, work(kind="image"), tmp_path)
    first = provider.child_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert await events_of(provider, work(kind="image"), tmp_path)
    assert provider.child_pid != first


async def test_out_of_memory_keeps_the_child(provider: LocalProvider, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match="lower width"):
        await events_of(provider, work(misbehave="oom"), tmp_path)
    assert provider.child_pid is not None


async def test_a_child_that_leaks_is_replaced(tmp_path: Path) -> None:
    provider = local.create(Settings(fake_engines="all"), recycle_bytes=32 * 1024**2)
    try:
        await events_of(provider, work(kind="image", misbehave="leak"), tmp_path)
        assert provider.child_pid is not None
        await events_of(provider, work(kind="image", misbehave="leak"), tmp_path)
        assert provider.child_pid is None
        assert provider.held() == ()
    finally:
        await provider.close()


@pytest.mark.parametrize(
    ("do", "error", "says"),
    [
        ("raise", EngineFailed, r"failed unexpectedly \(ValueError\)"),
        ("full", Crashed, "no room left on the disk for the files of this work"),
        ("exit", EngineFailed, r"failed unexpectedly \(SystemExit\)"),
        ("hard_exit", Crashed, "exit code 3"),
        ("known_error", UnsupportedMedia, r"images\.0\.image_url: not a picture"),
        ("big", EngineFailed, "larger than 262144 bytes"),
        ("damaged", EngineFailed, r"damaged file 'clip\.mp4'"),
        ("outside", EngineFailed, "in its scratch folder"),
        ("missing", EngineFailed, "in its scratch folder"),
    ],
)
async def test_an_engines_failure_arrives_in_its_class_and_without_its_secrets(
    provider: LocalProvider, odd_entry: object, tmp_path: Path, do: str, error: type[MediamillError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        await events_of(provider, work("odd", do=do), tmp_path)
    assert "hunter2" not in caught.value.message


async def test_the_log_tail_of_a_failure_arrives_apart_from_its_sentence(
    provider: LocalProvider, odd_entry: object, tmp_path: Path
) -> None:
    with pytest.raises(EngineFailed) as caught:
        await events_of(provider, work("odd", do="raise"), tmp_path)
    assert "ValueError: token=hunter2" in caught.value.log_tail
    with pytest.raises(EngineFailed, match="refused") as caught:
        await events_of(provider, work("odd", do="log_tail"), tmp_path)
    assert caught.value.log_tail == "line 1\nline 2"


async def test_what_an_engine_prints_or_reads_cannot_break_the_line(
    provider: LocalProvider, odd_entry: object, tmp_path: Path
) -> None:
    assert await events_of(provider, work("odd", do="noise"), tmp_path) == [OutputData({"read": ""})]


async def test_progress_is_thinned_but_its_first_word_and_the_result_arrive(
    provider: LocalProvider, odd_entry: object, tmp_path: Path
) -> None:
    events = await events_of(provider, work("odd", do="flood"), tmp_path)
    assert events[0] == Progress(0.0, Phase.GENERATING)
    assert events[-1] == OutputData({"done": True})
    assert len(events) < 2000


async def test_a_text_file_is_relayed_without_a_probe(
    provider: LocalProvider, odd_entry: object, tmp_path: Path
) -> None:
    (file,) = await events_of(provider, work("odd", do="text"), tmp_path)
    assert isinstance(file, OutputFile)
    assert file.facts.duration_s is None


async def test_work_that_was_cancelled_ends_as_cancelled_even_when_it_ended_well(
    provider: LocalProvider, odd_entry: object, tmp_path: Path
) -> None:
    events = provider.run(work("odd", do="heedless"), scratch=tmp_path, deadline_s=60)
    await anext(events)
    child = provider._child
    assert child is not None
    child.send({"say": "cancel", "run": 1})
    with pytest.raises(Cancelled):
        async for _ in events:
            pass


async def test_a_child_knows_settings_but_no_secret_of_ours(
    odd_entry: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "DATABASE_URL": "postgresql://u:hunter2@h/d",
        "MEDIAMILL_API_KEYS": "hunter2",
        "X_API_KEY": "hunter2",
        "S3_SECRET_ACCESS_KEY": "hunter2",
        "MEDIAMILL_WEBHOOK_SECRET": "whsec_hunter2",
        "RUNPOD_API_KEY": "hunter2",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
    }
    for name, value in {**secrets, "CUDA_VISIBLE_DEVICES": "0,1", "MEDIAMILL_ENCODER": "libx264"}.items():
        monkeypatch.setenv(name, value)
    settings = Settings(fonts_dir=tmp_path, model_locations={"LTX2": "/models/ltx2"})
    provider = local.create(settings, pool="gpu:1")
    try:
        (data,) = await events_of(provider, work("odd", do="environment"), tmp_path)
    finally:
        await provider.close()
    assert isinstance(data, OutputData)
    assert "hunter2" not in json.dumps(data.values)
    assert not set(secrets) & set(data.values["environment"])
    assert data.values["environment"]["CUDA_VISIBLE_DEVICES"] == "1"
    told = data.values["settings"]
    assert told["FONTS_DIR"] == told["MEDIAMILL_FONTS_DIR"] == str(tmp_path)
    assert (told["ENCODER"], told["MEDIAMILL_MODEL_LTX2"]) == ("libx264", "/models/ltx2")


async def grandchildren(provider: LocalProvider, tmp_path: Path) -> tuple[AsyncIterator[Event], list[int]]:
    events = provider.run(work("odd", do="grandchildren"), scratch=tmp_path, deadline_s=60)
    told = await anext(events)
    assert isinstance(told, Progress)
    assert provider.child_pid is not None
    pids = [int(pid) for pid in (told.message or "").split()]
    nested = psutil.Process(pids[-1])
    while not nested.children():
        await asyncio.sleep(0.02)
    return events, [provider.child_pid, *pids, nested.children()[0].pid]


@pytest.mark.parametrize("end", ["close", "kill_child", "kill_guard"])
async def test_all_descendants_die_whatever_session_they_are_in(
    strict: LocalProvider, odd_entry: object, tmp_path: Path, end: str
) -> None:
    events, pids = await grandchildren(strict, tmp_path)
    if end == "close":
        await events.aclose()  # type: ignore[attr-defined]
    elif end == "kill_child":
        os.kill(pids[0], signal.SIGKILL)
    else:
        os.kill(psutil.Process(pids[0]).ppid(), signal.SIGTERM)
    assert await until_gone(pids) == []
    with contextlib.suppress(Crashed):
        async for _ in events:
            pass


_WORKER = """
import asyncio, sys
from pathlib import Path
from mediamill import catalog
from mediamill.config import Settings
from mediamill.model import Work
from mediamill.providers import local
from tests.providers import odd

async def main():
    catalog.register(odd.ENTRY)
    provider = local.create(Settings(fake_engines="all"))
    params = {"do": "grandchildren"} if sys.argv[1] == "odd" else {"misbehave": "gil", "work_s": 600}
    async for event in provider.run(Work("j", 1, sys.argv[1], params), scratch=Path(sys.argv[2]), deadline_s=600):
        print(provider.child_pid, event.message if sys.argv[1] == "odd" else "", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("model", ["odd", "fake"])
async def test_a_killed_worker_leaves_no_process_not_even_under_a_held_lock(
    odd_entry: object, tmp_path: Path, model: str
) -> None:
    root = Path(__file__).parents[2]
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _WORKER,
        model,
        str(tmp_path),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        cwd=root,
    )
    assert worker.stdout is not None
    pids = [int(pid) for pid in (await worker.stdout.readline()).split()]
    guard = psutil.Process(pids[0]).ppid()
    worker.kill()
    await worker.wait()
    assert await until_gone([guard, *pids]) == []


async def test_a_child_that_cannot_start_delays_ever_longer_and_charges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    provider = local.create(Settings())
    delays_s = []
    with caplog.at_level(logging.CRITICAL):
        for _ in range(3):
            with pytest.raises(MediamillError) as caught:
                await events_of(provider, work(kind="image"), tmp_path)
            assert caught.value.code == "retry_later"
            delays_s.append(caught.value.delay_s)  # type: ignore[attr-defined]
    await provider.close()
    assert delays_s == [1, 2, 4]


def test_every_error_crosses_the_pipe_in_its_own_class() -> None:
    for cls in wire._CLASSES.values():
        sent = cls("a sentence")
        back = wire.error_from(json.loads(wire.encode(wire.error_to(sent))))
        assert (type(back), back.message, back.code) == (cls, "a sentence", cls.code)

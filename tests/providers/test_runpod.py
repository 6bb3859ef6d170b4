"""Work on RunPod: what is sent, what is made of what comes back, and that nothing is sent or paid for twice."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections import deque
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from mediamill.errors import (
    DeadlineExceeded,
    EngineFailed,
    MediamillError,
    Misconfigured,
    OutOfMemory,
    ProviderError,
    RetryLater,
    TooLarge,
    UnsupportedMedia,
)
from mediamill.model import Elsewhere, Event, OutputData, Phase, Progress, Work
from mediamill.providers import runpod
from tests.providers.remote import PROMPT, Made, events_of, files_of, settings_for, until, work
from tests.runpod_host import IN_PROGRESS, IN_QUEUE, KEY, RunPodHost, completed, inline


async def test_a_job_is_sent_once_watched_and_its_file_delivered(
    host: RunPodHost, make: Made, png: bytes, tmp_path: Path
) -> None:
    told = {"progress": 0.5, "phase": "generating", "message": "step 4 of 8", "eta_s": 2}
    done = completed(inline("output.png", png, "image/png"), output={"seed": 7}, warnings=["It is small."])
    host.script = lambda _body: [IN_QUEUE, IN_PROGRESS, {**IN_PROGRESS, "output": told}, done]
    events = await events_of(make(), work(negative_prompt=None), tmp_path, deadline_s=90)
    (job,) = host.jobs.values()
    assert job.input == {**PROMPT, "model": "zimage", "job_id": "0192-job"}
    policy = job.body["policy"]
    assert policy["executionTimeout"] == 90_000
    assert policy["ttl"] > policy["executionTimeout"]
    assert host.authorizations == {f"Bearer {KEY}"}
    assert events[:4] == [
        Elsewhere(f"runpod:ep-zimage/{job.id}"),
        Progress(0.0, Phase.LOADING, "waiting for a worker on RunPod"),
        Progress(0.0, Phase.GENERATING),
        Progress(0.5, Phase.GENERATING, "step 4 of 8", 2.0),
    ]
    assert files_of(events) == {"output.png": ("image/png", png)}
    assert events[-1] == OutputData({"seed": 7, "warnings": ["It is small."]})
    assert host.cancels == []


@pytest.mark.parametrize(
    ("model", "params", "named"),
    [
        ("zimage", PROMPT, {"model": "zimage"}),
        (
            "transcribe",
            {"url_audio": "https://e.x/a.wav", "model": "tiny"},
            {"operation": "transcribe", "model": "tiny"},
        ),
        ("addaudio", {"url_video": "https://e.x/v", "url_audio": "https://e.x/a"}, {"operation": "addaudio"}),
    ],
)
async def test_a_worker_hears_which_model_or_operation_is_meant(
    host: RunPodHost, make: Made, png: bytes, tmp_path: Path, model: str, params: dict[str, Any], named: dict[str, str]
) -> None:
    host.script = lambda _body: [completed(inline("output.png", png))]
    provider = make(runpod_endpoints={model.upper(): "ep-zimage"})
    await events_of(provider, Work("id", 1, model, params), tmp_path)
    (job,) = host.jobs.values()
    assert job.input == {**params, **named, "job_id": "id"}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("half way", Progress(0.0, Phase.GENERATING)),
        ({"progress": 7}, Progress(1.0, Phase.GENERATING)),
        ({"progress": -1, "eta_s": -3}, Progress(0.0, Phase.GENERATING)),
        ({"progress": True, "phase": ["x"], "message": 5}, Progress(0.0, Phase.GENERATING)),
        ({"progress": "0.5", "phase": "dreaming"}, Progress(0.0, Phase.GENERATING)),
        ({"progress": 0.2, "phase": "encoding"}, Progress(0.2, Phase.ENCODING)),
    ],
)
async def test_odd_progress_breaks_nothing(
    host: RunPodHost, make: Made, png: bytes, tmp_path: Path, told: Any, expected: Progress
) -> None:
    host.script = lambda _body: [{**IN_PROGRESS, "output": told}, completed(inline("a.png", png))]
    events = await events_of(make(), work(), tmp_path)
    assert events[1] == expected


@pytest.mark.parametrize("inlined", [True, False])
@pytest.mark.parametrize("name", ["url", "video_url", "image_url", "audio_url", "video", "image", "audio", None])
async def test_other_peoples_workers_will_do(
    host: RunPodHost, make: Made, mp4: bytes, tmp_path: Path, name: str | None, inlined: bool
) -> None:
    text = base64.b64encode(mp4).decode()
    value = (f"data:video/mp4;base64,{text}" if name == "video" else text) if inlined else host.file("clip", mp4)
    output: Any = value if name is None else {name: value, "duration": 3, "ok": True}
    host.script = lambda _body: [{"status": "COMPLETED", "output": output}]
    events = await events_of(make(), work(), tmp_path)
    assert files_of(events) == {"output.mp4": ("video/mp4", mp4)}


NO_FILE = (
    "The worker ended without a file; looked for artifacts, url, video_url, image_url, audio_url, video, image, audio."
)
OOM = "CUDA out of memory. Tried to allocate 2.00 GiB"
SDK_ERROR = json.dumps(
    {
        "error_type": "<class 'mediamill.errors.UnsupportedMedia'>",
        "error_message": "image_url: The file is a playlist.",
        "error_traceback": "Traceback\n  line 1",
        "hostname": "h",
    }
)


@pytest.mark.parametrize(
    ("state", "kind", "message"),
    [
        ({"status": "FAILED", "error": "The weights are gone"}, EngineFailed, "The weights are gone"),
        ({"status": "FAILED", "error": SDK_ERROR}, UnsupportedMedia, "image_url: The file is a playlist."),
        ({"status": "FAILED", "error": json.dumps({"error_message": OOM})}, OutOfMemory, OOM),
        (
            {"status": "FAILED", "error": json.dumps({"error_type": "<class 'torch.OutOfMemoryError'>"})},
            OutOfMemory,
            "There was not enough memory for this request.",
        ),
        ({"status": "FAILED", "error": {"message": "no", "code": "too_large"}}, TooLarge, "no"),
        ({"status": "FAILED", "error": {"message": "no", "code": "lease_lost"}}, EngineFailed, "no"),
        ({"status": "FAILED", "error": "no", "output": {"code": "unsupported_media"}}, UnsupportedMedia, "no"),
        ({"status": "FAILED", "error": "There was not enough memory"}, OutOfMemory, "There was not enough memory"),
        ({"status": "FAILED", "error": '{"not json'}, EngineFailed, '{"not json'),
        ({"status": "FAILED"}, EngineFailed, "The worker on RunPod failed and did not say why."),
        ({"status": "FAILED", "output": {"ok": False, "error": "Bad prompt"}}, EngineFailed, "Bad prompt"),
        ({"status": "COMPLETED", "output": {"ok": False, "error": "Bad prompt"}}, EngineFailed, "Bad prompt"),
        ({"status": "COMPLETED", "output": {"error": {"message": "x", "code": "out_of_memory"}}}, OutOfMemory, "x"),
        ({"status": "CANCELLED"}, ProviderError, "The job was cancelled on RunPod."),
        ({"status": "TIMED_OUT"}, DeadlineExceeded, "The job took longer than its limit on RunPod."),
        (
            {"status": "COMPLETED"},
            ProviderError,
            NO_FILE,
        ),
    ],
)
async def test_what_a_worker_fails_with_is_told_in_our_words(
    host: RunPodHost, make: Made, tmp_path: Path, state: dict[str, Any], kind: type[MediamillError], message: str
) -> None:
    host.script = lambda _body: [IN_QUEUE, state]
    with pytest.raises(kind) as caught:
        await events_of(make(), work(), tmp_path)
    assert type(caught.value) is kind
    assert caught.value.message == message


async def test_a_long_failure_is_cut_and_its_traceback_kept_for_the_log(
    host: RunPodHost, make: Made, tmp_path: Path
) -> None:
    said = {"error_message": "no\n" * 1000, "error_traceback": "\n".join(f"line {i}" for i in range(100))}
    host.script = lambda _body: [{"status": "FAILED", "error": json.dumps(said)}]
    with pytest.raises(EngineFailed) as caught:
        await events_of(make(), work(), tmp_path)
    assert len(caught.value.message) == 500
    assert caught.value.log_tail.splitlines() == [f"line {i}" for i in range(60, 100)]


@pytest.mark.parametrize(
    ("values", "answer", "words"),
    [
        ({"runpod_api_key": "rpa_other"}, None, r"^RunPod refused RUNPOD_API_KEY \(HTTP 401\)\.$"),
        ({}, 403, r"^RunPod refused RUNPOD_API_KEY \(HTTP 403\)\.$"),
        (
            {"runpod_endpoints": {"ZIMAGE": "nosuch"}},
            None,
            "knows no endpoint 'nosuch'; correct RUNPOD_ZIMAGE_ENDPOINT_ID",
        ),
        (
            {"runpod_endpoints": {}, "runpod_endpoint_id": "nosuch", "routes": {"zimage": "runpod"}},
            None,
            "knows no endpoint 'nosuch'; correct RUNPOD_ENDPOINT_ID",
        ),
        ({"runpod_endpoints": {}}, None, "RUNPOD_ZIMAGE_ENDPOINT_ID is not set here"),
        ({}, 402, r"^RunPod answered HTTP 402: trouble\.$"),
        ({}, 302, r"^RunPod answered HTTP 302: trouble\.$"),
    ],
)
async def test_a_refusal_names_the_setting_and_never_the_key(
    host: RunPodHost, make: Made, tmp_path: Path, values: dict[str, Any], answer: int | None, words: str
) -> None:
    if answer:
        host.trouble["run"] = deque([answer])
    with pytest.raises(ProviderError, match=words) as caught:
        await events_of(make(**values), work(), tmp_path)
    assert "rpa_" not in str(caught.value)
    assert not host.jobs


def test_without_a_key_nothing_runs_there(host: RunPodHost) -> None:
    with pytest.raises(Misconfigured, match="RUNPOD_API_KEY"):
        runpod.Client(settings_for(host, runpod_api_key=None))


async def test_a_busy_host_is_asked_again_until_it_takes_the_job(
    host: RunPodHost, make: Made, png: bytes, tmp_path: Path
) -> None:
    host.trouble["run"] = deque([429, 503, 500])
    host.script = lambda _body: [completed(inline("output.png", png))]
    assert files_of(await events_of(make(), work(), tmp_path)) == {"output.png": ("image/png", png)}
    assert len(host.jobs) == 1


async def test_a_job_that_nobody_takes_waits_here(host: RunPodHost, make: Made, tmp_path: Path) -> None:
    host.trouble["run"] = deque([503] * 1000)
    with pytest.raises(RetryLater, match="RunPod answered HTTP 503; the job waits"):
        await events_of(make(pace=runpod.Pace(first_s=0.01, submit_s=0.05)), work(), tmp_path)
    unreachable = make(runpod_base_url="http://127.0.0.1:9/v2", pace=runpod.Pace(first_s=0.01, submit_s=0.05))
    with pytest.raises(RetryLater, match="RunPod cannot be connected to; the job waits"):
        await events_of(unreachable, work(), tmp_path)


@pytest.mark.parametrize("trouble", ["drop", "take and drop", 502, 504])
async def test_a_job_that_may_have_been_taken_is_never_sent_again(
    host: RunPodHost, make: Made, tmp_path: Path, trouble: int | str
) -> None:
    host.trouble["run"] = deque([trouble])
    with pytest.raises(ProviderError, match=r"twice|HTTP 50[24]"):
        await events_of(make(), work(), tmp_path)
    assert len(host.jobs) == (trouble == "take and drop")


async def test_an_outage_while_it_runs_is_sat_out(host: RunPodHost, make: Made, png: bytes, tmp_path: Path) -> None:
    host.trouble["status"] = deque([429, 500, 502, 503, 504, "drop", "drop"])
    host.script = lambda _body: [completed(inline("output.png", png))]
    assert files_of(await events_of(make(), work(), tmp_path)) == {"output.png": ("image/png", png)}
    assert len(host.jobs) == 1


async def test_a_host_that_hangs_is_not_waited_for(host: RunPodHost) -> None:
    async with contextlib.AsyncExitStack() as stack:
        client = runpod.Client(settings_for(host))
        stack.push_async_callback(client.close)
        host.trouble["health"] = deque(["hang"])
        with pytest.raises(ProviderError, match=r"^RunPod does not answer\.$"):
            await client.health("ep-zimage", timeout_s=0.1)
        assert (await client.health("ep-zimage", timeout_s=5))["workers"] == {"idle": 1, "running": 0}


async def test_a_key_that_is_withdrawn_fails_the_job(host: RunPodHost, make: Made, tmp_path: Path) -> None:
    host.trouble["status"] = deque([401])
    with pytest.raises(ProviderError, match="refused RUNPOD_API_KEY"):
        await events_of(make(), work(), tmp_path)


async def test_a_job_that_the_host_forgot_fails_with_the_reason(
    host: RunPodHost, make: Made, png: bytes, tmp_path: Path
) -> None:
    host.script = lambda _body: [completed(inline("output.png", png))]
    host.trouble["status"] = deque([404])  # a moment of forgetfulness is none
    assert files_of(await events_of(make(), work(), tmp_path))
    with pytest.raises(ProviderError, match="does not know job nosuch-u1 any more; it keeps results for about half"):
        await events_of(make(), work(elsewhere="runpod:ep-zimage/nosuch-u1"), tmp_path)


async def test_the_next_attempt_goes_on_with_what_the_last_one_sent(
    host: RunPodHost, make: Made, png: bytes, tmp_path: Path
) -> None:
    provider = make()
    async with contextlib.aclosing(provider.run(work(), scratch=tmp_path, deadline_s=30)) as events:
        async for event in events:
            if isinstance(event, Elsewhere):
                event.kept = True
            else:
                break
    (job,) = host.jobs.values()
    job.states = [completed(inline("output.png", png))]
    events = await events_of(make(), work(elsewhere=f"runpod:ep-zimage/{job.id}"), tmp_path)
    assert files_of(events) == {"output.png": ("image/png", png)}
    assert not any(isinstance(event, Elsewhere) for event in events)
    assert (len(host.jobs), host.cancels) == (1, [])


@pytest.mark.parametrize("handle", ["nonsense", "runpod:a/b/c", "runpod:../x", "modal:fc-1"])
async def test_a_handle_of_somebody_else_is_refused(make: Made, tmp_path: Path, handle: str) -> None:
    with pytest.raises(ProviderError, match="is no job of RunPod"):
        await events_of(make(), work(elsewhere=handle), tmp_path)


async def test_closing_cancels_what_nobody_keeps_and_ending_what_somebody_kept(
    host: RunPodHost, make: Made, tmp_path: Path
) -> None:
    provider = make()
    for kept in (False, True):
        async with contextlib.aclosing(provider.run(work(), scratch=tmp_path, deadline_s=30)) as events:
            async for event in events:
                if isinstance(event, Elsewhere):
                    event.kept, handle = kept, event.handle
                else:
                    break
    first, second = host.jobs
    assert host.cancels == [first]
    await provider.end(handle)
    assert host.cancels == [first, second]
    await provider.end("runpod:ep-zimage/long-gone")
    host.trouble["cancel"] = deque([503])
    with pytest.raises(ProviderError, match="HTTP 503"):
        await provider.end(handle)


async def test_a_job_that_is_taken_while_nobody_wants_it_any_more_is_cancelled(
    host: RunPodHost, make: Made, tmp_path: Path
) -> None:
    run = make().run(work(), scratch=tmp_path, deadline_s=30)
    first: asyncio.Task[Event] = asyncio.ensure_future(anext(run))  # type: ignore[arg-type]
    await asyncio.sleep(0)  # it is under way
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    assert host.cancels == list(host.jobs)


async def test_a_job_that_takes_too_long_is_cancelled_there(host: RunPodHost, make: Made, tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        await events_of(make(), work(), tmp_path, deadline_s=0.1)
    assert host.cancels == list(host.jobs)


async def test_many_jobs_are_awaited_at_once(host: RunPodHost, make: Made, png: bytes, tmp_path: Path) -> None:
    provider = make()
    gate: list[Awaitable[list[Event]]] = []
    for number in range(64):
        folder = tmp_path / str(number)
        folder.mkdir()
        gate.append(asyncio.ensure_future(events_of(provider, work(), folder)))
    await until(lambda: len(host.jobs) == 64)
    for job in list(host.jobs.values()):
        job.states = [completed(inline("output.png", png))]
    done = await asyncio.gather(*gate)
    assert all(files_of(events) == {"output.png": ("image/png", png)} for events in done)

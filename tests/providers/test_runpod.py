"""Work on RunPod: what is sent, what is made of what comes back, and that nothing is sent or paid for twice."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mediamill.config import Settings
from mediamill.errors import (
    DeadlineExceeded,
    EngineFailed,
    MediamillError,
    Misconfigured,
    OutOfMemory,
    ProviderError,
    RetryLater,
    StorageUnavailable,
    TooLarge,
    UnsupportedMedia,
)
from mediamill.inputs.guard import UrlGuard
from mediamill.jobs.places import Prober
from mediamill.model import Elsewhere, Event, OutputData, OutputFile, Phase, Progress, Storage, Work
from mediamill.providers import local, runpod
from mediamill.storage import LocalUrls
from mediamill.storage.memory import MemoryStorage
from tests.media_samples import still, video
from tests.runpod_host import IN_PROGRESS, IN_QUEUE, KEY, RunPodHost, completed, hosting, inline

QUICK = runpod.Pace(first_s=0.01, longest_s=0.02, away_s=0.05, submit_s=5.0, unknown_s=0.1, fetch_s=0)
PROMPT = {"prompt": "a red fox", "seed": 7}


@pytest.fixture
def host() -> Iterator[RunPodHost]:
    with hosting() as started:
        yield started


@pytest.fixture
def png(tmp_path: Path) -> bytes:
    return still(tmp_path / "sample.png", 64, 48).read_bytes()


@pytest.fixture
def mp4(tmp_path: Path) -> bytes:
    return video(tmp_path / "sample.mp4", frames=6).read_bytes()


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage(LocalUrls("http://127.0.0.1:9", b"secret"))


async def unprobed(files: Sequence[OutputFile], _scratch: Path, _deadline_s: float) -> Sequence[OutputFile]:
    return files


Made = Callable[..., runpod.RunPod]


def settings_for(host: RunPodHost, **values: Any) -> Settings:
    defaults = {
        "runpod_api_key": KEY,
        "runpod_base_url": host.base_url,
        "runpod_endpoints": {"ZIMAGE": "ep-zimage"},
        "fetch_allow": ("127.0.0.1",),
    }
    return Settings(_env_file=None, **(defaults | values))


@pytest.fixture
async def make(host: RunPodHost, storage: MemoryStorage) -> AsyncIterator[Made]:
    """A provider on the host; `make(storage=..., probe=..., runpod_api_key=...)`."""
    async with contextlib.AsyncExitStack() as stack:

        def made(
            *, kept_in: Storage = storage, probe: runpod.Probe = unprobed, pace: runpod.Pace = QUICK, **values: Any
        ) -> runpod.RunPod:
            settings = settings_for(host, **values)
            client, guard = runpod.Client(settings), UrlGuard(settings.fetch_allow)
            stack.push_async_callback(client.close)
            stack.push_async_callback(guard.close)
            return runpod.create(settings, client=client, storage=kept_in, guard=guard, probe=probe, pace=pace)

        yield made


def work(model: str = "zimage", *, elsewhere: str | None = None, **params: Any) -> Work:
    return Work("0192-job", 1, model, {**PROMPT, **params}, elsewhere=elsewhere)


async def events_of(
    provider: runpod.RunPod, what: Work, scratch: Path, *, deadline_s: float = 30, keep: bool = False
) -> list[Event]:
    found = []
    async with contextlib.aclosing(provider.run(what, scratch=scratch, deadline_s=deadline_s)) as events:
        async for event in events:
            found.append(event)
            if isinstance(event, Elsewhere):
                event.kept = keep
    return found


def files_of(events: Sequence[Event]) -> dict[str, tuple[str, bytes]]:
    return {e.name: (e.media_type, e.path.read_bytes()) for e in events if isinstance(e, OutputFile)}


async def until(look: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not look():
            await asyncio.sleep(0.01)


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


# inputs


async def put(storage: Storage, key: str, content: bytes, folder: Path) -> None:
    path = folder / "stored"
    path.write_bytes(content)
    await storage.put(key, path, media_type="image/png")


async def test_a_callers_url_goes_as_it_is(host: RunPodHost, make: Made, png: bytes, tmp_path: Path) -> None:
    host.script = lambda _body: [completed(inline("output.png", png))]
    url = "https://nobody.invalid/picture.png?token=1"
    await events_of(make(), work(image_url=url), tmp_path)
    assert next(iter(host.jobs.values())).input["image_url"] == url


async def test_a_file_of_ours_goes_by_its_public_url_or_within_the_request(
    host: RunPodHost, make: Made, png: bytes, storage: MemoryStorage, tmp_path: Path
) -> None:
    host.script = lambda _body: [completed(inline("output.png", png))]
    public = MemoryStorage(LocalUrls("https://media.example.com", b"secret"))
    for kept_in in (storage, public):
        await put(kept_in, "uploads/picture.png", png, tmp_path)
        await events_of(make(kept_in=kept_in), work(image_url="file:uploads/picture.png"), tmp_path)
    inlined, linked = (job.input["image_url"] for job in host.jobs.values())
    assert inlined == f"data:image/png;base64,{base64.b64encode(png).decode()}"
    assert linked == await public.url("uploads/picture.png")


async def test_what_fits_no_request_is_refused_by_name_before_anything_is_sent(
    host: RunPodHost, make: Made, storage: MemoryStorage, tmp_path: Path
) -> None:
    await put(storage, "uploads/large.wav", bytes(4 * 1024**2), tmp_path)
    settings: dict[str, Any] = {"runpod_endpoints": {"WAV2LIP": "ep-zimage"}}
    large = work("wav2lip", video_url="file:uploads/large.wav", audio_url="file:uploads/large.wav")
    with pytest.raises(TooLarge, match=r"audio_url: is more than fits into a request to RunPod \(7340032 bytes in all"):
        await events_of(make(**settings), large, tmp_path)
    assert not host.jobs


# results


@pytest.mark.parametrize(
    ("artifact", "words"),
    [
        ({"size_bytes": 5}, r"announced 5 bytes of the file 'output.png' and delivered \d+"),
        ({"sha256": "0" * 64}, "another SHA-256"),
        ({"media_type": "video/mp4"}, "announced the file 'output.png' as video/mp4 and delivered image/png"),
        ({"base64": base64.b64encode(b"<html>" * 20).decode(), "sha256": None, "size_bytes": None}, "is an HTML page"),
        ({"base64": "?" * 80}, "cannot be had: base64: is not valid base64"),
        ({"base64": None}, "artifacts.0 is wrong: Value error, must have a url or base64"),
        ({"url": "https://example.com/a.png"}, "artifacts.0 is wrong: Value error, must have a url or base64"),
        ({"name": "../output.png"}, "artifacts.0.name is wrong"),
        ({"name": ".."}, "artifacts.0.name is wrong"),
        ({"media_type": "text/html"}, "announced the file 'output.png' as text/html and delivered image/png"),
        ({"base64": None, "url": "http://10.0.0.1/a.png"}, "10.0.0.1 may not be used: its address is not public"),
        ({"base64": None, "url": "file:///etc/passwd"}, "may not be used"),
        ({"base64": None, "url": "http://127.0.0.1:{port}/files/nosuch"}, "127.0.0.1 answered HTTP 404"),
    ],
)
async def test_a_file_that_is_not_as_announced_fails_the_job_by_name(
    host: RunPodHost, make: Made, png: bytes, tmp_path: Path, artifact: dict[str, Any], words: str
) -> None:
    wrong = {**inline("output.png", png, "image/png"), **artifact}
    if wrong.get("url"):
        wrong["url"] = wrong["url"].replace("{port}", str(host.port))
    host.script = lambda _body: [completed(wrong)]
    with pytest.raises(ProviderError, match=words):
        await events_of(make(), work(), tmp_path)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"artifacts": "x"}, "`artifacts` must be a list"),
        ({"artifacts": [], "output": [1]}, "`output` must be an object"),
        ({"artifacts": [], "output": {"x": "y" * 300_000}}, "`output` must be an object of at most"),
        ({"artifacts": [5]}, "artifacts.0 is wrong"),
    ],
)
async def test_a_result_of_another_shape_is_refused(
    host: RunPodHost, make: Made, tmp_path: Path, output: Any, words: str
) -> None:
    host.script = lambda _body: [{"status": "COMPLETED", "output": output}]
    with pytest.raises(ProviderError, match=words):
        await events_of(make(), work(), tmp_path)


async def test_a_file_in_our_own_storage_is_read_from_there(
    host: RunPodHost, make: Made, png: bytes, storage: MemoryStorage, tmp_path: Path
) -> None:
    await put(storage, "worker/output.png", png, tmp_path)
    url = await storage.url("worker/output.png")  # nothing listens at that address
    host.script = lambda _body: [completed({**inline("output.png", png), "base64": None, "url": url})]
    assert files_of(await events_of(make(), work(), tmp_path)) == {"output.png": ("image/png", png)}


class Slow(MemoryStorage):
    """Does not answer."""

    def open(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        raise StorageUnavailable("The bucket does not answer.")


async def test_a_storage_that_is_away_costs_no_work(host: RunPodHost, make: Made, png: bytes, tmp_path: Path) -> None:
    slow = Slow(LocalUrls("http://127.0.0.1:9", b"secret"))
    await put(slow, "uploads/picture.png", png, tmp_path)
    with pytest.raises(RetryLater, match="The bucket does not answer"):
        await events_of(make(kept_in=slow), work(image_url="file:uploads/picture.png"), tmp_path)
    assert not host.jobs
    url = await slow.url("uploads/picture.png")
    host.script = lambda _body: [completed({"name": "output.png", "url": url})]
    with pytest.raises(RetryLater, match="The bucket does not answer"):
        await events_of(make(kept_in=slow), work(), tmp_path, keep=True)
    assert host.cancels == []


async def test_a_file_that_cannot_be_fetched_yet_is_tried_again(
    host: RunPodHost, make: Made, png: bytes, tmp_path: Path
) -> None:
    artifact = {"name": "output.png", "url": host.file("late.png", png)}
    content = host.files.pop("late.png")
    host.script = lambda _body: [completed(artifact)]
    fetching = asyncio.ensure_future(events_of(make(pace=replace(QUICK, fetch_s=20)), work(), tmp_path))
    await until(lambda: host.asked_files)
    host.files["late.png"] = content
    assert files_of(await fetching) == {"output.png": ("image/png", png)}


async def test_files_come_by_url_and_text_keeps_its_type(
    host: RunPodHost, make: Made, mp4: bytes, tmp_path: Path
) -> None:
    srt = b"1\n00:00:00,000 --> 00:00:01,000\nhello\n"
    clip = {"name": "a.mp4", "url": host.file("a", mp4), "size_bytes": len(mp4)}
    host.script = lambda _body: [completed(clip, inline("a.srt", srt, "application/x-subrip"))]
    assert files_of(await events_of(make(), work(), tmp_path)) == {
        "a.mp4": ("video/mp4", mp4),
        "a.srt": ("application/x-subrip", srt),
    }


@pytest.fixture
async def prober() -> AsyncIterator[Prober]:
    made = Prober(local.create(Settings(_env_file=None), engine="received"))
    yield made
    await made.child.close()


async def test_what_came_is_probed_in_another_process(
    host: RunPodHost, make: Made, prober: Prober, mp4: bytes, png: bytes, tmp_path: Path
) -> None:
    host.script = lambda _body: [completed(inline("a.mp4", mp4, "video/mp4"), inline("b.png", png, "image/png"))]
    events = await events_of(make(probe=prober.probe), work(), tmp_path)
    clip, picture = (e.facts for e in events if isinstance(e, OutputFile))
    assert (clip.frames, clip.video_codec, picture.width_px, picture.height_px) == (6, "h264", 64, 48)
    assert prober.child.child_pid is not None


async def test_damaged_files_fail_their_job_and_nobody_elses(
    host: RunPodHost, make: Made, prober: Prober, mp4: bytes, png: bytes, tmp_path: Path
) -> None:
    provider = make(probe=prober.probe)
    contents = {"a": mp4[: len(mp4) // 2], "b": png[:-30], "c": png}
    host.script = lambda body: [completed(inline("out", contents[body["input"]["prompt"]]))]

    async def one(prompt: str) -> list[Event]:
        folder = tmp_path / prompt
        folder.mkdir()
        return await events_of(provider, work(prompt=prompt), folder)

    done: Any = await asyncio.gather(*map(one, contents), return_exceptions=True)
    assert [isinstance(d, ProviderError) for d in done] == [True, True, False]
    assert "What RunPod delivered cannot be used: The engine made a damaged file 'out'" in str(done[0])
    assert files_of(done[2]) == {"out": ("image/png", png)}


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

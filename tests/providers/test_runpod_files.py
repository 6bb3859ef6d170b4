"""Files of a job on RunPod: how inputs get there, and that results are what was announced."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mediamill.errors import (
    ProviderError,
    RetryLater,
    StorageUnavailable,
    TooLarge,
)
from mediamill.jobs.places import Prober
from mediamill.model import Event, OutputFile, Storage
from mediamill.storage import LocalUrls
from mediamill.storage.memory import MemoryStorage
from tests.providers.remote import QUICK, Made, events_of, files_of, until, work
from tests.runpod_host import RunPodHost, completed, inline


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

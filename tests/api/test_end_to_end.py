"""The API with a real worker beside it: from a request to the bytes of the file."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import av
import numpy as np
from PIL import Image

from mediamill.jobs.worker import run_worker
from mediamill.media.probe import probe
from tests.api.conftest import Service, running
from tests.heif_samples import icc, irot
from tests.heif_samples import photo as heif_photo
from tests.media.test_still_colour import profile
from tests.video_contract import VideoResponse


@contextlib.asynccontextmanager
async def working(store, database_url, folder, *, slots: int = 1, **values) -> AsyncIterator[Service]:
    """An API and a worker of the cpu pool that share a database and a folder."""
    async with running(store, folder, **{"storage_mode": "file", "database_url": database_url, **values}) as service:
        stop = asyncio.Event()
        worker = asyncio.ensure_future(run_worker(service.deps.settings, pool="cpu", slots=slots, stop=stop))
        try:
            while (await service.get("/ready")).status != 200:
                await asyncio.sleep(0.05)
            yield service
        finally:
            stop.set()
            await worker


async def fetched(service: Service, url: str, folder):
    """The facts of a file behind a URL of the service."""
    clip = folder / "fetched.mp4"
    clip.write_bytes((await service.get(url.removeprefix(service.base_url))).body)
    return probe(clip)


async def test_a_requested_clip_can_be_fetched_and_is_what_was_asked(store, database_url, tmp_path):
    async with working(store, database_url, tmp_path) as service:
        wanted = {"kind": "video", "width": 320, "height": 180, "duration_s": 0.5, "fps": 24, "seed": 7}
        answer = await service.call("POST", "/v1/jobs?wait=60", json={"model": "fake", "input": wanted})
        assert (answer.status, answer.body["status"]) == (200, "succeeded"), answer.body
        (artifact,) = answer.body["artifacts"]
        assert (artifact["width"], artifact["height"], artifact["frames"]) == (320, 180, 12)
        facts = await fetched(service, artifact["url"], tmp_path)
        assert (facts.width_px, facts.height_px, facts.frames, facts.has_audio) == (320, 180, 12, True)
        assert {"queued_s", "uploading_s"} <= set(answer.body["timings"])

        slow = await service.post("/v1/jobs", {"model": "fake", "input": {**wanted, "work_s": 60}})
        while (await service.get(slow.headers["Location"])).body["status"] == "queued":
            await asyncio.sleep(0.02)
        await service.call("POST", f"{slow.headers['Location']}/cancel")
        ended = await service.get(f"{slow.headers['Location']}?wait=30")
        assert ended.body["status"] == "cancelled"


def photo(colour: tuple[int, int, int] = (200, 40, 40)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(out, "PNG")
    return out.getvalue()


async def test_many_photos_go_in_parallel_parts_and_come_back_as_one_reply(store, database_url, tmp_path):
    colours = [(220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 30), (30, 220, 220)]
    urls = [f"data:image/png;base64,{base64.b64encode(photo(c)).decode()}" for c in colours]
    images = [{"id": f"s{n}", "image_url": url, "duracao": 0.1} for n, url in enumerate(urls)]
    images[3]["image_url"] = "http://media.invalid/photo.jpg"
    async with working(store, database_url, tmp_path, slots=2, split_above=2, split_parts=2) as service:
        answer = await service.post("/video/img2vid", {"images": images, "path": "many/"})
        assert answer.status == 200, answer.body
        reply = VideoResponse.model_validate(answer.body)
        assert [(v.id, v.filename) for v in reply.videos or ()] == [
            (f"s{n}", f"video_{n + 1}.mp4") for n in (0, 1, 2, 4)
        ]
        assert [e["id"] for e in answer.body["errors"]] == ["s3"]
        for video, n in zip(reply.videos or (), (0, 1, 2, 4), strict=True):
            clip = tmp_path / video.filename
            clip.write_bytes((await service.get(video.video_url.removeprefix(service.base_url))).body)
            assert np.abs(first_pixel(clip) - colours[n]).max() < 12, video.filename
        parts = await store.parts(reply.stats.jobId)
        assert sorted(len(part.input["images"]) for part in parts) == [2, 3]
        assert [job["id"] for job in (await service.get("/v1/jobs")).body["data"]] == [reply.stats.jobId]
        assert [key async for key, _ in service.deps.storage.list("uploads")] != [], "parts read what was staged once"


def first_pixel(clip: Path) -> np.ndarray:
    """RGB in the middle of the first picture."""
    with av.open(str(clip)) as opened:
        frame = next(opened.decode(video=0)).to_ndarray(format="rgb24")
    return frame[frame.shape[0] // 2, frame.shape[1] // 2].astype(int)


async def test_what_a_phone_takes_becomes_clips(store, database_url, tmp_path):
    """An upright HEIC photo, wide gamut, sent as a file; and one whose index is broken."""
    shown = np.zeros((96, 128, 3), np.uint8)
    shown[:, :] = (200, 60, 60)
    taken = heif_photo(tmp_path / "IMG_0001.HEIC", np.ascontiguousarray(np.rot90(shown)), irot(3), icc(profile()))
    async with working(store, database_url, tmp_path) as service:
        form = aiohttp.FormData()
        form.add_field("file", taken.read_bytes(), filename="IMG_0001.HEIC", content_type="application/octet-stream")
        uploaded = await service.call("POST", "/v1/files", data=form)
        assert (uploaded.status, uploaded.body["media_type"]) == (201, "image/heic"), uploaded.body
        broken = base64.b64encode(taken.read_bytes().replace(b"pitm", b"free")).decode()
        stills = {"phone": uploaded.body["url"], "broken": f"data:image/heic;base64,{broken}"}
        images = [{"id": name, "image_url": url, "duracao": 0.25} for name, url in stills.items()]
        answer = await service.post("/video/img2vid", {"images": images, "path": "p/"})
        assert answer.status == 200, answer.body
        (video,) = VideoResponse.model_validate(answer.body).videos or ()
        facts = await fetched(service, video.video_url, tmp_path)
        assert (facts.width_px, facts.height_px, facts.frames) == (1920, 1080, 6)
        assert np.abs(first_pixel(tmp_path / "fetched.mp4") - (217, 42, 52)).max() < 5
        (error,) = answer.body["errors"]
        assert error["id"] == "broken"
        assert "The picture is damaged: Invalid input" in str(error)


async def test_photos_become_clips_and_a_bad_one_does_not_lose_the_others(store, database_url, tmp_path):
    encoded = base64.b64encode(photo()).decode()
    async with working(store, database_url, tmp_path) as service:
        form = aiohttp.FormData()
        form.add_field("file", photo(), filename="photo.png")
        uploaded = (await service.call("POST", "/v1/files", data=form)).body
        stills = {
            "gone": "http://media.invalid/photo.jpg",
            "sent": uploaded["file"],
            "ours": uploaded["url"],
            "inline": f"data:image/png;base64,{encoded}",
        }
        images = [{"id": name, "image_url": url, "duracao": 0.25} for name, url in stills.items()]
        answer = await service.post("/video/img2vid", {"images": images, "path": "Álbum 1/videos/"})
        assert answer.status == 200, answer.body
        reply = VideoResponse.model_validate(answer.body)
        assert (reply.stats.total, reply.stats.processed) == (4, 3)
        assert [(v.id, v.filename) for v in reply.videos or ()] == [
            ("sent", "video_2.mp4"),
            ("ours", "video_3.mp4"),
            ("inline", "video_4.mp4"),
        ]
        assert [e["id"] for e in answer.body["errors"]] == ["gone"]
        for video in reply.videos or ():
            assert "/%C3%81lbum%201/videos/" in video.video_url
            facts = await fetched(service, video.video_url, tmp_path)
            assert (facts.width_px, facts.height_px, facts.frames) == (1920, 1080, 6)

        lost = await service.post("/video/img2vid", {"images": images[:1], "path": "a/"})
        assert (lost.status, lost.body["error"]) == (422, "Unprocessable Entity"), lost.body

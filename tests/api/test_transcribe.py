"""`/transcribe` through a real server: JSON and forms in, the contract's shapes out; once with a worker and weights."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json

import aiohttp
import numpy as np
import srt

from mediamill.jobs.worker import run_worker
from mediamill.media.encode import Sound
from tests import speech
from tests.api import hands
from tests.api.conftest import Answer, running
from tests.media_samples import pictures_of, video

NAMES = ("segments.srt", "karaoke.ass", "words.json")
OUTPUT = {"language": "en", "language_probability": 0.98, "audio_seconds": 2.0, "text": "Hello."}
URL = "https://example.com/talk.mp3"


async def queued(service):
    while not (await service.get("/v1/jobs?status=queued")).body["data"]:
        await asyncio.sleep(0.01)


async def test_the_call_waits_and_answers_with_three_urls(service):
    calling = asyncio.ensure_future(service.post("/transcribe", {"url_audio": URL, "path": "My Project/subs"}))
    await queued(service)
    job_id = await hands.finish(service.deps, names=NAMES, media_type="text/plain", output=OUTPUT)
    answer = await calling
    assert (answer.status, answer.body["code"], answer.body["text"]) == (200, 200, "Hello.")
    assert answer.body["stats"]["jobId"] == job_id
    assert set(answer.body["files"]) == {"srt", "ass", "words"}
    assert "/My%20Project/subs/segments.srt" in answer.body["files"]["srt"]
    for url in answer.body["files"].values():
        assert (await service.get(url.removeprefix(service.base_url))).status == 200
    state = await service.get(f"/job/{job_id}")
    assert (state.body["status"], state.body["result"]["files"]) == ("COMPLETED", answer.body["files"])


async def test_an_uploaded_file_takes_the_place_of_the_url(service):
    form = aiohttp.FormData()
    form.add_field("file", speech.recording("beckett.wav").read_bytes(), filename="b.wav", content_type="audio/wav")
    form.add_field("model", "tiny")
    form.add_field("vad", "false")
    form.add_field("style", '{"name": "highlight", "position": "top"}')
    sent = await service.call("POST", "/transcribe", data=form, headers={"Prefer": "respond-async"})
    assert (sent.status, sent.body["status"]) == (202, "queued")
    job = (await service.get(f"/v1/jobs/{sent.body['jobId']}")).body
    assert job["input"]["url_audio"].startswith("file:uploads/")
    assert (job["input"]["model"], job["input"]["vad"], job["input"]["style"]["position"]) == ("tiny", False, "top")


async def test_a_form_that_is_sent_again_with_its_key_pays_once(service):
    def form(**fields: str) -> aiohttp.FormData:
        made = aiohttp.FormData()
        made.add_field("file", speech.recording("beckett.wav").read_bytes(), filename="b.wav", content_type="audio/wav")
        for name, value in {"model": "tiny", **fields}.items():
            made.add_field(name, value)
        return made

    async def send(made: aiohttp.FormData) -> Answer:
        headers = {"Prefer": "respond-async", "Idempotency-Key": "talk-1"}
        return await service.call("POST", "/transcribe", data=made, headers=headers)

    async def uploads() -> list[str]:
        return [key async for key, _ in service.deps.storage.list("uploads")]

    first, again = await send(form()), await send(form())
    assert (again.status, again.body, again.headers["Idempotency-Replayed"]) == (202, first.body, "true")
    other = await send(form(task="translate"))
    assert (other.status, other.body["error"]) == (409, "Conflict")
    assert len(await uploads()) == 1, "the first job still has its file"


async def test_a_refused_form_leaves_no_upload_behind(service):
    form = aiohttp.FormData()
    form.add_field("file", speech.recording("beckett.wav").read_bytes(), filename="b.wav", content_type="audio/wav")
    form.add_field("language", "klingon")
    answer = await service.call("POST", "/transcribe", data=form)
    assert (answer.status, answer.body["error"]) == (400, "Bad Request")
    assert answer.body["details"][0]["path"] == "language"
    assert [key async for key, _ in service.deps.storage.list("uploads/")] == []


async def test_errors_have_the_contracts_shape(start):
    async with start(x_api_key="k") as service:
        keyless = await service.post("/transcribe", {"url_audio": URL})
        assert (keyless.status, keyless.body["error"]) == (401, "Unauthorized")
        missing = await service.post("/transcribe", {"model": "gigantic"}, x_api_key="k")
        assert (missing.status, missing.body["message"]) == (400, "url_audio is required")
        assert {d["path"] for d in missing.body["details"]} == {"url_audio", "model"}
        private = await service.post("/transcribe", {"url_audio": "http://10.0.0.1/a.mp3"}, x_api_key="k")
        assert (private.status, private.body["details"][0]["path"]) == (400, "url_audio")
        text = await service.call("POST", "/transcribe", data=b"hello", headers={"X-API-Key": "k"})
        assert (text.status, text.body["error"]) == (415, "Unsupported Media Type")


async def test_a_job_that_failed_says_why_in_the_contracts_shape(service):
    calling = asyncio.ensure_future(service.post("/transcribe", {"url_audio": URL}))
    await queued(service)
    await hands.fail(service.deps, "unsupported_media", "The file has no audio stream.")
    answer = await calling
    assert (answer.status, answer.body["message"]) == (422, "The file has no audio stream.")
    assert answer.body["jobId"]


async def test_health_needs_no_key_and_names_the_models_at_hand(start, tmp_path):
    placed = {"TINY": str(speech.tiny_en()), "WHISPER_BASE": str(tmp_path / "nowhere")}
    async with start(x_api_key="k", model_locations=placed, hf_hub_cache=tmp_path) as service:
        answer = await service.get("/transcribe/health")
    assert answer.status == 200
    assert answer.body["models"] == ["tiny"]
    assert (answer.body["status"], answer.body["defaultModel"]) == ("ok", "turbo")


@contextlib.asynccontextmanager
async def working(store, database_url, folder):
    """An API and a worker with the tiny model."""
    placed = {"WHISPER_TINY": str(speech.tiny_en())}
    values = {"storage_mode": "file", "database_url": database_url, "model_locations": placed, "device": "cpu"}
    async with running(store, folder, **values) as service:
        stop = asyncio.Event()
        worker = asyncio.ensure_future(run_worker(service.deps.settings, pool="cpu", slots=1, stop=stop))
        try:
            yield service
        finally:
            stop.set()
            await worker


async def uploaded(service, path):
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(path.read_bytes()), filename=path.name)
    return (await service.call("POST", "/v1/files", data=form)).body


def yellow(picture):
    """Pixels of the lower half in the colour of spoken words."""
    red, green, blue = (picture[picture.shape[0] // 2 :, :, n] for n in range(3))
    return int(((red > 180) & (green > 150) & (blue < 100)).sum())


async def test_a_talk_gets_karaoke_captions_in_two_calls(store, database_url, tmp_path):
    samples = speech.samples("beckett.wav").astype(np.float32) / 32768
    talk = video(tmp_path / "talk.mp4", frames=41, fps=4, sound=Sound(samples, speech.RATE_HZ))
    async with working(store, database_url, tmp_path) as service:
        sent = await uploaded(service, talk)
        heard = await service.post("/transcribe", {"url_audio": sent["file"], "model": "tiny", "path": "My Talk"})
        assert heard.status == 200, heard.body
        assert speech.plain_words(heard.body["text"]) == speech.plain_words(speech.BECKETT)
        got = {kind: await _fetched(service, url) for kind, url in heard.body["files"].items()}
        wanted = {"url_video": sent["url"], "url_srt": heard.body["files"]["ass"], "output_filename": "out.mp4"}
        captioned = await service.post("/video/caption", {**wanted, "path": "My Talk"})
        assert captioned.status == 200, captioned.body
        clip = (await service.get(captioned.body["video_url"].removeprefix(service.base_url))).body
    words = json.loads(got["words"])
    assert [w["word"] for w in words] == speech.BECKETT.split()
    assert " ".join(c.content.replace("\n", " ") for c in srt.parse(got["srt"])) == speech.BECKETT
    assert got["ass"].count("Dialogue:") == len(list(srt.parse(got["srt"])))

    (tmp_path / "captioned.mp4").write_bytes(clip)
    lit = [yellow(picture) for picture in pictures_of(tmp_path / "captioned.mp4")]
    first = [round(w["start"] * 4) for w in words if w["segment"] == 0]
    assert lit[max(0, first[0] - 2)] == 0
    assert 0 < lit[first[0] + 1] < lit[first[-1] + 1], "one word after the other"


async def test_what_was_found_out_is_said_in_the_reply_and_in_the_job(store, database_url, tmp_path):
    quiet = speech.write_wav(tmp_path / "quiet.wav", np.zeros(2 * speech.RATE_HZ, np.int16))
    async with working(store, database_url, tmp_path) as service:
        sent = await uploaded(service, quiet)
        answer = await service.post("/transcribe", {"url_audio": sent["url"], "path": "/quiet"})
        job = (await service.get(f"/v1/jobs/{answer.body['stats']['jobId']}")).body
    said = [
        "path: the leading slash was left out.",
        "No speech was found in 2.0 s of sound; the subtitle files are valid and empty.",
    ]
    assert (answer.status, answer.body["text"], answer.body["warnings"]) == (200, "", said)
    assert job["warnings"] == said
    assert "warnings" not in job["output"]


async def test_a_cancel_in_the_middle_ends_the_call(store, database_url, tmp_path):
    long = speech.write_wav(tmp_path / "long.wav", np.concatenate([speech.samples("two_cities.wav")] * 8))
    async with working(store, database_url, tmp_path) as service:
        sent = await uploaded(service, long)
        calling = asyncio.ensure_future(service.post("/transcribe", {"url_audio": sent["file"], "model": "tiny"}))
        while not (found := (await service.get("/v1/jobs?status=running")).body["data"]):
            await asyncio.sleep(0.02)
        while (await service.get(f"/v1/jobs/{found[0]['id']}")).body["phase"] != "generating":
            await asyncio.sleep(0.02)
        cancelled = await service.post(f"/job/{found[0]['id']}/cancel", {})
        assert (cancelled.status, cancelled.body["status"]) == (200, "CANCELLED")
        answer = await calling
        assert (answer.status, answer.body["error"], answer.body["jobId"]) == (409, "Conflict", found[0]["id"])
        assert [key async for key, _ in service.deps.storage.list("outputs/")] == []


async def _fetched(service, url):
    body = (await service.get(url.removeprefix(service.base_url))).body
    return body.decode() if isinstance(body, bytes) else json.dumps(body)

"""`/transcribe` through a real server: JSON and forms in, the contract's shapes out; once with a worker and weights."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import srt

from mediamill.jobs.worker import run_worker
from tests import speech
from tests.api import hands
from tests.api.conftest import Answer, running

NAMES = ("segments.srt", "karaoke.ass", "words.json")
OUTPUT = {"language": "en", "language_probability": 0.98, "audio_seconds": 2.0, "text": "Hello.", "warnings": []}
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


async def test_speech_goes_in_and_its_words_come_out(store, database_url, tmp_path):
    placed = {"WHISPER_TINY": str(speech.tiny_en())}
    values = {"storage_mode": "file", "database_url": database_url, "model_locations": placed, "device": "cpu"}
    async with running(store, tmp_path, **values) as service:
        stop = asyncio.Event()
        worker = asyncio.ensure_future(run_worker(service.deps.settings, pool="cpu", slots=1, stop=stop))
        try:
            form = aiohttp.FormData()
            sound = speech.recording("beckett.wav").read_bytes()
            form.add_field("file", sound, filename="b.wav", content_type="audio/wav")
            form.add_field("model", "tiny")
            answer = await service.call("POST", "/transcribe", data=form)
            assert answer.status == 200, answer.body
            assert speech.plain_words(answer.body["text"]) == speech.plain_words(speech.BECKETT)
            got = {kind: await _fetched(service, url) for kind, url in answer.body["files"].items()}
        finally:
            stop.set()
            await worker
    assert [w["word"] for w in json.loads(got["words"])] == speech.BECKETT.split()
    assert " ".join(c.content.replace("\n", " ") for c in srt.parse(got["srt"])) == speech.BECKETT
    assert got["ass"].count("Dialogue:") == len(list(srt.parse(got["srt"])))


async def _fetched(service, url):
    body = (await service.get(url.removeprefix(service.base_url))).body
    return body.decode() if isinstance(body, bytes) else json.dumps(body)

"""The video processing contract through a real server: the document's own requests, its replies, its states."""

from __future__ import annotations

import asyncio
import json
import shlex

from mediamill import catalog
from tests.api import hands
from tests.video_contract import VideoResponse

CURLS = {
    "img2vid": """
curl -s -X POST $BASE/video/img2vid -H "X-API-Key: $X_API_KEY" -H "Content-Type: application/json" -d '{
  "images": [
    {
      "id": "img-1",
      "image_url": "https://example.com/photo1.jpg",
      "duracao": 6.48
    },
    {
      "id": "img-2",
      "image_url": "https://example.com/photo2.jpg",
      "duracao": 5.0
    }
  ],
  "path": "Project Name/Video Title/videos/temp/"
}'""",
    "caption": """
curl -s -X POST $BASE/video/caption -H "X-API-Key: $X_API_KEY" -H "Content-Type: application/json" -d '{
  "url_video": "https://example.com/video.mp4",
  "url_srt": "https://example.com/subtitles.srt",
  "path": "Project Name/Video Title/videos/",
  "output_filename": "video_legendado.mp4"
}'""",
    "addaudio": """
curl -s -X POST $BASE/video/addaudio -H "X-API-Key: $X_API_KEY" -H "Content-Type: application/json" -d '{
  "url_video": "https://example.com/video.mp4",
  "url_audio": "https://example.com/audio.mp3",
  "path": "Project Name/Video Title/videos/",
  "output_filename": "video_com_audio.mp4"
}'""",
}
NAMES = {
    "img2vid": ("video_1.mp4", "video_2.mp4"),
    "caption": ("video_legendado.mp4",),
    "addaudio": ("video_com_audio.mp4",),
}
BODIES = {name: json.loads(shlex.split(line)[-1]) for name, line in CURLS.items()}


async def curl(line: str, base_url: str, key: str) -> dict:
    """Run a command of the document as a user would; its output as JSON."""
    arguments = shlex.split(line.replace("$BASE", base_url).replace("$X_API_KEY", key))
    process = await asyncio.create_subprocess_exec(
        *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return json.loads(out)


async def when_queued(service, then, **headers):
    while not (await service.get("/v1/jobs?status=queued", **headers)).body["data"]:
        await asyncio.sleep(0.01)
    return await then


async def test_the_documents_commands_get_the_documents_replies(start):
    async with start(x_api_key="your-secure-api-key") as service:
        for operation, line in CURLS.items():
            calling = asyncio.ensure_future(curl(line, service.base_url, "your-secure-api-key"))
            finishing = hands.finish(service.deps, names=NAMES[operation], content=operation.encode())
            job_id = await when_queued(service, finishing, x_api_key="your-secure-api-key")
            body = await calling
            typed = VideoResponse.model_validate(body)
            assert (typed.code, typed.stats.jobId) == (200, job_id)
            urls = [v.video_url for v in typed.videos] if typed.videos else [typed.video_url]
            assert all("Project%20Name/Video%20Title/videos/" in url for url in urls)
            for url in urls:  # works as printed, without the key
                fetched = await service.get(url.removeprefix(service.base_url))
                assert (fetched.status, fetched.body) == (200, operation.encode())
            assert body["stats"]["delayTime"] + body["stats"]["executionTime"] == body["execution"]["durationMs"]
            assert body["execution"]["durationSeconds"] == body["execution"]["durationMs"] / 1000


async def test_img2vid_reports_each_still_and_keeps_the_rest(service):
    finishing = hands.finish(
        service.deps, names=("video_2.mp4",), output={"errors": [{"id": "img-1", "error": "404 Not Found"}]}
    )
    calling = asyncio.ensure_future(service.post("/video/img2vid", BODIES["img2vid"]))
    await when_queued(service, finishing)
    answer = await calling
    assert answer.status == 200
    assert [(v["id"], v["filename"]) for v in answer.body["videos"]] == [("img-2", "video_2.mp4")]
    assert answer.body["errors"] == [{"id": "img-1", "error": "404 Not Found"}]
    assert (answer.body["stats"]["total"], answer.body["stats"]["processed"]) == (2, 1)


async def test_strings_for_numbers_and_numeric_ids_are_taken(service):
    body = {"images": [{"id": 7, "image_url": "https://example.com/a.jpg", "duracao": "6.48", "alt": "x"}], "path": "p"}
    answer = await service.post("/video/img2vid", body, prefer="respond-async")
    assert (answer.status, answer.body) == (202, {"jobId": answer.body["jobId"], "status": "queued"})
    assert answer.headers["Location"] == f"/v1/jobs/{answer.body['jobId']}"
    job = (await service.get(answer.headers["Location"])).body
    assert job["input"]["images"][0] | {"alt": 0} == {
        "id": "7",
        "image_url": "https://example.com/a.jpg",
        "duracao": 6.48,
        "alt": 0,
    }
    assert "Unknown field 'images.0.alt' was ignored." in job["warnings"]


async def test_a_path_is_made_a_key_prefix_and_what_was_changed_is_said(service):
    body = {**BODIES["caption"], "path": "/Meu Projeto/vídeos"}
    calling = asyncio.ensure_future(service.post("/video/caption", body))
    await when_queued(service, hands.finish(service.deps, names=NAMES["caption"]))
    answer = await calling
    assert "/files/Meu%20Projeto/v%C3%ADdeos/video_legendado.mp4" in answer.body["video_url"]
    assert any("slash" in warning for warning in answer.body["warnings"])


async def test_warnings_of_the_request_and_of_the_work_come_with_the_reply(service):
    calling = asyncio.ensure_future(service.post("/video/caption", {**BODIES["caption"], "colour": "red"}))
    await when_queued(service, hands.finish(service.deps, names=NAMES["caption"], warnings=["NVENC was not there."]))
    assert (await calling).body["warnings"] == ["Unknown field 'colour' was ignored.", "NVENC was not there."]


async def test_a_job_can_be_watched_in_runpods_words(service):
    job_id = (await service.post("/video/caption", BODIES["caption"], prefer="respond-async")).body["jobId"]
    queued = (await service.get(f"/job/{job_id}")).body
    assert (queued["status"], queued["progress"], "startedAt" in queued) == ("IN_QUEUE", 0, False)
    taken = await hands.take(service.deps)
    await service.deps.store.beat(taken.job.id, taken.attempt, progress=0.42)
    running = (await service.get(f"/job/{job_id}")).body
    assert (running["status"], running["progress"], "result" in running) == ("IN_PROGRESS", 42, False)
    cancelled = (await service.call("POST", f"/job/{job_id}/cancel")).body
    assert cancelled == {"jobId": job_id, "status": "CANCELLED"}
    assert await service.deps.store.cancelled(taken.job.id, taken.attempt, timings={})
    assert (await service.get(f"/job/{job_id}")).body["status"] == "CANCELLED"


async def test_a_finished_job_has_the_reply_the_call_would_have_had_and_cancel_leaves_it(service):
    calling = asyncio.ensure_future(service.post("/video/addaudio", BODIES["addaudio"]))
    job_id = await when_queued(service, hands.finish(service.deps, names=NAMES["addaudio"]))
    reply = (await calling).body
    state = (await service.get(f"/job/{job_id}")).body
    assert (state["status"], state["progress"], state["result"]) == ("COMPLETED", 100, reply)
    assert (await service.call("POST", f"/job/{job_id}/cancel")).body == state


async def test_a_cancel_that_comes_too_late_says_how_the_job_ended(service):
    calling = asyncio.ensure_future(service.post("/video/addaudio", BODIES["addaudio"]))
    taken = await when_queued(service, hands.take(service.deps))
    cancelling = asyncio.ensure_future(service.call("POST", f"/job/{taken.job.id}/cancel"))
    while not (await service.deps.store.get(taken.job.id)).cancel_requested:
        await asyncio.sleep(0.01)
    await hands.end(service.deps, taken, names=NAMES["addaudio"])
    reply, cancelled = await calling, await cancelling
    assert reply.status == 200
    assert (cancelled.body["status"], cancelled.body["result"]) == ("COMPLETED", reply.body)


async def test_jobs_of_other_contracts_can_be_watched_too(service):
    made = (await service.post("/v1/jobs", {"model": "fake", "input": {"kind": "image"}})).body
    await hands.finish(service.deps, names=("a.png",), media_type="image/png")
    state = (await service.get(f"/job/{made['id']}")).body
    assert (state["status"], state["result"]["artifacts"][0]["name"]) == ("COMPLETED", "a.png")


async def test_the_same_key_pays_once_and_gets_the_same_reply(service):
    calling = asyncio.ensure_future(service.post("/video/caption", BODIES["caption"], idempotency_key="order-1"))
    await when_queued(service, hands.finish(service.deps, names=NAMES["caption"]))
    first = await calling
    again = await service.post("/video/caption", BODIES["caption"], idempotency_key="order-1")
    assert (again.status, again.body, again.headers["Idempotency-Replayed"]) == (200, first.body, "true")
    other = await service.post("/video/caption", {**BODIES["caption"], "path": "q/"}, idempotency_key="order-1")
    assert (other.status, other.body["error"]) == (409, "Conflict")


async def test_a_caller_that_leaves_does_not_stop_its_job(service):
    calling = asyncio.ensure_future(service.post("/video/caption", BODIES["caption"]))

    async def leave() -> str:
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        return await hands.finish(service.deps, names=NAMES["caption"])

    job_id = await when_queued(service, leave())
    assert (await service.get(f"/job/{job_id}")).body["status"] == "COMPLETED"


async def test_the_limits_in_force_are_shown_without_secrets(start):
    async with start(x_api_key="sesame", batch_size=3, blocking_limit_s=99) as service:
        config = (await service.get("/runpod/config", x_api_key="sesame")).body
        health = (await service.get("/runpod/health", x_api_key="sesame")).body
    assert (config["maxTimeout"], config["idleTimeout"], config["batchSize"]) == (99, 300, 3)
    assert (config["splitAbove"], config["maxWorkers"], config["maxClipSeconds"]) == (50, 3, 600)
    assert (config["configured"], health["configured"]) == (False, False)
    assert "not configured" in health["message"]
    assert "sesame" not in json.dumps([config, health])


def test_the_documents_examples_are_valid_requests():
    for operation, body in BODIES.items():
        _, warnings = catalog.validate(catalog.get(operation), body)
        assert warnings == ()

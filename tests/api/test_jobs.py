"""The native API over a real server, database and storage."""

from __future__ import annotations

import asyncio
import base64
import json
import zlib

import pytest

from mediamill.jobs.database import Database
from mediamill.jobs.store import JobStore
from mediamill.model import Job
from tests.api import hands
from tests.api.conftest import running

FAKE = {"model": "fake", "input": {"kind": "video", "width": 320, "height": 180}}


async def test_a_job_is_accepted_with_its_place_and_envelope(service):
    answer = await service.post("/v1/jobs", {**FAKE, "metadata": {"order": "A-17"}})
    assert answer.status == 202
    assert answer.headers["Location"] == f"/v1/jobs/{answer.body['id']}"
    assert (answer.body["status"], answer.body["progress"], answer.body["error"]) == ("queued", 0, None)
    assert answer.body["metadata"] == {"order": "A-17"}
    assert answer.body["input"]["duration_s"] == 1.0  # a default, filled in
    later = await service.get(answer.headers["Location"])
    assert later.body == {**answer.body, "position": 0}


async def test_unknown_fields_are_named_in_the_first_reply(service):
    answer = await service.post("/v1/jobs", {"model": "fake", "input": {"widht": 9, "kind": "image"}, "modle": 1})
    assert answer.status == 202
    assert answer.body["warnings"] == ["Unknown field 'modle' was ignored.", "Unknown field 'widht' was ignored."]


async def test_a_finished_job_shows_its_files_and_they_can_be_fetched(service):
    made = (await service.post("/v1/jobs", FAKE)).body
    await hands.finish(service.deps, content=b"moving pictures", output={"seed": 7}, warnings=["slow"])
    job = (await service.get(f"/v1/jobs/{made['id']}")).body
    assert (job["status"], job["progress"], job["output"], job["attempt"]) == ("succeeded", 100, {"seed": 7}, 1)
    (artifact,) = job["artifacts"]
    assert (artifact["width"], artifact["frames"], artifact["size_bytes"]) == (320, 24, 15)
    assert artifact["url"].startswith(service.base_url)
    fetched = await service.get(artifact["url"].removeprefix(service.base_url))
    assert (fetched.status, fetched.body) == (200, b"moving pictures")


async def test_asking_again_is_cheap_while_nothing_changes(service):
    made = (await service.post("/v1/jobs", FAKE)).body
    first = await service.get(f"/v1/jobs/{made['id']}")
    assert first.headers["Retry-After"] == "1"
    again = await service.get(f"/v1/jobs/{made['id']}", if_none_match=first.headers["ETag"])
    assert (again.status, again.body) == (304, b"")
    await hands.finish(service.deps)
    changed = await service.get(f"/v1/jobs/{made['id']}", if_none_match=first.headers["ETag"])
    assert (changed.status, changed.body["status"]) == (200, "succeeded")
    assert "Retry-After" not in changed.headers


async def test_waiting_calls_answer_when_the_job_ends(service):
    creating = asyncio.ensure_future(service.call("POST", "/v1/jobs?wait=30", json=FAKE))
    while not (page := (await service.get("/v1/jobs")).body["data"]):
        await asyncio.sleep(0.01)
    asking = asyncio.ensure_future(service.get(f"/v1/jobs/{page[0]['id']}?wait=30"))
    await asyncio.sleep(0.1)
    await hands.finish(service.deps)
    created, asked = await asyncio.gather(creating, asking)
    assert (created.status, created.body["status"], asked.body) == (200, "succeeded", created.body)


class Counting(JobStore):
    """Counts how often a job is read."""

    reads = 0

    async def get(self, job_id: str, *, position: bool = False) -> Job:
        self.reads += 1
        return await super().get(job_id, position=position)


@pytest.mark.parametrize("path", ["/v1/jobs/{}?wait={}", "/api/v1/generate/{}?wait={}"])
async def test_a_waiting_call_reads_the_job_once_before_it_waits(database_url, tmp_path, path):
    store = Counting(Database(database_url))
    async with store, running(store, tmp_path) as service:
        made = (await service.post("/v1/jobs", FAKE)).body
        while not store.events.connected:  # which wakes all who wait
            assert (await service.get(path.format(made["id"], 0.05))).status == 200
        store.reads = 0
        asking = asyncio.ensure_future(service.get(path.format(made["id"], 30)))
        await asyncio.sleep(0.2)
        before = store.reads
        await hands.finish(service.deps)
        assert ((await asking).status, before) == (200, 1)
        for unknown in ("00000000-0000-7000-8000-000000000000", "nope"):
            assert (await service.get(path.format(unknown, 30))).status == 404


async def test_a_wait_that_is_too_short_answers_with_the_job_as_it_is(service):
    created = await service.call("POST", "/v1/jobs?wait=0.05", json=FAKE)
    assert (created.status, created.body["status"]) == (202, "queued")
    asked = await service.get(f"/v1/jobs/{created.body['id']}?wait=0.05")
    assert (asked.status, asked.body["status"]) == (200, "queued")


async def test_a_queued_job_is_cancelled_at_once_and_an_ended_one_stays(service):
    made = (await service.post("/v1/jobs", FAKE)).body
    cancelled = await service.call("POST", f"/v1/jobs/{made['id']}/cancel")
    assert (cancelled.status, cancelled.body["status"]) == (200, "cancelled")
    second = (await service.post("/v1/jobs", FAKE)).body
    await hands.finish(service.deps)
    unchanged = await service.call("POST", f"/v1/jobs/{second['id']}/cancel")
    assert unchanged.body["status"] == "succeeded"


async def test_lists_come_in_pages_and_can_be_filtered(service):
    made = [
        (await service.post("/v1/jobs", {**FAKE, "metadata": {"n": n, "odd": n % 2 == 1, "tag": f"t{n}"}})).body["id"]
        for n in range(5)
    ]
    await service.call("POST", f"/v1/jobs/{made[0]}/cancel")
    page = (await service.get("/v1/jobs?limit=2")).body
    assert ([j["id"] for j in page["data"]], page["has_more"]) == (made[:2:-1], True)
    assert (page["first_id"], page["last_id"]) == (made[4], made[3])
    rest = (await service.get(f"/v1/jobs?limit=10&after={page['next_cursor']}")).body
    assert ([j["id"] for j in rest["data"]], rest["has_more"], rest["next_cursor"]) == (made[2::-1], False, None)

    async def ids(query: str) -> list[str]:
        return [job["id"] for job in (await service.get(f"/v1/jobs?order=asc&{query}")).body["data"]]

    assert await ids("status=cancelled") == made[:1]
    assert await ids("status=queued&model=fake") == made[1:]
    assert await ids("model=img2vid") == []
    assert await ids("metadata.tag=t3") == made[3:4]
    assert await ids("metadata.n=3") == made[3:4]
    assert await ids("metadata.odd=true") == made[1::2]
    assert await ids("created_after=2999-01-01T00:00:00Z") == []
    assert await ids("created_before=2999-01-01") == made


async def test_the_same_key_and_body_give_the_same_reply_and_one_job(service):
    first = await service.post("/v1/jobs", FAKE, idempotency_key="k-1")
    await hands.finish(service.deps, warnings=["later"])
    again = await service.post("/v1/jobs", FAKE, idempotency_key="k-1")
    assert (again.status, again.body, again.headers["Location"]) == (202, first.body, first.headers["Location"])
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert len((await service.get("/v1/jobs")).body["data"]) == 1


async def test_a_key_used_for_another_body_is_a_conflict(service):
    await service.post("/v1/jobs", FAKE, idempotency_key="k-1")
    for other in (
        {"model": "fake", "input": {"kind": "audio"}},
        {**FAKE, "priority": 3},
        {**FAKE, "metadata": {"a": 1}},
    ):
        answer = await service.post("/v1/jobs", other, idempotency_key="k-1")
        assert (answer.status, answer.body["code"]) == (409, "conflict")


async def test_idempotency_keys_belong_to_the_api_key(start):
    async with start(api_keys="one,two") as service:
        first = await service.post("/v1/jobs", FAKE, idempotency_key="k", x_api_key="one")
        second = await service.post("/v1/jobs", FAKE, idempotency_key="k", x_api_key="two")
        again = await service.post("/v1/jobs", FAKE, idempotency_key="k", authorization="Bearer one")
    assert first.body["id"] != second.body["id"]
    assert again.body == first.body


async def test_a_job_can_be_followed(service):
    made = (await service.post("/v1/jobs", FAKE)).body
    seen = []
    async with service.http.get(f"{service.base_url}/v1/jobs/{made['id']}/events") as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        async for line in stream.content:
            if line.startswith(b"data:"):
                seen.append(json.loads(line[5:])["status"])
                if len(seen) == 1:
                    await hands.finish(service.deps)
    assert (seen[0], seen[-1]) == ("queued", "succeeded")


def picture(size: int = 64) -> bytes:
    """A small real PNG."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    rows = b"".join(b"\0" + bytes([i, 128, 200]) * size for i in range(size))
    header = size.to_bytes(4) * 2 + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def stills(*values: str) -> dict:
    return {"images": [{"id": str(i), "image_url": v, "duracao": 1} for i, v in enumerate(values)], "path": "a/b/"}


async def test_base64_goes_to_storage_and_the_row_holds_a_reference(service):
    encoded = base64.b64encode(picture()).decode()
    body = {"model": "img2vid", "input": stills(f"data:image/png;base64,{encoded}", "https://example.com/a.jpg")}
    answer = await service.post("/v1/jobs", body)
    assert answer.status == 202, answer.body
    staged, kept = (image["image_url"] for image in answer.body["input"]["images"])
    assert kept == "https://example.com/a.jpg"
    assert staged.startswith(f"file:uploads/{answer.body['id']}/")
    stored = await service.deps.storage.stat(staged.removeprefix("file:"))
    assert (stored.media_type, stored.size_bytes) == ("image/png", len(picture()))


async def test_what_became_no_job_leaves_nothing_in_storage(service):
    encoded = base64.b64encode(picture()).decode()
    body = {"model": "img2vid", "input": stills(encoded)}
    first = await service.post("/v1/jobs", body, idempotency_key="k")
    await service.post("/v1/jobs", body, idempotency_key="k")
    other = {"model": "img2vid", "input": stills(base64.b64encode(picture(32)).decode())}
    assert (await service.post("/v1/jobs", other, idempotency_key="k")).status == 409
    keys = [key async for key, _ in service.deps.storage.list("uploads/")]
    assert [key.split("/")[1] for key in keys] == [first.body["id"]]


async def test_models_say_what_they_take(service):
    models = {m["name"]: m for m in (await service.get("/v1/models")).body["data"]}
    assert {"fake", "img2vid", "caption", "addaudio"} <= set(models)
    fake = (await service.get("/v1/models/fake")).body
    assert fake == models["fake"]
    assert fake["input_schema"]["properties"]["width"]["maximum"] == 4096
    assert (fake["pool"], fake["output_kind"]) == ("cpu", "video")
    for example in fake["examples"]:
        assert (await service.post("/v1/jobs", {"model": "fake", "input": example})).status == 202


async def test_generative_models_run_in_the_cpu_pool_where_they_are_faked(start):
    async with start(fake_engines="all") as service:
        models = (await service.get("/v1/models")).body["data"]
    assert {m["pool"] for m in models} == {"cpu"}
    assert next(m for m in models if m["name"] == "fake")["fake"]


@pytest.mark.parametrize("path", ["/v1/jobs/x", "/v1/jobs/00000000-0000-7000-8000-000000000000", "/v1/models/nope"])
async def test_what_is_not_there_is_404(service, path):
    answer = await service.get(path)
    assert (answer.status, answer.body["code"], answer.headers["Content-Type"]) == (
        404,
        "not_found",
        "application/problem+json",
    )


async def test_waiting_calls_end_at_once_when_the_service_stops(service):
    made = (await service.post("/v1/jobs", FAKE)).body
    asking = asyncio.ensure_future(service.get(f"/v1/jobs/{made['id']}?wait=50"))
    blocked = asyncio.ensure_future(service.post("/video/img2vid", stills("https://example.com/a.jpg")))
    while len((await service.get("/v1/jobs")).body["data"]) < 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    service.stop.set()
    asked, refused = await asyncio.gather(asking, blocked)
    assert (asked.status, asked.body["status"]) == (200, "queued")
    assert (refused.status, refused.body["error"]) == (503, "Service Unavailable")
    job = await service.deps.store.get(refused.body["jobId"])
    assert job.status == "queued"


@pytest.mark.parametrize(
    ("routes", "up", "status", "missing"),
    [
        ({}, {}, (503, "no worker is up"), ["cpu", "gpu"]),
        ({}, {"cpu": 3, "gpu": 1}, (200, "ready"), []),
        ({}, {"cpu": 3}, (200, "ready"), ["gpu"]),
        ({"zimage": "runpod"}, {"cpu": 3}, (200, "ready"), ["gpu", "remote"]),
        ({"zimage": "runpod"}, {"cpu": 3, "gpu": 1, "remote": 90}, (200, "ready"), []),
    ],
)
async def test_ready_says_which_pools_are_up_and_which_have_models_and_are_not(start, routes, up, status, missing):
    runpod = {"runpod_api_key": "rpa_k", "runpod_endpoint_id": "ep"} if routes else {}
    async with start(routes=routes, **runpod) as service:
        for pool, slots in up.items():
            await service.deps.store.announce(f"{pool} one", pool=pool, slots=1, version="1")
            await service.deps.store.announce(f"{pool} more", pool=pool, slots=slots - 1, version="1")
        ready = await service.get("/ready")
    assert (ready.status, ready.body) == (status[0], {"status": status[1], "pools": up, "missing": missing})


async def test_each_request_has_an_id_and_a_log_line_without_its_query(service, caplog):
    caplog.set_level("INFO", logger="mediamill.api")
    named = await service.get("/v1/jobs?after=secret-cursor", x_request_id="mine-1")
    assert named.headers["X-Request-ID"] == "mine-1"
    made = await service.post("/v1/jobs", FAKE, x_request_id="not ok\t")
    assert made.headers["X-Request-ID"] != "not ok\t"
    lines = [record.getMessage() for record in caplog.records if record.name == "mediamill.api"]
    assert any("request_id=mine-1" in line for line in lines)
    assert any(f"job_id={made.body['id']}" in line for line in lines)
    assert not any("secret-cursor" in line for line in lines)


async def test_a_caller_writes_no_log_line_of_its_own(service, caplog):
    caplog.set_level("INFO", logger="mediamill.api")
    await service.get("/v1/jobs/x%0aERROR%20forged%1b[31m")
    await service.get(f"/v1/jobs/{'y' * 3000}")
    lines = [record.getMessage() for record in caplog.records if record.name == "mediamill.api"]
    assert [line for line in lines if not line.isprintable()] == []
    assert max(len(line) for line in lines) < 500


async def test_a_caller_that_leaves_while_it_sends_is_no_fault_of_ours(service, caplog):
    caplog.set_level("INFO", logger="mediamill.api")
    host, _, port = service.base_url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    async with asyncio.timeout(30):
        while not (
            lines := [r for r in caplog.records if r.name == "mediamill.api" and "'/v1/jobs'" in r.getMessage()]
        ):
            await asyncio.sleep(0.02)
    assert [(line.levelname, " 499 " in line.getMessage()) for line in lines] == [("INFO", True)]
    assert not any(record.exc_info for record in caplog.records)


async def test_lossless_strings_are_taken_around_the_input_too(service):
    for priority in ("5", 5.0, " 5 "):
        answer = await service.post("/v1/jobs", {**FAKE, "priority": priority})
        assert answer.status == 202, answer.body
    for priority in ("5.5", 5.5, "five", [5]):
        answer = await service.post("/v1/jobs", {**FAKE, "priority": priority})
        assert (answer.status, answer.body["errors"][0]["pointer"]) == (400, "/priority")


async def test_probes_and_browsers_find_something_at_the_usual_places(service):
    root = await service.get("/")
    assert (root.status, root.headers["Location"]) == (307, "/docs")
    assert (await service.call("HEAD", "/health")).status == 200
    assert (await service.call("HEAD", "/ready")).status == 503

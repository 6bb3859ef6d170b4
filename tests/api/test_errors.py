"""Every error reply, in each contract's own shape."""

from __future__ import annotations

import asyncio
import errno
import io
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from mediamill import plugins
from mediamill.api.errors import STATUS, ContractRouter, ErrorShapes, as_error, retry_after_s
from mediamill.api.waiting import wait_or_timeout
from mediamill.catalog import MAX_DETAILS
from mediamill.errors import Busy, MediamillError, RetryLater, StorageRefused, StoreUnavailable, every_class
from mediamill.jobs.database import Database, Limits
from mediamill.jobs.store import JobStore, new_id
from mediamill.model import Job, Status
from tests.api import hands
from tests.api.conftest import running
from tests.video_contract import REQUIRED

FAKE = {"model": "fake", "input": {"kind": "video"}}
CAPTION = {
    "url_video": "https://example.com/v.mp4",
    "url_srt": "https://example.com/s.srt",
    "path": "a/",
    "output_filename": "clip.mp4",
}
STILL = {"id": "1", "image_url": "https://example.com/a.jpg", "duracao": 1}


@dataclass(frozen=True)
class Row:
    """A request and the error it must get. `where`: paths of the details or pointers."""

    method: str
    path: str
    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    where: set[str] | None = None
    says: str = ""


def still(**changes: Any) -> dict:
    return {"images": [{**STILL, **changes}], "path": "a/"}


NATIVE = [
    Row("GET", "/v1/nothing", 404),
    Row("GET", "/v1/jobs/unknown", 404, says="'unknown'"),
    Row("POST", "/v1/jobs/unknown/cancel", 404),
    Row("GET", "/v1/jobs/unknown/events", 404),
    Row("GET", "/v1/jobs/unknown/webhook", 404),
    Row("POST", "/v1/jobs/unknown/webhook/replay", 404),
    Row("GET", "/v1/models/unknown", 404, says="fake"),
    Row("DELETE", "/v1/jobs", 405, says="GET, POST"),
    Row("PUT", "/health", 405, says="GET"),
    Row("POST", "/v1/jobs", 415, raw=b"{}", headers={"Content-Type": "text/plain"}, says="application/json"),
    Row("POST", "/v1/jobs", 415, raw=b"{}", headers={"Content-Type": "application/x-www-form-urlencoded"}),
    Row("POST", "/v1/files", 415, body={}, says="multipart/form-data"),
    Row("POST", "/v1/jobs", 400, raw=b"", says="not valid JSON"),
    Row("POST", "/v1/jobs", 400, raw=b'{"model": "fake"', says="not valid JSON"),
    Row("POST", "/v1/jobs", 400, raw=b"[1]", says="object"),
    Row("POST", "/v1/jobs", 400, raw=b'{"model": NaN}'),
    Row("POST", "/v1/jobs", 400, raw=b'{"a":' * 5000, says="not valid JSON"),
    Row("POST", "/v1/jobs", 400, raw=b'{"a": "\\ud800"}'),
    Row("POST", "/v1/jobs", 413, raw=b'{"a": [' + b"0," * 150_000 + b"0]}", says="values"),
    Row("POST", "/v1/jobs", 413, raw=b'{"a": "' + b"x" * 2_000_000 + b'"}', says="bytes"),
    Row("POST", "/v1/jobs", 400, body={}, where={"/model"}),
    Row("POST", "/v1/jobs", 400, body={"model": "nope"}, where={"/model"}, says="fake"),
    Row("POST", "/v1/jobs", 400, body={"model": "fake", "input": []}, where={"/input"}),
    Row(
        "POST",
        "/v1/jobs",
        400,
        body={"model": "fake", "input": {"width": 1, "height": "x", "fps": None}},
        where={"/input/width", "/input/height", "/input/fps"},
    ),
    Row("POST", "/v1/jobs", 400, body={**FAKE, "priority": 1000}, where={"/priority"}),
    Row("POST", "/v1/jobs", 400, body={**FAKE, "priority": True}, where={"/priority"}),
    Row("POST", "/v1/jobs", 400, body={"model": "fake", "input": {"seed": True}}, where={"/input/seed"}),
    Row("POST", "/v1/jobs", 400, body={**FAKE, "metadata": {"x": "y" * 20_000}}, where={"/metadata"}, says="16384"),
    Row("POST", "/v1/jobs", 400, raw=b'{"model": "fake", "metadata": {"x": 1e999}}', where={"/metadata"}),
    Row("POST", "/v1/jobs", 400, body={**FAKE, "webhook_url": "ftp://example.com"}, where={"/webhook_url"}),
    Row("POST", "/v1/jobs", 400, body={**FAKE, "webhook_url": "http://127.0.0.1/h"}, where={"/webhook_url"}),
    Row("POST", "/v1/jobs", 400, body={"model": "fake", "input": {"misbehave": "hang"}}, where={"/input/misbehave"}),
    Row(
        "POST",
        "/v1/jobs",
        400,
        body={"model": "img2vid", "input": still(image_url="http://169.254.169.254/")},
        where={"/input/images/0/image_url"},
    ),
    Row("POST", "/v1/jobs", 400, body={"model": "img2vid", "input": still(image_url="file:///etc/passwd")}),
    Row("POST", "/v1/jobs", 400, body=FAKE, headers={"Idempotency-Key": "a b"}, where={"/Idempotency-Key"}),
    Row("POST", "/v1/jobs", 400, body=FAKE, headers={"Idempotency-Key": "x" * 300}),
    Row("POST", "/v1/jobs?wait=-1", 400, body=FAKE, where={"/wait"}),
    Row("GET", "/v1/jobs?limit=0", 400, where={"/limit"}),
    Row("GET", "/v1/jobs?limit=x&order=up&status=done", 400, where={"/limit", "/order", "/status"}),
    Row("GET", "/v1/jobs?after=!!", 400, where={"/after"}),
    Row("GET", "/v1/jobs?created_after=yesterday", 400, where={"/created_after"}),
    Row("GET", "/v1/jobs?created_after=0001-01-01T00:00:00%2B14:00", 400, where={"/created_after"}),
    Row("GET", "/v1/jobs?created_before=9999-12-31T23:59:59-14:00", 400, where={"/created_before"}),
    Row("GET", "/v1/jobs?model=%00", 400, where={"/model"}),
    Row("GET", "/files/nothing/here.mp4", 401),
    Row("GET", "/files/outputs/01a21830-8c40-7d13-a023-9f057fdc488c/no.mp4", 404),
    Row("GET", "/v1/jobs", 403, headers={"Host": "evil.example"}, says="Host"),
    Row("POST", "/v1/jobs", 403, body=FAKE, headers={"Origin": "https://evil.example"}, says="origin"),
]

VIDEO = [
    Row("POST", "/video/img2vid", 400, body={}, says=REQUIRED["img2vid"], where={"images", "path"}),
    Row("POST", "/video/img2vid", 400, body={"images": [], "path": "a/"}, says=REQUIRED["img2vid"], where={"images"}),
    Row("POST", "/video/img2vid", 400, body={"images": {}, "path": "a/"}, says=REQUIRED["img2vid"]),
    Row("POST", "/video/caption", 400, body={}, says=REQUIRED["caption"]),
    Row("POST", "/video/addaudio", 400, body={"path": ""}, says=REQUIRED["addaudio"]),
    Row(
        "POST",
        "/video/img2vid",
        400,
        body={"images": [{}, {**STILL, "duracao": "long"}], "path": 3},
        where={"images.0.id", "images.0.image_url", "images.0.duracao", "images.1.duracao", "path"},
    ),
    Row("POST", "/video/img2vid", 400, body=still(duracao=0), where={"images.0.duracao"}),
    Row("POST", "/video/img2vid", 400, body=still(duracao=-1), where={"images.0.duracao"}),
    Row("POST", "/video/img2vid", 400, body=still(duracao=1e9), where={"images.0.duracao"}),
    Row("POST", "/video/img2vid", 400, raw=json.dumps(still(duracao=float("nan"))).encode()),
    Row("POST", "/video/img2vid", 400, body=still(image_url="http://127.0.0.1/a.jpg"), where={"images.0.image_url"}),
    Row("POST", "/video/img2vid", 400, body=still(image_url="file:///etc/passwd"), where={"images.0.image_url"}),
    Row("POST", "/video/img2vid", 400, body={**still(), "webhook_url": "gopher://x"}, where={"webhook_url"}),
    Row("POST", "/video/img2vid", 400, body={**still(), "path": "a/../../b/"}, where={"path"}),
    Row("POST", "/video/img2vid", 400, body={**still(), "path": "a/\n/"}, where={"path"}),
    Row("POST", "/video/img2vid", 400, body={"images": [STILL, STILL], "path": "a/"}, says="id"),
    Row("POST", "/video/caption", 400, body={**CAPTION, "output_filename": "a/b.mp4"}, where={"output_filename"}),
    Row("POST", "/video/caption", 400, body={**CAPTION, "output_filename": "clip"}, where={"output_filename"}),
    Row("POST", "/video/caption", 400, body={**CAPTION, "output_filename": "../c.mp4"}, where={"output_filename"}),
    Row("POST", "/video/img2vid", 415, raw=b"{}", headers={"Content-Type": "text/plain"}),
    Row("POST", "/video/img2vid", 413, raw=b'{"a": "' + b"x" * 2_000_000 + b'"}'),
    Row("POST", "/video/img2vid", 400, raw=b"nonsense"),
    Row("GET", "/video/img2vid", 405),
    Row("POST", "/video/unknown", 404),
    Row("GET", "/job/unknown", 404),
    Row("POST", "/job/unknown/cancel", 404),
    Row("GET", "/runpod/unknown", 404),
]


async def answers(service, rows: list[Row]):
    for row in rows:
        options: dict[str, Any] = {"headers": {"Content-Type": "application/json", **row.headers}}
        options |= {"data": row.raw} if row.raw is not None else {"json": row.body} if row.body is not None else {}
        yield row, await service.call(row.method, row.path, **options)


async def test_native_errors_are_problem_details(start):
    async with start(max_body_bytes=1_000_000) as service:
        async for row, answer in answers(service, NATIVE):
            about = f"{row} -> {answer}"
            assert answer.status == row.status, about
            assert answer.headers["Content-Type"] == "application/problem+json", about
            body = answer.body
            assert body.keys() >= {"type", "title", "status", "detail", "code", "errors", "request_id"}, about
            assert (body["status"], body["request_id"]) == (row.status, answer.headers["X-Request-ID"])
            assert STATUS[body["code"]] == row.status, about
            assert row.says in body["detail"], about
            if row.where is not None:
                assert {e["pointer"] for e in body["errors"]} == row.where, about
        assert (await service.get("/v1/jobs")).body["data"] == []  # nothing of all that was queued


async def test_video_errors_have_the_documents_envelope(start):
    async with start(max_body_bytes=1_000_000) as service:
        async for row, answer in answers(service, VIDEO):
            about = f"{row} -> {answer}"
            assert answer.status == row.status, about
            assert set(answer.body) - {"details"} == {"error", "message"}, about
            assert row.says in answer.body["message"], about
            if row.where is not None:
                assert {d["path"] for d in answer.body["details"]} == row.where, about
        assert (await service.get("/v1/jobs")).body["data"] == []


async def test_no_key_or_a_wrong_one_is_401_in_each_contracts_shape(start):
    async with start(x_api_key="right") as service:
        for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}):
            for path in ("/v1/jobs", "/v1/models", "/nowhere"):
                answer = await service.call("GET", path, headers=headers)
                assert (answer.status, answer.body["code"]) == (401, "unauthorized")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
            for path in ("/video/img2vid", "/job/x/cancel"):
                answer = await service.call("POST", path, headers=headers, json={})
                assert (answer.status, answer.body["error"]) == (401, "Unauthorized")
        assert (await service.get("/v1/jobs", x_api_key="right")).status == 200


FAILURES = {
    "unsupported_media": 422,
    "input_unreachable": 422,
    "too_large": 413,
    "engine_failed": 500,
    "out_of_memory": 500,
    "crashed": 500,
    "deadline_exceeded": 504,
    "a_code_of_a_newer_worker": 500,
}


async def test_a_job_that_fails_gives_the_blocking_call_its_own_error(service):
    for code, status in FAILURES.items():
        waiting = service.post("/video/img2vid", still())
        answer, job_id = await together(
            service, waiting, lambda code=code: hands.fail(service.deps, code, "The reason.")
        )
        assert (code, answer.status, answer.body["message"]) == (code, status, "The reason.")
        assert answer.body["jobId"] == job_id
        job = (await service.get(f"/v1/jobs/{job_id}")).body
        assert job["error"] == {"code": code, "message": "The reason."}


async def together(service, call, then):
    """Start a call, and when its job waits do `then`; both results."""
    waiting = asyncio.ensure_future(call)
    while not (await service.get("/v1/jobs?status=queued")).body["data"]:
        await asyncio.sleep(0.01)
    done = await then()
    return await waiting, done


async def test_a_blocking_call_whose_job_is_cancelled_is_409(service):
    async def cancel():
        job_id = (await service.get("/v1/jobs")).body["data"][0]["id"]
        return await service.call("POST", f"/job/{job_id}/cancel")

    answer, cancelled = await together(service, service.post("/video/img2vid", still()), cancel)
    assert (answer.status, answer.body["error"]) == (409, "Conflict")
    assert cancelled.body == {"jobId": answer.body["jobId"], "status": "CANCELLED"}


async def test_a_blocking_call_that_takes_too_long_is_504_and_the_job_goes_on(start):
    async with start(blocking_limit_s=0.1) as service:
        answer = await service.post("/video/img2vid", still())
        assert (answer.status, answer.body["error"]) == (504, "Gateway Timeout")
        assert (await service.get(f"/job/{answer.body['jobId']}")).body["status"] == "IN_QUEUE"


async def test_a_full_queue_is_503_with_retry_after_and_queues_nothing(start):
    async with start(max_queued=2) as service:
        accepted = [await service.post("/v1/jobs", FAKE) for _ in range(2)]
        assert [a.status for a in accepted] == [202, 202]
        refused = await service.post("/v1/jobs", FAKE)
        assert (refused.status, refused.body["code"], refused.headers["Retry-After"]) == (503, "busy", "30")
        shaped = await service.post("/video/img2vid", still())
        assert (shaped.status, shaped.body["error"], shaped.headers["Retry-After"]) == (
            503,
            "Service Unavailable",
            "30",
        )
        await hands.finish(service.deps)
        assert (await service.post("/v1/jobs", FAKE)).status == 202


async def test_a_caller_with_too_many_unfinished_jobs_is_429_and_others_are_not(start):
    async with start(max_unfinished=2, x_api_key="one", auth_token="two") as service:
        accepted = [await service.post("/v1/jobs", FAKE, x_api_key="one", idempotency_key=f"k{n}") for n in range(2)]
        assert [a.status for a in accepted] == [202, 202]
        refused = await service.post("/v1/jobs", FAKE, x_api_key="one")
        assert (refused.status, refused.body["code"], refused.headers["Retry-After"]) == (429, "too_many", "10")
        assert "MEDIAMILL_MAX_UNFINISHED" not in refused.body["detail"]
        assert "2" in refused.body["detail"]
        shaped = await service.post("/video/img2vid", still(), x_api_key="one")
        assert (shaped.status, shaped.body["error"], shaped.headers["Retry-After"]) == (
            429,
            "Too Many Requests",
            "10",
        )
        again = await service.post("/v1/jobs", FAKE, x_api_key="one", idempotency_key="k1")
        assert (again.status, again.body["id"]) == (202, accepted[1].body["id"]), "a repeat asks for nothing new"
        assert (await service.post("/v1/jobs", FAKE, x_api_key="two")).status == 202
        await hands.finish(service.deps)
        assert (await service.post("/v1/jobs", FAKE, x_api_key="one")).status == 202


async def test_a_repeat_with_its_key_is_answered_even_where_nothing_new_is_taken(start):
    async with start(max_queued=1) as service:
        first = await service.post("/v1/jobs", FAKE, idempotency_key="k")
        assert (await service.post("/v1/jobs", FAKE)).status == 503
        again = await service.post("/v1/jobs", FAKE, idempotency_key="k")
        assert (again.status, again.body, again.headers["Idempotency-Replayed"]) == (202, first.body, "true")
        other = await service.post("/v1/jobs", {**FAKE, "priority": 1}, idempotency_key="k")
        assert other.status == 409


async def test_a_full_disk_is_503_before_anything_is_written(start):
    async with start(storage_mode="file", reserve_bytes=2**62) as service:
        for answer in (
            await service.post("/v1/jobs", FAKE),
            await service.call("POST", "/v1/files", data={"file": io.BytesIO(b"x")}),
        ):
            assert (answer.status, answer.body["code"], answer.headers["Retry-After"]) == (503, "busy", "60")
        assert (await service.get("/v1/jobs")).body["data"] == []


async def test_a_database_that_is_away_is_503_and_says_nothing_of_its_address(tmp_path):
    away = JobStore(Database("postgresql://someone@127.0.0.1:1/nowhere", limits=Limits(connect_s=1)))
    async with running(away, tmp_path) as service:
        for answer in (
            await service.post("/v1/jobs", FAKE),
            await service.get("/ready"),
            await service.get("/v1/jobs/x"),
        ):
            if answer.status == 404:  # an id that cannot be one needs no database
                continue
            assert (answer.status, answer.body["code"], "127.0.0.1" in json.dumps(answer.body)) == (
                503,
                "store_unavailable",
                False,
            )
            assert int(answer.headers["Retry-After"]) > 0
        assert (await service.get("/health")).status == 200
    await away.close()


async def test_a_wait_sits_out_a_database_that_is_away_and_then_names_the_job(tmp_path):
    away = JobStore(Database("postgresql://someone@127.0.0.1:1/nowhere", limits=Limits(connect_s=1)))
    job = Job(id=new_id(), model="fake", status=Status.QUEUED, input={}, created_at=datetime.now(UTC))
    async with running(away, tmp_path) as service:
        with pytest.raises(StoreUnavailable) as caught:
            await wait_or_timeout(service.deps, job, 0.7)
    assert caught.value.job_id == job.id
    await away.close()


async def test_a_body_of_zeros_names_no_more_than_can_be_read(start):
    zeros = b'{"images": [' + b"0," * 2_000_000 + b'0], "path": "a/"}'
    most = b'{"images": [' + b"0," * 90_000 + b'0], "path": "a/"}'
    async with start() as service:
        for raw, status in ((zeros, 413), (most, 400)):
            answer = await service.call(
                "POST", "/video/img2vid", data=raw, headers={"Content-Type": "application/json"}
            )
            assert (answer.status, len(answer.body.get("details", ())) <= MAX_DETAILS) == (status, True)
            assert len(json.dumps(answer.body)) < 1_000_000


def routers() -> list[ContractRouter]:
    return [module.router for module in plugins.load_all("api.routes").values()]


def test_every_error_has_a_status_and_a_body_in_every_contract():
    for cls in every_class():
        error = cls()
        error.job_id = "j1"
        for router in routers():
            status = router.statuses[cls.code]
            assert status in {400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 500, 501, 503, 504}
            body = json.dumps(dict(router.error_reply(error, status)))
            assert error.message in body, (router.covers, cls)


def test_no_two_contracts_claim_the_same_paths_in_different_shapes():
    shapes: dict[str, Any] = {}
    for router in routers():
        for prefix in router.covers:
            assert shapes.setdefault(prefix, router.error_reply) is router.error_reply, prefix
    assert "" in shapes


def test_every_route_lies_under_what_its_router_covers():
    for name, module in plugins.load_all("api.routes").items():
        for route in module.router.routes:
            assert any(route.path.startswith(prefix) for prefix in module.router.covers), (name, route.path)


@pytest.mark.parametrize(
    ("exc", "code"),
    [
        (HTTPException(404), "not_found"),
        (HTTPException(405, headers={"Allow": "GET"}), "method_not_allowed"),
        (HTTPException(400, "odd"), "invalid_request"),
        (HTTPException(502), "internal"),
        (RequestValidationError([]), "invalid_request"),
        (ConnectionResetError("secret"), "busy"),
        (TimeoutError(), "busy"),
        (OSError(errno.ENOSPC, "secret"), "busy"),
        (OSError(errno.EIO, "secret"), "internal"),
        (ZeroDivisionError("secret"), "internal"),
    ],
)
def test_what_others_raise_becomes_one_of_ours_and_tells_nothing(exc, code):
    error = as_error(exc)
    assert (error.code, "secret" in error.message) == (code, False)


def test_installation_details_are_for_the_log_only():
    shapes = ErrorShapes(routers())
    for error in (StorageRefused("The folder '/srv/private' is full."), StoreUnavailable("no answer from 10.0.0.5")):
        body = json.loads(bytes(shapes.response("/v1/jobs", error, request_id="r").body))
        assert not any(secret in json.dumps(body) for secret in ("/srv/private", "10.0.0.5"))
        assert body["code"] == error.code


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(Busy(delay_s=0.2), 1), (Busy(delay_s=60), 60), (RetryLater(delay_s=2.5), 3), (MediamillError(), 5)],
)
def test_retry_after_is_in_whole_seconds(error, seconds):
    assert retry_after_s(error) == seconds

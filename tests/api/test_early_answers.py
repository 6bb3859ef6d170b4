"""Answers that are known before the whole body has come: the caller gets them, however it sends."""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from mediamill.api.lingering import MAX_DISCARDED_BYTES, Lingering

BIG = 24 * 1024**2
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
FORM_HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
JSON = {"Content-Type": "application/json"}
KEY = {"X-API-Key": "k"}


def chunks(head: bytes = b"") -> Iterator[bytes]:
    yield head
    for _ in range(BIG // 1024**2):
        yield bytes(1024**2)


def by_urllib(url: str, body: bytes | Iterator[bytes], headers: dict[str, str]) -> tuple[int, str]:
    """It asks for the connection to be closed, and reads nothing before it has sent everything."""
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    with caught.value as answer:
        return answer.status, json.load(answer)["code"]


@pytest.mark.parametrize(
    ("path", "headers", "body", "says"),
    [
        ("/v1/jobs", {**JSON, **KEY}, b'{"a": "' + bytes(BIG), (413, "too_large")),
        ("/v1/jobs", {**JSON, **KEY}, None, (413, "too_large")),
        ("/v1/files", {**FORM, **KEY}, FORM_HEAD + bytes(BIG), (413, "too_large")),
        ("/v1/files", {**FORM, **KEY}, None, (413, "too_large")),
        ("/v1/files", {**JSON, **KEY}, bytes(BIG), (415, "unsupported_content_type")),
        ("/v1/files", FORM, FORM_HEAD + bytes(BIG), (401, "unauthorized")),
        ("/v1/nothing", {**JSON, **KEY}, bytes(BIG), (404, "not_found")),
    ],
    ids=["announced", "chunked", "upload", "chunked-upload", "wrong-type", "no-key", "no-path"],
)
async def test_a_caller_that_sends_all_before_it_reads_gets_the_answer(start, path, headers, body, says):
    async with start(x_api_key="k", max_body_bytes=1000, max_upload_bytes=1000) as service:
        sent = body or chunks(FORM_HEAD if headers["Content-Type"] == FORM["Content-Type"] else b"")
        assert await asyncio.to_thread(by_urllib, service.base_url + path, sent, headers) == says


def kept_open(host: str, body: bytes) -> list[tuple[int, str | None]]:
    """Two calls over one connection: status, and what is said about the connection."""
    connection = http.client.HTTPConnection(host, timeout=30)
    told = []
    for _ in range(2):
        connection.request("POST", "/v1/nothing", body=body, headers=JSON)
        answer = connection.getresponse()
        answer.read()
        told.append((answer.status, answer.headers["Connection"]))
    connection.close()
    return told


async def test_a_connection_goes_on_after_a_small_body_that_nobody_read_and_ends_after_a_large_one(service):
    host = service.base_url.removeprefix("http://")
    assert await asyncio.to_thread(kept_open, host, b"{}") == [(404, None)] * 2
    assert await asyncio.to_thread(kept_open, host, bytes(BIG)) == [(404, "close")] * 2


async def test_who_asked_before_sending_is_not_waited_for(start):
    async with start(max_body_bytes=1000) as service:
        reader, writer = await asyncio.open_connection(*service.base_url.removeprefix("http://").split(":"))
        writer.write(
            b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 5000\r\nExpect: 100-continue\r\n\r\n"
        )
        answer = await reader.read()  # to the end of the connection
        writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer
    assert b"100 Continue" not in answer


async def answered(messages: list[dict], headers: list[tuple[bytes, bytes]], *, quiet_s: float = 5.0):
    """An answer of three bytes through `Lingering`; what went out, and how much of the body was taken before the end."""
    out: list[dict] = []
    taken = 0
    waiting = iter(messages)

    async def receive() -> dict:
        nonlocal taken
        message = next(waiting, None)
        if message is None:
            await asyncio.Event().wait()
        taken += len(message["body"])
        return message

    async def send(message: dict) -> None:
        out.append(message)

    edge = Lingering({"type": "http", "headers": headers}, receive, send, quiet_s=quiet_s)
    await edge.send({"type": "http.response.start", "status": 413, "headers": []})
    await edge.send({"type": "http.response.body", "body": b"no!"})
    return out, taken


async def test_what_never_ends_is_read_only_so_far():
    endless = [{"type": "http.request", "body": bytes(16 * 1024**2), "more_body": True}] * 1000
    out, taken = await answered(endless, [(b"transfer-encoding", b"chunked")])
    assert (b"connection", b"close") in out[0]["headers"]
    assert [(m["body"], m["more_body"]) for m in out[1:]] == [(b"no!", True), (b"", False)]
    assert MAX_DISCARDED_BYTES <= taken < MAX_DISCARDED_BYTES + 32 * 1024**2


async def test_who_falls_silent_is_left():
    begun = [{"type": "http.request", "body": b"abc", "more_body": True}]
    out, taken = await answered(begun, [(b"content-length", b"100000")], quiet_s=0.01)
    assert (taken, out[-1]["more_body"]) == (3, False)

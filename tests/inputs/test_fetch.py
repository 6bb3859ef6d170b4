"""Downloads against servers that drop, stall, lie and change their minds."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os

import pytest

from mediamill.errors import InputUnreachable, TooLarge
from mediamill.inputs import UrlGuard
from mediamill.inputs.fetch import Fetched, Limits, Validators, fetch
from tests.fixtures_web import Page, WebServer

BODY = os.urandom(300_000)


async def fetched(
    guard: UrlGuard,
    url: str,
    *,
    max_bytes: int = 10**6,
    timeout_s: float = 20,
    stall_s: float = 5,
    known: Validators | None = None,
) -> tuple[Fetched, bytes]:
    file = io.BytesIO()
    limits = Limits(max_bytes, timeout_s, stall_s, pause_s=0.01)
    result = await fetch(guard, url, file, name="image_url", limits=limits, known=known)
    return result, file.getvalue()


async def test_the_bytes_and_their_digest(guard: UrlGuard, web_server: WebServer) -> None:
    page = Page(BODY, etag='"1"')
    result, content = await fetched(guard, web_server.url("/x", page))
    assert content == BODY
    assert (result.size_bytes, result.sha256) == (len(BODY), hashlib.sha256(BODY).hexdigest())
    assert result.validators == Validators(etag='"1"')
    assert page.requests[0]["Accept-Encoding"] == "identity"


async def test_a_dropped_download_is_resumed_where_it_broke_off(guard: UrlGuard, web_server: WebServer) -> None:
    page = Page(BODY, etag='"1"', drop_after_bytes=100_000, drops=2)
    result, content = await fetched(guard, web_server.url("/x", page))
    assert content == BODY
    assert result.sha256 == hashlib.sha256(BODY).hexdigest()
    assert [r.get("Range") for r in page.requests] == [None, "bytes=100000-", "bytes=200000-"]
    assert page.requests[1]["If-Range"] == '"1"'


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
async def test_without_a_strong_version_it_starts_again(
    guard: UrlGuard, web_server: WebServer, etag: str | None
) -> None:
    page = Page(BODY, etag=etag, drop_after_bytes=100_000)
    _, content = await fetched(guard, web_server.url("/x", page))
    assert content == BODY
    assert [r.get("Range") for r in page.requests] == [None, None]


async def test_a_file_that_changed_meanwhile_is_never_mixed(guard: UrlGuard, web_server: WebServer) -> None:
    page = Page(BODY, etag='"1"', drop_after_bytes=100_000)
    url = web_server.url("/x", page)
    task = asyncio.create_task(fetched(guard, url))
    await page.asked.wait()
    page.content, page.etag = BODY[::-1], '"2"'
    result, content = await task
    assert content == BODY[::-1]
    assert result.validators.etag == '"2"'


async def test_a_part_that_was_not_asked_for_is_not_glued_on(guard: UrlGuard, web_server: WebServer) -> None:
    page = Page(BODY, etag='"1"', drop_after_bytes=100_000, range_shift=1000)
    _, content = await fetched(guard, web_server.url("/x", page))
    assert content == BODY
    assert [r.get("Range") for r in page.requests] == [None, "bytes=100000-", None]


async def test_passing_failures_are_tried_again(guard: UrlGuard, web_server: WebServer) -> None:
    page = Page(BODY, fail_first=2)
    assert (await fetched(guard, web_server.url("/x", page)))[1] == BODY
    assert len(page.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_a_refusal_is_final_and_says_who_refused(guard: UrlGuard, web_server: WebServer, status: int) -> None:
    page = Page(status=status)
    url = web_server.url("/secret-path", page).replace("//", "//user:hunter2@") + "?token=s3cret"
    with pytest.raises(InputUnreachable) as failed:
        await fetched(guard, url)
    assert failed.value.message == f"image_url: 127.0.0.1 answered HTTP {status}."
    assert len(page.requests) == 1


async def test_a_failure_that_stays_is_reported_after_some_tries(guard: UrlGuard, web_server: WebServer) -> None:
    page = Page(status=503)
    with pytest.raises(InputUnreachable, match=r"^image_url: 127.0.0.1 answered HTTP 503 \(4 tries\)\.$"):
        await fetched(guard, web_server.url("/x", page))
    assert len(page.requests) == 4


async def test_a_closed_port_is_reported(guard: UrlGuard) -> None:
    with pytest.raises(InputUnreachable, match=r"127.0.0.1 cannot be connected to"):
        await fetched(guard, "http://127.0.0.1:1/x")


async def test_a_refused_address_is_reported_without_a_second_try() -> None:
    guard = UrlGuard([])
    with pytest.raises(InputUnreachable, match=r"image_url: 10.0.0.1 may not be used: its address is not public\."):
        await fetched(guard, "http://10.0.0.1/x", timeout_s=2)
    await guard.close()


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("http://127.0.0.2:1/x", r"127.0.0.1 leads to 127.0.0.2, which may not be used: its address is not public"),
        ("http://169.254.169.254/", r"127.0.0.1 leads to 169.254.169.254, which may not be used: its address is not"),
        ("file:///etc/passwd", r"127.0.0.1 leads to something that is not an http\(s\) URL\.$"),
    ],
)
async def test_a_redirect_that_leads_astray_is_reported_once_by_where_it_leads(
    web_server: WebServer, target: str, says: str
) -> None:
    guard = UrlGuard(["127.0.0.1"])
    page = Page(status=302, headers={"Location": target})
    with pytest.raises(InputUnreachable, match=says):
        await fetched(guard, web_server.url("/r", page))
    assert len(page.requests) == 1
    await guard.close()


@pytest.mark.parametrize("chunked", [False, True])
async def test_no_more_than_the_cap_is_read(guard: UrlGuard, web_server: WebServer, chunked: bool) -> None:
    url = web_server.url("/x", Page(BODY, chunked=chunked))
    with pytest.raises(TooLarge, match=r"image_url: 127.0.0.1 has a file of more than 299999 bytes"):
        await fetched(guard, url, max_bytes=len(BODY) - 1)
    assert (await fetched(guard, url, max_bytes=len(BODY)))[1] == BODY


async def test_a_compressed_answer_is_capped_by_what_it_unpacks_to(guard: UrlGuard, web_server: WebServer) -> None:
    bomb = gzip.compress(b"\x00" * 5_000_000)
    url = web_server.url("/x", Page(bomb, headers={"Content-Encoding": "gzip"}))
    with pytest.raises(TooLarge):
        await fetched(guard, url, max_bytes=10**6)


async def test_a_server_that_drips_runs_into_the_time_limit(guard: UrlGuard, web_server: WebServer) -> None:
    url = web_server.url("/x", Page(b"x" * 1000, drip_s=0.05))
    with pytest.raises(InputUnreachable, match=r"127.0.0.1 did not deliver the file within 0.5 s"):
        await fetched(guard, url, timeout_s=0.5)


async def test_a_silent_server_is_given_up(guard: UrlGuard, web_server: WebServer) -> None:
    page = Page(b"x" * 10, drip_s=30)
    with pytest.raises(InputUnreachable, match=r"(stopped answering|did not deliver)"):
        await fetched(guard, web_server.url("/x", page), stall_s=0.1, timeout_s=1.5)
    assert len(page.requests) > 1


async def test_an_unchanged_file_is_not_sent_again(guard: UrlGuard, web_server: WebServer) -> None:
    page = Page(BODY, etag='"1"')
    url = web_server.url("/x", page)
    result, content = await fetched(guard, url, known=Validators(etag='"1"'))
    assert (result.unchanged, content) == (True, b"")
    result, content = await fetched(guard, url, known=Validators(etag='"0"'))
    assert (result.unchanged, content) == (False, BODY)

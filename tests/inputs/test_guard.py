"""Where user URLs may lead: each attack is tried against a live server that must not be asked."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from mediamill.errors import InvalidRequest, Misconfigured
from mediamill.inputs import UrlGuard, check_literal, check_url
from tests.fixtures_web import Page, WebServer


class Names(AbstractResolver):
    """Answers each name with the next of its addresses."""

    def __init__(self, **addresses: Sequence[str]) -> None:
        self._addresses = {name.replace("_", "."): list(found) for name, found in addresses.items()}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = self._addresses[host]
        address = found.pop(0) if len(found) > 1 else found[0]
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)]

    async def close(self) -> None: ...


@pytest.fixture
async def guards() -> AsyncIterator[list[UrlGuard]]:
    """Guards put in here are closed."""
    made: list[UrlGuard] = []
    yield made
    for guard in made:
        await guard.close()


async def status(guard: UrlGuard, url: str) -> int:
    async with (await guard.session()).get(url, max_redirects=5) as response:
        return response.status


ATTACKS = (
    "http://127.0.0.1:{port}/x",
    "http://localhost:{port}/x",
    "http://foo.localhost:{port}/x",
    "http://[::1]:{port}/x",
    "http://[::ffff:127.0.0.1]:{port}/x",
    "http://[::ffff:7f00:1]:{port}/x",
    "http://[::127.0.0.1]:{port}/x",
    "http://[64:ff9b::7f00:1]/x",
    "http://[2002:7f00:1::]/x",
    "http://0x7f.1:{port}/x",
    "http://127.1:{port}/x",
    "http://2130706433:{port}/x",
    "http://0:{port}/x",
    "http://169.254.169.254/latest/meta-data",
    "http://[fd00:ec2::254]/",
    "http://[fe80::1]/",
    "http://[fec0::1]/",
    "http://10.1.2.3/",
    "http://192.168.1.1/",
    "http://172.16.0.1/",
    "http://100.64.0.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://198.18.0.1/",
    "http://1.1.1.1:22/",
    "http://1.1.1.1:6379/",
)


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_literal_address_is_refused_before_queueing_and_at_the_connection(
    web_server: WebServer,
    guards: list[UrlGuard],
    attack: str,
) -> None:
    page = Page(b"secret")
    web_server.url("/x", page)
    url = attack.format(port=web_server.port)
    guard = UrlGuard([])
    guards.append(guard)
    with pytest.raises(InvalidRequest, match=r"image_url: .* may not be used") as refused:
        check_literal(url, "image_url", guard)
    assert [d.path for d in refused.value.details] == ["image_url"]
    with pytest.raises(aiohttp.ClientError):
        await status(guard, url)
    assert page.requests == []


@pytest.mark.parametrize(
    "url", ["http://8.8.8.8/x", "https://example.com/a?b=c", "http://[2606:4700::1111]/", "https://example.com:8443/x"]
)
def test_public_urls_pass_before_queueing(url: str) -> None:
    check_literal(url, "f", UrlGuard([]))


async def test_a_name_is_judged_by_the_address_it_has_at_the_connection(
    web_server: WebServer,
    guards: list[UrlGuard],
) -> None:
    page = Page(b"secret")
    web_server.url("/x", page)
    # Public when the name is first asked for, loopback when the connection is made.
    names = Names(rebind_example=["192.88.99.0", "127.0.0.1"], inner_example=["127.0.0.1"], v6_example=["::1"])
    guard = UrlGuard([], resolver=names)
    guards.append(guard)
    for host in ("rebind.example", "rebind.example", "inner.example", "v6.example"):
        check_literal(f"http://{host}:{web_server.port}/x", "f", guard)
        with pytest.raises(aiohttp.ClientError):
            await status(guard, f"http://{host}:{web_server.port}/x")
    assert page.requests == []


async def test_a_redirect_is_judged_like_a_first_request(web_server: WebServer, guards: list[UrlGuard]) -> None:
    secret = Page(b"secret")
    web_server.url("/secret", secret)
    # The redirecting server may be reached by name; nothing else may.
    guard = UrlGuard(["listed.example"], resolver=Names(listed_example=["127.0.0.1"], other_example=["127.0.0.1"]))
    guards.append(guard)
    targets = (
        f"http://127.0.0.1:{web_server.port}/secret",
        f"http://other.example:{web_server.port}/secret",
        "http://169.254.169.254/",
        "file:///etc/passwd",
        "ftp://1.1.1.1/",
        "gopher://1.1.1.1/",
    )
    for target in targets:
        web_server.url("/r", Page(status=302, headers={"Location": target}))
        with pytest.raises(aiohttp.ClientError):
            await status(guard, f"http://listed.example:{web_server.port}/r")
    assert secret.requests == []


async def test_redirects_end(web_server: WebServer, guards: list[UrlGuard]) -> None:
    guard = UrlGuard(["127.0.0.1"])
    guards.append(guard)
    loop = web_server.url("/loop", Page(status=307, headers={"Location": "/loop"}))
    with pytest.raises(aiohttp.TooManyRedirects):
        await status(guard, loop)
    assert len(web_server.pages["/loop"].requests) <= 6


@pytest.mark.parametrize(
    ("allow", "host", "reached"),
    [
        (["127.0.0.0/8"], "127.0.0.1", True),
        (["127.0.0.1"], "127.0.0.1", True),
        (["127.0.0.1"], "localhost", True),
        (["127.0.0.0/8"], "[::ffff:127.0.0.1]", True),
        (["store.example"], "store.example", True),
        (["STORE.example"], "store.EXAMPLE.", True),
        (["store.example"], "127.0.0.1", False),
        (["store.example"], "other.example", False),
        (["store.example"], "sub.store.example", False),
        (["10.0.0.0/8"], "127.0.0.1", False),
        (["127.0.0.2"], "127.0.0.1", False),
    ],
)
async def test_the_allow_list_opens_exactly_what_it_names(
    web_server: WebServer,
    guards: list[UrlGuard],
    allow: list[str],
    host: str,
    reached: bool,
) -> None:
    names = Names(store_example=["127.0.0.1"], other_example=["127.0.0.1"], sub_store_example=["127.0.0.1"])
    names._addresses |= {"localhost": ["127.0.0.1"], "store.example.": ["127.0.0.1"]}
    guard = UrlGuard(allow, resolver=names)
    guards.append(guard)
    web_server.url("/x", Page(b"found"))
    if reached:
        assert await status(guard, f"http://{host}:{web_server.port}/x") == 200
    else:
        with pytest.raises(aiohttp.ClientError):
            await status(guard, f"http://{host}:{web_server.port}/x")


async def test_proxies_of_the_environment_are_not_used(
    web_server: WebServer,
    guards: list[UrlGuard],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{web_server.port}")
    page = Page(b"x")
    web_server.pages["/x"] = page
    guard = UrlGuard(["127.0.0.1"], resolver=Names(inner_example=["10.0.0.1"]))
    guards.append(guard)
    with pytest.raises(aiohttp.ClientError):
        await status(guard, "http://inner.example/x")
    assert page.requests == []


def test_a_wrong_allow_list_says_what_is_accepted() -> None:
    with pytest.raises(Misconfigured, match=r"MEDIAMILL_FETCH_ALLOW has 'http://x/'; accepted are CIDRs"):
        UrlGuard(["http://x/"])


@pytest.mark.parametrize(
    "value",
    [
        "",
        "foo",
        "/etc/passwd",
        "ftp://example.com/x",
        "gs://bucket/x",
        "javascript:alert(1)",
        "C:\\x.png",
        "x" * 40,
        "not base64! " * 20,
    ],
)
def test_what_is_no_reference_is_refused_with_what_is_accepted(value: str) -> None:
    with pytest.raises(InvalidRequest, match=r"images.0.image_url: .*accepted: an http\(s\) URL") as refused:
        check_literal(value, "images.0.image_url", UrlGuard([]))
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    "value",
    [
        "file:",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "file:../x",
        "file:uploads/../../x",
        "file:attempts/j/1/x",
        "file:.mediamill/identity",
    ],
)
def test_a_file_reference_cannot_leave_the_storage(value: str) -> None:
    with pytest.raises(InvalidRequest, match="image_url: "):
        check_literal(value, "image_url", UrlGuard(["127.0.0.0/8"]))


@pytest.mark.parametrize(
    "value",
    [
        "file:uploads/1/x",
        "data:,x",
        "ftp://x/y",
        "https://",
        "http:///x",
        "https://x:99999/",
        "http://e.example/" + "x" * 9000,
    ],
)
def test_a_webhook_takes_http_only(value: str) -> None:
    with pytest.raises(InvalidRequest, match="webhook_url: "):
        check_url(value, "webhook_url", UrlGuard([]))


def test_credentials_of_a_url_are_not_shown() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_url("http://user:hunter2@127.0.0.1/x?token=s3cret", "f", UrlGuard([]))
    assert "hunter2" not in refused.value.message
    assert "s3cret" not in refused.value.message
    assert "127.0.0.1" in refused.value.message
    assert UrlGuard([]).objection(URL("http://user:hunter2@example.com/")) is None

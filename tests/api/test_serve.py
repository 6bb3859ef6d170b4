"""Starting and stopping the API as the supervisor does."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest

from mediamill.api.app import serve_api
from mediamill.config import Settings
from mediamill.errors import Misconfigured


def settings(tmp_path, **values) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path, port=0, reserve_bytes=0, **values)


async def test_it_serves_until_told_to_stop_and_gives_the_address_back(database_url, tmp_path):
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(
        serve_api(settings(tmp_path, database_url=database_url), stop, started=address.set_result)
    )
    base_url = await address
    async with aiohttp.ClientSession() as http:
        made = await (await http.post(f"{base_url}/v1/jobs", json={"model": "fake"})).json()
        stream = await http.get(f"{base_url}/v1/jobs/{made['id']}/events")
        assert (await stream.content.readline()).startswith(b"event: job")
        stop.set()
        await serving
        with pytest.raises(aiohttp.ClientConnectionError):
            await http.get(f"{base_url}/health")
        stream.close()


async def test_a_socket_that_is_handed_over_is_used(database_url, tmp_path):
    sock = socket.create_server(("127.0.0.1", 0))
    port, stop, address = sock.getsockname()[1], asyncio.Event(), asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(
        serve_api(settings(tmp_path, database_url=database_url), stop, sock=sock, started=address.set_result)
    )
    assert await address == f"http://127.0.0.1:{port}"
    stop.set()
    await serving


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "DATABASE_URL"),
        ({"host": "0.0.0.0", "database_url": "postgresql://127.0.0.1:1/x"}, "without an API key"),
    ],
)
async def test_what_cannot_work_is_said_at_start(tmp_path, values, says):
    with pytest.raises(Misconfigured, match=says):
        await serve_api(settings(tmp_path, **values), asyncio.Event())


async def test_an_address_in_use_is_said_at_start(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = settings(tmp_path, database_url="postgresql://127.0.0.1:1/x").model_copy(update={"port": port})
        with pytest.raises(Misconfigured, match=f"127.0.0.1:{port}"):
            await serve_api(wanted, asyncio.Event())

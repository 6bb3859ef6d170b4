"""Processes around one database keep files in one place, or the later one does not start."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from mediamill.config import Settings
from mediamill.errors import Misconfigured
from mediamill.jobs.files import opened_files
from mediamill.jobs.fleet import ANNOUNCE_EVERY_S
from mediamill.jobs.store import JobStore
from mediamill.jobs.worker import opened
from tests.fixtures_db import TestServer
from tests.store_steps import sql

ELSEWHERE = "keeps files in another folder than"


@pytest.fixture
def database_server(embedded_server: TestServer) -> TestServer:
    """One server is enough: what differs between servers is in the store's tests."""
    return embedded_server


def host(folder: Path, name: str, **more: Any) -> Settings:
    return Settings(_env_file=None, data_dir=folder / name, storage_mode="file", **more)


async def joins(store: JobStore, settings: Settings) -> str:
    """Empty, or why it does not."""
    try:
        async with opened_files(settings, store, public_url="http://127.0.0.1"):
            return ""
    except Misconfigured as error:
        return error.message


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({}, {}, ELSEWHERE),
        ({"output_dir": "one"}, {"output_dir": "one"}, "say so with MEDIAMILL_STORAGE_SHARED=1"),
        ({"output_dir": "one", "storage_shared": True}, {"output_dir": "one", "storage_shared": True}, ""),
        ({"output_dir": "one"}, {"output_dir": "two", "storage_shared": True}, "MEDIAMILL_STORAGE_SHARED is set, but"),
    ],
    ids=["folders of their own", "undeclared", "declared", "untrue"],
)
async def test_who_comes_later_must_agree(
    store: JobStore, tmp_path: Path, first: dict[str, Any], second: dict[str, Any], said: str
) -> None:
    there, here = (
        host(tmp_path, name, **{k: tmp_path / v if k == "output_dir" else v for k, v in more.items()})
        for name, more in (("a", first), ("b", second))
    )
    assert await joins(store, there) == ""
    found = await joins(store, here)
    assert (said in found) if said else found == ""
    assert await joins(store, there) == "", "who was refused is not heard of any more"


async def test_a_process_that_is_gone_is_no_reason(store: JobStore, tmp_path: Path) -> None:
    assert await joins(store, host(tmp_path, "a")) == ""
    await sql(store, "UPDATE worker SET seen_at = now() - make_interval(secs => $1)", 4 * ANNOUNCE_EVERY_S)
    assert await joins(store, host(tmp_path, "b")) == ""


async def test_of_two_that_start_at_once_not_both_do(store: JobStore, tmp_path: Path) -> None:
    for turn in range(10):
        pair = [host(tmp_path, f"{turn}{name}") for name in "ab"]
        told = await asyncio.gather(*(joins(store, settings) for settings in pair))
        assert any(ELSEWHERE in one for one in told)
        await sql(store, "DELETE FROM worker")


async def test_a_worker_that_waited_for_its_database_checks_once_it_is_there(
    store: JobStore, database_url: str, tmp_path: Path
) -> None:
    assert await joins(store, host(tmp_path, "a")) == ""
    sockets = Path(parse_qs(urlsplit(database_url).query)["host"][0])
    settings = host(tmp_path, "b", database_url=database_url.replace(str(sockets), str(tmp_path / "later")))

    async def starts() -> None:
        async with opened(settings, pool="cpu", stop=asyncio.Event()) as deps:
            assert deps is not None

    starting = asyncio.create_task(starts())
    done, _ = await asyncio.wait({starting}, timeout=0.3)
    assert not done, "it waits"
    (tmp_path / "later").symlink_to(sockets)
    with pytest.raises(Misconfigured, match=ELSEWHERE):
        await starting

"""Where the jobs of each entry run: one decision, from the settings."""

from __future__ import annotations

from typing import Any

import pytest

from mediamill import catalog
from mediamill.config import Settings
from mediamill.errors import Misconfigured
from mediamill.serve import pools

KEY = {"runpod_api_key": "k"}
ZIMAGE = {**KEY, "runpod_endpoints": {"ZIMAGE": "z", "LTX_VIDEO": "v"}}
SHARED = {**KEY, "runpod_endpoint_id": "s"}


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


@pytest.mark.parametrize(
    ("values", "routed"),
    [
        ({}, {}),
        (KEY, {}),
        (ZIMAGE, {"zimage": "z", "ltx-video": "v"}),
        ({"runpod_endpoints": {"ZIMAGE": "z"}}, {}),
        ({**ZIMAGE, "routes": {"zimage": "local"}}, {"ltx-video": "v"}),
        (SHARED, {}),
        ({**SHARED, "routes": {"caption": "runpod", "fake": "runpod"}}, {"caption": "s", "fake": "s"}),
        ({**ZIMAGE, **SHARED, "routes": {"zimage": "runpod"}}, {"zimage": "z", "ltx-video": "v"}),
        ({**ZIMAGE, "fake_engines": "zimage", "routes": {"zimage": "runpod"}}, {"ltx-video": "v"}),
        ({**ZIMAGE, "fake_engines": "all"}, {}),
    ],
)
def test_an_entry_runs_where_the_settings_say(values: dict[str, Any], routed: dict[str, str]) -> None:
    given = settings(**values)
    catalog.check_routes(given)
    assert {entry.name: catalog.endpoint_of(entry, given) for entry in catalog.routed(given)} == routed
    assert {n for n, entry in catalog.load().items() if catalog.pool_of(entry, given) == "remote"} == routed.keys()
    assert ("remote" in [pool.name for pool in pools.chosen(given)]) == bool(routed)
    assert catalog.routed(given.unrouted()) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"routes": {"zimagine": "local"}}, r"MEDIAMILL_ROUTES names 'zimagine'; there are: .*zimage"),
        ({"routes": {"zimage": "runpod"}}, "sends zimage to RunPod; that needs RUNPOD_API_KEY"),
        (
            {**KEY, "routes": {"ltx-video": "runpod"}},
            "sends ltx-video to RunPod; that needs RUNPOD_LTX_VIDEO_ENDPOINT_ID or RUNPOD_ENDPOINT_ID",
        ),
    ],
)
def test_a_route_that_cannot_be_stops_the_start(values: dict[str, Any], words: str) -> None:
    with pytest.raises(Misconfigured, match=words):
        pools.chosen(settings(**values))


def test_a_pool_that_is_asked_for_by_name_is_all_there_is() -> None:
    assert [pool.name for pool in pools.chosen(settings(**ZIMAGE), ["cpu"])] == ["cpu"]
    (remote,) = pools.chosen(settings(**ZIMAGE), ["remote"])
    assert remote.slots >= 64

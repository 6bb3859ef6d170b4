from __future__ import annotations

import pytest

from mediamill import catalog
from mediamill.config import Settings

ZIMAGE = catalog.get("zimage")


@pytest.mark.parametrize(
    ("asked", "warned"),
    [
        ({}, False),
        ({"negative_prompt": "blur"}, True),
        ({"guidance_scale": 4, "negative_prompt": "blur"}, False),
    ],
)
def test_a_negative_prompt_without_guidance_is_warned_of(asked: dict[str, object], warned: bool) -> None:
    _, warnings = catalog.validate(ZIMAGE, {"prompt": "a fox", **asked})
    assert any("negative_prompt has no effect" in w for w in warnings) == warned


@pytest.mark.parametrize(
    ("settings", "guidance", "warned"),
    [
        ({}, 0, False),
        ({}, 5, True),
        ({"model_locations": {"ZIMAGE": "/weights/z-image-turbo"}}, 5, True),
        ({"model_locations": {"ZIMAGE": "Tongyi-MAI/Z-Image"}}, 5, False),
        ({"model_name": "Tongyi-MAI/Z-Image"}, 5, False),
        ({"runpod_api_key": "rpa_k", "runpod_endpoints": {"ZIMAGE": "ep"}}, 5, False),
    ],
)
def test_guidance_is_warned_of_where_the_configured_weights_are_turbo_and_run_here(
    settings: dict[str, object], guidance: float, warned: bool
) -> None:
    request, _ = catalog.validate(ZIMAGE, {"prompt": "a fox", "guidance_scale": guidance, "steps": 30})
    warnings = ZIMAGE.allow(request, Settings(_env_file=None, **settings))
    assert bool(warnings) == warned
    assert "/weights" not in "".join(warnings), "where weights lie here is not for callers"

from __future__ import annotations

import pytest

from mediamill import catalog


@pytest.mark.parametrize(
    ("asked", "warned"),
    [
        ({}, None),
        ({"negative_prompt": "blur"}, "negative_prompt has no effect"),
        ({"guidance_scale": 4}, "wants 0"),
        ({"guidance_scale": 4, "steps": 28, "negative_prompt": "blur"}, None),
    ],
)
def test_what_has_no_effect_or_the_wrong_one_is_warned_of(asked: dict[str, object], warned: str | None) -> None:
    _, warnings = catalog.validate(catalog.get("zimage"), {"prompt": "a fox", **asked})
    assert len(warnings) == (warned is not None)
    assert warned is None or warned in warnings[0]

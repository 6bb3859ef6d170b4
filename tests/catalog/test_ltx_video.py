from __future__ import annotations

import pytest

from mediamill import catalog
from mediamill.errors import InvalidRequest


@pytest.mark.parametrize(("width", "height"), [(65, 64), (64, 721)])
def test_odd_sizes_are_refused_with_the_reason(width: int, height: int) -> None:
    with pytest.raises(InvalidRequest, match=r"(width|height): must be even for H.264 video"):
        catalog.validate(catalog.get("ltx-video"), {"prompt": "a cat", "width": width, "height": height})


def test_a_first_frame_is_an_input_file() -> None:
    request, _ = catalog.validate(catalog.get("ltx-video"), {"prompt": "a cat", "image_url": "https://x/i.png"})
    assert [(r.field, r.source.kind) for r in catalog.input_refs(request)] == [("image_url", "image")]

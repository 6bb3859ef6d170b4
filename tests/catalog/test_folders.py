"""Folders that callers name for their results."""

from __future__ import annotations

from typing import Any

import pytest

from mediamill import catalog
from mediamill.errors import InvalidRequest

STILL = {"id": "a", "image_url": "https://example.com/a.jpg", "duracao": 1}
REQUESTS: dict[str, dict[str, Any]] = {
    "img2vid": {"images": [STILL]},
    "caption": {"url_video": "https://example.com/v.mp4", "url_srt": "https://example.com/s.srt"},
    "addaudio": {"url_video": "https://example.com/v.mp4", "url_audio": "https://example.com/a.mp3"},
    "transcribe": {"url_audio": "https://example.com/a.mp3"},
}
JOB = "01a21830-8c40-7d13-a023-9f057fdc488c"


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("Project Name/Vídeo 1/", "Project Name/Vídeo 1/"),
        ("/a/b", "a/b/"),
        ("outputs/mine", "outputs/mine/"),
        ("my uploads/", "my uploads/"),
        ("/", None),
        ("  ", None),
        (None, None),
    ],
)
def test_a_folder_of_the_caller_becomes_a_key_prefix(name: str, path: str | None, prefix: str | None) -> None:
    entry = catalog.get(name)
    request, warnings = catalog.validate(entry, {**REQUESTS[name], "path": path})
    assert entry.key_prefix(request) == prefix
    assert any("leading slash" in warning for warning in warnings) == bool(path and path.startswith("/"))


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize(
    "path",
    [
        "a/../b",
        "./a",
        "a//b",
        "a\\b",
        "a/\x00/",
        "uploads/x",
        "/attempts/",
        "previews/",
        ".mediamill/identity",
        f"outputs/{JOB}/",
        f"outputs/{JOB.replace('-', '')}/more",
        "ü" * 128,
    ],
)
def test_a_folder_that_is_unsafe_or_our_own_is_refused_before_anything_is_done(name: str, path: str) -> None:
    with pytest.raises(InvalidRequest, match="path") as caught:
        catalog.validate(catalog.get(name), {**REQUESTS[name], "path": path})
    assert [detail.path for detail in caught.value.details] == ["path"]

"""What callers are told of an error, and what only the log has."""

from __future__ import annotations

import pytest

from mediamill.errors import (
    Detail,
    InvalidRequest,
    Misconfigured,
    ModelUnavailable,
    StorageRefused,
    StoreUnavailable,
    for_callers,
)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("'/srv/my models/z' is no folder; set X.", "a local path is no folder; set X."),
        (
            "X='/srv/z' must name a folder; it lacks model.bin.",
            "X=a local path must name a folder; it lacks model.bin.",
        ),
        ('"~/models" or ./here, no weights: /srv/z/vae.', "a local path or a local path, no weights: a local path."),
        ("lost /a/b.json (see /c/d/): no", "lost a local path (see a local path): no"),
        ("'org/model' has transformer/a.safetensors and/or vae/; see https://hub.example/org.", None),
        ("The weights (org/model) are incomplete: vae/config.json; finish it.", None),
    ],
)
def test_a_model_that_is_not_here_is_told_without_this_machines_folders(said: str, told: str | None) -> None:
    shown = for_callers(ModelUnavailable(said))
    assert (type(shown), shown.message) == (ModelUnavailable, told or said)


@pytest.mark.parametrize("cls", [StorageRefused, StoreUnavailable, Misconfigured])
def test_what_is_about_this_installation_alone_is_told_by_its_kind(cls: type[StorageRefused]) -> None:
    shown = for_callers(cls("'/srv/private' on 10.0.0.5"))
    assert (type(shown), shown.message) == (cls, cls().message)


def test_what_is_about_the_request_is_told_as_it_is() -> None:
    wrong = InvalidRequest("path: '/a/b' is taken", details=[Detail("path", "'/a/b' is taken")])
    assert for_callers(wrong) is wrong

"""Settings that name catalog entries."""

from __future__ import annotations

from pathlib import Path

import pytest

from mediamill import catalog
from mediamill.errors import Misconfigured
from tests.service import mediamill


def test_an_unknown_fake_is_refused_with_those_there_are() -> None:
    catalog.check_fakes(("all", "zimage"))
    with pytest.raises(Misconfigured, match=r"MEDIAMILL_FAKE_ENGINES names 'zimag'; there are: all, addaudio"):
        catalog.check_fakes(("zimag", "ltx2"))


def test_a_service_does_not_start_with_one(tmp_path: Path) -> None:
    extra = {"MEDIAMILL_FAKE_ENGINES": "zimag", "DATABASE_URL": "postgresql://127.0.0.1:1/none"}
    done = mediamill("worker", cwd=tmp_path, extra=extra)
    assert done.returncode == 2
    assert done.stderr.startswith("error: MEDIAMILL_FAKE_ENGINES names 'zimag'")

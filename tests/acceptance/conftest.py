from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import a_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a service."""
    with a_folder() as path:
        yield path

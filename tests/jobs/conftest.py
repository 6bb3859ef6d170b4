"""The job core runs on both servers: the one that comes along and the machine's own."""

from __future__ import annotations

import pytest

from tests.fixtures_db import TestServer


@pytest.fixture(params=["embedded", "system"])
def database_server(request: pytest.FixtureRequest) -> TestServer:
    """The server of `database_url`."""
    return request.getfixturevalue(f"{request.param}_server")

"""Fixtures for every test."""

from __future__ import annotations

import signal

from tests.fixtures_db import database_server, database_url, embedded_server, store, system_server
from tests.fixtures_s3 import s3_server, s3_settings
from tests.fixtures_tiny import diffusers_engine, tiny_ltx_video, tiny_settings, tiny_zimage
from tests.fixtures_web import web_server

# A shell starts what it puts in the background with Ctrl-C ignored, and every process inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

__all__ = [
    "database_server",
    "database_url",
    "diffusers_engine",
    "embedded_server",
    "s3_server",
    "s3_settings",
    "store",
    "system_server",
    "tiny_ltx_video",
    "tiny_settings",
    "tiny_zimage",
    "web_server",
]

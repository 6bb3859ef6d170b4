"""The worker on RunPod: the one file that knows RunPod's SDK. `deploy/runpod` starts it."""

from __future__ import annotations

import logging
import sys
from typing import Any

import runpod
from runpod.serverless.modules.worker_state import IS_LOCAL_TEST

from mediamill import config
from mediamill.errors import MediamillError
from mediamill.model import Json
from mediamill.serverless.slot import log_to_stderr
from mediamill.serverless.worker import Handler

_log = logging.getLogger(__name__)

_LEVELS = {"debug": "DEBUG", "info": "INFO", "warning": "WARN", "error": "ERROR"}
"""The SDK's own words; left alone it logs every result whole."""


def main() -> None:
    """Serve RunPod, or do the one job of `--test_input` or test_input.json, then exit."""
    try:
        loaded = config.load()
        log_to_stderr(loaded.settings.log_level)
        config.export(loaded.settings)
        handler = Handler(loaded.settings, _tell_nobody if IS_LOCAL_TEST else runpod.serverless.progress_update)
    except MediamillError as error:
        sys.exit(f"error: {error}")
    for warning in loaded.warnings:
        _log.warning("%s", warning)
    runpod.RunPodLogger().set_level(_LEVELS[loaded.settings.log_level])
    runpod.serverless.start({"handler": handler.handle})


def _tell_nobody(_job: dict[str, Any], _progress: dict[str, Json]) -> None:
    """A local try has no host that would hear."""

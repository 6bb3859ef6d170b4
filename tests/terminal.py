"""Commands in a terminal of their own: what a person would see."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.service import environment

LIMIT_S = 120


def in_terminal(*arguments: str, cwd: Path, extra: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run `mediamill` with a terminal of 100 columns as its outputs; its exit status and all it wrote there."""
    ours, its = pty.openpty()
    size = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        ["timeout", str(LIMIT_S), sys.executable, "-m", "mediamill", *arguments],
        cwd=cwd,
        env={**size, **environment(extra)},
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    written = b""
    with os.fdopen(ours, "rb", buffering=0) as screen:
        try:
            while some := screen.read(65536):
                written += some
        except OSError:  # Linux says so when the last program has closed the other end
            pass
    return process.wait(), written.decode()


def plain(written: str) -> str:
    """Without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)

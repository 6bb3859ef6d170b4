"""The documents' own examples, run as their readers run them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path

import pytest


async def shell(script: str, folder: Path, **variables: str) -> str:
    """What a script prints in a folder. Its `$NAME` are the variables. Skips where one of its programs is missing."""
    for program in ("curl", *re.findall(r"\| (\w+)", script)):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    return await _output("sh", "-c", script, folder=folder, variables=variables)


async def typescript(source: str, folder: Path) -> str:
    """What a TypeScript example prints under Node, its type annotations taken out. Skips where there is no Node."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    plain = re.sub(r"^interface \w+ \{.*?^\}\n", "", source, flags=re.DOTALL | re.MULTILINE)
    plain = re.sub(r"(?<=\w|\)): (?:Promise<\w+>|string|VideoRequest)(?=[,)]| \{| =>)", "", plain)
    script = folder / "example.mjs"
    script.write_text(plain)
    return await _output("node", str(script), folder=folder, variables={})


async def _output(*command: str, folder: Path, variables: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **variables},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said.decode()
    return out.decode()

"""What the tests of RunPod's provider share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mediamill.config import Settings
from mediamill.model import Elsewhere, Event, OutputFile, Work
from mediamill.providers import runpod
from tests.runpod_host import KEY, RunPodHost

QUICK = runpod.Pace(first_s=0.01, longest_s=0.02, away_s=0.05, submit_s=5.0, unknown_s=0.1, fetch_s=0)
PROMPT = {"prompt": "a red fox", "seed": 7}
Made = Callable[..., runpod.RunPod]
"""`make(kept_in=..., probe=..., pace=..., runpod_api_key=...)`: a provider on the host."""


async def unprobed(files: Sequence[OutputFile], _scratch: Path, _deadline_s: float) -> Sequence[OutputFile]:
    return files


def settings_for(host: RunPodHost, **values: Any) -> Settings:
    defaults = {
        "runpod_api_key": KEY,
        "runpod_base_url": host.base_url,
        "runpod_endpoints": {"ZIMAGE": "ep-zimage"},
        "fetch_allow": ("127.0.0.1",),
    }
    return Settings(_env_file=None, **(defaults | values))


def work(model: str = "zimage", *, elsewhere: str | None = None, **params: Any) -> Work:
    return Work("0192-job", 1, model, {**PROMPT, **params}, elsewhere=elsewhere)


async def events_of(
    provider: runpod.RunPod, what: Work, scratch: Path, *, deadline_s: float = 30, keep: bool = False
) -> list[Event]:
    found = []
    async with contextlib.aclosing(provider.run(what, scratch=scratch, deadline_s=deadline_s)) as events:
        async for event in events:
            found.append(event)
            if isinstance(event, Elsewhere):
                event.kept = keep
    return found


def files_of(events: Sequence[Event]) -> dict[str, tuple[str, bytes]]:
    return {e.name: (e.media_type, e.path.read_bytes()) for e in events if isinstance(e, OutputFile)}


async def until(look: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not look():
            await asyncio.sleep(0.01)

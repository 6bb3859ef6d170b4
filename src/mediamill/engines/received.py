"""Files that were made elsewhere, as the outputs of their work: so that this process probes them like any engine's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mediamill.model import EngineContext, Event, OutputFile, Work


def create(settings: Mapping[str, str]) -> Received:
    """No setting is looked at."""
    del settings
    return Received()


class Received:
    """Passes on `params["files"]`: the `name`, `path` (in the scratch folder) and `media_type` of each."""

    def run(self, work: Work, ctx: EngineContext) -> Iterator[Event]:
        """Yield each file."""
        del ctx
        for file in work.params["files"]:
            yield OutputFile(file["name"], Path(file["path"]), file["media_type"])

    def held(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

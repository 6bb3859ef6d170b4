"""`mediamill addaudio`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mediamill.cli import _work


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("addaudio")(_addaudio)


def _addaudio(
    video: Annotated[Path, typer.Argument(help="The video; a sound it has is replaced.")],
    audio: Annotated[Path, typer.Argument(help="The sound: MP3, AAC, WAV, ...")],
    out: _work.Out = Path("with_audio.mp4"),
    server: _work.Server = None,
) -> None:
    """Give a video a sound; the result is as long as the shorter of the two."""
    order = _work.Order("addaudio", {}, {"url_video": video, "url_audio": audio})
    _work.carry_out(order, out=out, server=server)

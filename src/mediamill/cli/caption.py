"""`mediamill caption`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mediamill.cli import _work


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("caption")(_caption)


def _caption(
    video: Annotated[Path, typer.Argument(help="The video.")],
    subtitles: Annotated[Path, typer.Argument(help="Its subtitles: an SRT or ASS file.")],
    soft: Annotated[bool, typer.Option("--soft", help="A text track beside the picture; nothing is encoded.")] = False,
    style: Annotated[str | None, typer.Option(help="Look of the text, by name. [default: plain]")] = None,
    quality: Annotated[str, typer.Option(help="fast, balanced or best.")] = "balanced",
    out: _work.Out = Path("captioned.mp4"),
    server: _work.Server = None,
) -> None:
    """Draw subtitles into a video."""
    fields = {"mode": "soft" if soft else "burn", "quality": quality, "style": style}
    order = _work.Order("caption", fields, {"url_video": video, "url_srt": subtitles})
    _work.carry_out(order, out=out, server=server)

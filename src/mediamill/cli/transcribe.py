"""`mediamill transcribe FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mediamill.cli._work import Order, Out, Server, carry_out

_SHOWN_CHARS = 2000


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("transcribe")(transcribe)


def transcribe(
    file: Annotated[Path, typer.Argument(help="Audio or video file with speech.")],
    *,
    out: Out = Path(),
    model: Annotated[str, typer.Option(help="tiny, base, small, medium, large-v3 or turbo.")] = "turbo",
    language: Annotated[str | None, typer.Option(help="Language spoken, e.g. pt. [default: detected]")] = None,
    translate: Annotated[bool, typer.Option("--translate", help="Text in English.")] = False,
    parallel: Annotated[
        bool, typer.Option("--parallel", help="Cut at pauses and decode on all cores at once: faster.")
    ] = False,
    vad: Annotated[bool, typer.Option("--vad/--no-vad", help="Leave out what is not speech.")] = True,
    style: Annotated[str, typer.Option(help="Of karaoke.ass: classic, karaoke, highlight, word_by_word.")] = "karaoke",
    server: Server = None,
) -> None:
    """Speech to segments.srt, karaoke.ass and words.json."""
    fields = {
        "model": model,
        "language": language,
        "task": "translate" if translate else "transcribe",
        "decoding": "parallel" if parallel else "sequential",
        "vad": vad,
        "style": style,
    }
    delivered = carry_out(Order("transcribe", fields, {"url_audio": file}), out=out, server=server)
    text = str(delivered.output.get("text") or "")
    print(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} ...")

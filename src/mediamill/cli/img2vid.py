"""`mediamill img2vid`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mediamill.cli import _work
from mediamill.cli._edge import Exit


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("img2vid")(_img2vid)


def _img2vid(
    photos: Annotated[list[Path], typer.Argument(help="JPEG, PNG, ... files, one clip each.", metavar="PHOTO...")],
    seconds: Annotated[float, typer.Option(help="Length of each clip, seconds.")] = 5.0,
    quality: Annotated[str, typer.Option(help="fast, balanced or best.")] = "balanced",
    codec: Annotated[str, typer.Option(help="h264 or av1.")] = "h264",
    out: _work.Out = Path("clips"),
    server: _work.Server = None,
) -> int:
    """Turn photos into clips with a slow zoom, each named like its photo."""
    from mediamill.cli import _show

    images = [{"id": str(i), "duracao": seconds} for i, _ in enumerate(photos)]
    order = _work.Order(
        "img2vid",
        {"images": images, "quality": quality, "codec": codec},
        {f"images.{i}.image_url": photo for i, photo in enumerate(photos)},
        names_of(photos),
        results=len(photos),
    )
    failures = _work.carry_out(order, out=out, server=server).output.get("errors") or []
    for failure in failures:
        _show.warn(f"{photos[int(failure['id'])]}: {failure['error']}")
    return Exit.FAILED if failures else Exit.DONE


def names_of(photos: list[Path]) -> dict[str, str]:
    """Names of the clips after their photos, unless two photos share a name."""
    stems = [photo.stem for photo in photos]
    if len(set(stems)) < len(stems):
        return {}
    return {f"video_{i}.mp4": f"{stem}.mp4" for i, stem in enumerate(stems, start=1)}

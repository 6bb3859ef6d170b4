"""What a person sees: a progress bar, a table of files, a warning."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from mediamill.errors import MediamillError
from mediamill.media.facts import MediaFacts

_KIB = 1024
_NO_WRAP_COLUMNS = 10_000


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[float, str], None]]:
    """A bar on the terminal while the block runs; call it with a fraction and what is being done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=1.0)

        def show(fraction: float, doing: str) -> None:
            bar.update(task, completed=fraction, description=f"{title} {doing}".strip())

        yield show
        bar.update(task, completed=1.0, description=title)


def files(paths: Sequence[Path]) -> None:
    """Print a table of finished files and what a probe finds in them."""
    table = Table("file", "size", "duration", "picture", "sound", box=None)
    for path in paths:
        table.add_row(str(path), size(path.stat().st_size), *facts(path))
    if paths:
        rows(table)


def rows(table: Table) -> None:
    """Print a table: cells wrap where a terminal is too narrow, and nowhere else, so that other programs can read it."""
    Console(width=None if sys.stdout.isatty() else _NO_WRAP_COLUMNS).print(table)


def facts(path: Path) -> tuple[str, str, str]:
    """Duration, picture and sound of a media file; dashes for what it has not."""
    from mediamill.media import probe

    try:
        found = probe.probe(path)
    except MediamillError:
        found = MediaFacts()
    duration = "-" if found.duration_s is None else f"{found.duration_s:.2f} s"
    frames = "" if found.frames is None or not found.fps else f" {found.frames} frames at {found.fps:g}/s"
    picture = "-" if found.width_px is None else f"{found.width_px}x{found.height_px}{frames} {found.video_codec or ''}"
    return duration, picture.strip(), found.audio_codec or "-"


def size(count_bytes: int) -> str:
    """Bytes for people."""
    amount = float(count_bytes)
    for unit in ("B", "KiB", "MiB"):
        if amount < _KIB:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= _KIB
    return f"{amount:.1f} GiB"


def warn(sentence: str) -> None:
    """A warning on standard error."""
    print(f"warning: {sentence}", file=sys.stderr)

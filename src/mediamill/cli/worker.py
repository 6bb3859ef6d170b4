"""`mediamill worker`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("worker")(_worker)


def _worker(
    pool: Annotated[str, typer.Option(help="Which jobs to take: cpu, gpu, gpu:N or remote.")] = "cpu",
    slots: Annotated[
        int | None, typer.Option(min=1, help="Jobs at once. [default: 1 for every 2 cores, 1 a GPU, 100 remote]")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for everything that is written.")] = None,
    supervisor: Annotated[int | None, typer.Option(hidden=True, help="Die with this process.")] = None,
) -> None:
    """Take jobs of one pool from the database at DATABASE_URL and do them."""
    from mediamill.cli._edge import settings_for
    from mediamill.serve import lifeline, roles

    if supervisor is not None:
        lifeline.die_with(supervisor)
    roles.worker(settings_for(data_dir=data_dir).settings, pool=pool, slots=slots)

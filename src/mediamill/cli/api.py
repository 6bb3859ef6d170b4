"""`mediamill api`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("api")(_api)


def _api(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [default: 8000]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for everything that is written.")] = None,
    fd: Annotated[int | None, typer.Option(hidden=True, help="A listening socket to use.")] = None,
    supervisor: Annotated[int | None, typer.Option(hidden=True, help="Die with this process.")] = None,
) -> None:
    """Serve the API alone; workers on any host share its DATABASE_URL."""
    from mediamill.cli._edge import settings_for
    from mediamill.serve import lifeline, roles

    if supervisor is not None:
        lifeline.die_with(supervisor)
    roles.api(settings_for(host=host, port=port, data_dir=data_dir).settings, fd=fd)

"""`mediamill serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(_serve)


def _serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one. [default: 8000]")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder for everything that is written. [default: ./data]")
    ] = None,
    pools: Annotated[
        str | None, typer.Option(help="Comma-separated workers: cpu, gpu, gpu:N, remote. [default: what is here]")
    ] = None,
) -> None:
    """Serve: the database, the API and the workers, until Ctrl-C."""
    import asyncio

    from mediamill.cli._edge import settings_for
    from mediamill.serve.supervisor import serve

    settings = settings_for(host=host, port=port, data_dir=data_dir).settings
    names = [name.strip() for name in (pools or "").split(",") if name.strip()]
    asyncio.run(serve(settings, pool_names=names, announce=lambda line: print(line, flush=True)))

"""`mediamill webhook-secret`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("webhook-secret")(_webhook_secret)


def _webhook_secret(
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the service. [default: ./data]")] = None,
) -> None:
    """Print what signs webhooks, for the receiver that verifies them: the setting, or what the service made."""
    import asyncio

    from mediamill.cli._edge import settings_for
    from mediamill.config import Settings
    from mediamill.errors import StoreUnavailable
    from mediamill.jobs.store import JobStore
    from mediamill.jobs.webhooks import configured_secrets, made_secret
    from mediamill.serve.postgres import url_of_running

    async def made(settings: Settings) -> str:
        if settings.database_url is not None:
            url: str | None = settings.database_url.get_secret_value()
        else:
            url = url_of_running(settings.data_dir.resolve() / "postgres")
        if url is None:
            raise StoreUnavailable(
                f"No service runs on the data folder {str(settings.data_dir)!r}, and its database keeps the secret: "
                "start it, name its folder with --data-dir, or set MEDIAMILL_WEBHOOK_SECRET."
            )
        async with await JobStore.open(url, application="mediamill webhook-secret") as store:
            return await made_secret(store)

    settings = settings_for(quiet=True, data_dir=data_dir).settings
    for secret in configured_secrets(settings) or [asyncio.run(made(settings))]:
        print(secret)

"""`mediamill config`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from mediamill.config import Loaded, Settings, is_secret, names


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("config")(_config)


def _config(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Also print what is at its default.")] = False,
) -> None:
    """Print the settings in force and where each comes from; secrets are hidden."""
    import json

    from rich.table import Table

    from mediamill.cli import _show
    from mediamill.cli._edge import settings_for

    loaded = settings_for(quiet=True)
    rows = [row for row in shown(loaded) if every or as_json or row["source"] != "default"]
    if as_json:
        print(json.dumps({"settings": rows, "warnings": loaded.warnings}, indent=2))
        return
    table = Table("setting", "value", "source", box=None)
    for row in rows:
        table.add_row(row["setting"], str(row["value"]), row["source"])
    if rows:
        _show.rows(table)
    else:
        print("Every setting is at its default; --all prints them.")


def shown(loaded: Loaded) -> Iterator[dict[str, Any]]:
    """Each setting's name, value as text (stars for a secret) and source."""
    for field in Settings.model_fields:
        value = getattr(loaded.settings, field)
        text = "********" if is_secret(field) and value else _text(value)
        yield {
            "setting": names(field)[0],
            "value": text,
            "source": loaded.origins.get(field, "default"),
        }


def _text(value: object) -> str:
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={location}" for name, location in sorted(value.items()))
    return str(value)

"""The command line. Each `cli/<name>.py` has `register(app)`; what it needs is imported when its command runs."""

from __future__ import annotations

import sys
from typing import Any

import typer

from mediamill import plugins
from mediamill.cli import _edge

__all__ = ["application", "command_names", "main"]


def main() -> None:
    """Run the command of `sys.argv` and exit with its status (`_edge.Exit`)."""
    sys.exit(_edge.run(application(), sys.argv[1:]))


def command_names() -> list[str]:
    """Every command, sorted."""
    group: Any = typer.main.get_command(application())
    return sorted(group.commands)


def application() -> typer.Typer:
    """Every command, found by file name."""
    app = typer.Typer(
        name="mediamill",
        help="Media generation and processing on one durable job core.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_edge.common)
    for module in plugins.load_all("cli").values():
        module.register(app)
    return app

"""Write the reference pages that are made from the code: `python tools/reference.py` (`--check` only compares)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from mediamill import config
from mediamill.cli import application
from mediamill.config import Settings

ROOT = Path(__file__).parents[1]
SECTIONS = {
    "data_dir": "Places",
    "host": "The HTTP side",
    "log_level": "Logs",
    "storage_mode": "Storage",
    "fetch_allow": "Inputs",
    "cpu_slots": "Work",
    "webhook_secret": "Webhooks",
    "serve_model": "Serverless",
    "device": "Models",
    "routes": "Places to run",
    "server": "The command line",
    "node_env": "Accepted and unused",
}
"""First field of each section, in the order of `Settings`."""
CLI_INTRODUCTION = """\
# Command line

Made from `src/mediamill/cli` by `tools/reference.py`; change it there. Exit status: 0 done, 1 the job failed or
something is wrong, 2 the command, a file or a setting is wrong and nothing was done, 130 cancelled.
"""
INTRODUCTION = """\
# Settings

Made from `src/mediamill/config.py` by `tools/reference.py`; change it there.

A setting is read from the command line, else the environment, else `.env` in the working folder. Where several names
are given they are one setting: two of them with different values stop the start. A secret (marked *secret*) can also be
given as `<NAME>_FILE`, the path of a file that holds it. A `MEDIAMILL_` variable that is not listed here is warned of
with the nearest listed name. `mediamill config --all` prints what is in force and where it comes from.
"""


def configuration() -> str:
    """The page of all settings."""
    return INTRODUCTION + "".join(_rows())


def _rows() -> Iterator[str]:
    for field, info in Settings.model_fields.items():
        if field in SECTIONS:
            yield f"\n## {SECTIONS[field]}\n\n| variable | default | meaning |\n| --- | --- | --- |\n"
        names = ", ".join(f"`{name}`" for name in config.names(field))
        secret = " *secret*" if config.is_secret(field) else ""
        meaning = (info.description or "").replace("|", "\\|")
        yield f"| {names}{secret} | {_default(info.default)} | {meaning} |\n"


def _default(value: object) -> str:
    unset = value in (None, (), {}) or repr(value) == "PydanticUndefined"
    return "" if unset else f"`{value}`"


def command_line() -> str:
    """The page of all commands, from the application that runs them."""
    group = typer.main.get_command(application())
    return CLI_INTRODUCTION + "".join(_commands(group, ["mediamill"]))


def _commands(group: Any, path: list[str]) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _commands(command, [*path, name])
            continue
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
        usage = " ".join([*path, name, *(_shown(p) for p in arguments)])
        yield f"\n## {' '.join([*path[1:], name])}\n\n`{usage}`\n\n{command.help}\n"
        if arguments or options:
            yield "\n| | meaning |\n| --- | --- |\n"
        for parameter in (*arguments, *options):
            yield f"| {_parameter(parameter)} | {(parameter.help or '').replace('|', chr(92) + '|')} |\n"


def _shown(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_shown(parameter)}`"
    spelled = [*parameter.opts, *parameter.secondary_opts]
    return ", ".join(f"`{name}`" for name in spelled)


PAGES = {"docs/reference/configuration.md": configuration, "docs/reference/cli.md": command_line}


def stale() -> list[str]:
    """Pages that are not what the code says."""
    return [name for name, make in PAGES.items() if not _is(ROOT / name, make())]


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def main() -> int:
    if "--check" in sys.argv:
        for name in stale():
            print(f"{name} is stale; mend with: python tools/reference.py")
        return 1 if stale() else 0
    for name, make in PAGES.items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(make())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The edge of every command: settings in, one sentence and an exit status out."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Any

import typer

from mediamill import __version__, config
from mediamill.config import Loaded
from mediamill.errors import (
    Cancelled,
    InputError,
    InvalidRequest,
    MediamillError,
    Misconfigured,
    NotFound,
    Unauthorized,
)

log = logging.getLogger("mediamill.cli")


class Exit(IntEnum):
    """Exit statuses."""

    DONE = 0
    FAILED = 1
    """The job failed, or something is wrong with this machine."""
    USAGE = 2
    """The command, a file given to it, or a setting is wrong; nothing was done."""
    CANCELLED = 130


_USAGE = (InvalidRequest, InputError, Misconfigured, NotFound, Unauthorized)


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command line; the CLI's only place that catches everything."""
    try:
        status = app(list(arguments) or ["--help"], standalone_mode=False)
    except typer.Exit as error:
        return error.exit_code
    except typer.TyperException as error:
        print(f"error: {error.format_message()} (mediamill COMMAND --help tells how)", file=sys.stderr)
        return Exit.USAGE
    except (typer.Abort, KeyboardInterrupt, asyncio.CancelledError, Cancelled):
        print("cancelled", file=sys.stderr)
        return Exit.CANCELLED
    except MediamillError as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.USAGE if isinstance(error, _USAGE) else Exit.FAILED
    except BrokenPipeError:
        sys.stderr.close()
        return Exit.FAILED
    except Exception as error:  # the CLI edge
        log.debug("the command failed", exc_info=True)
        print(f"error: {type(error).__name__}: {error} (LOG_LEVEL=debug shows more)", file=sys.stderr)
        return Exit.FAILED
    if status == Exit.CANCELLED:  # how typer tells a Ctrl-C
        print("cancelled", file=sys.stderr)
    return status if isinstance(status, int) else Exit.DONE


def _tell_version(*, wanted: bool) -> None:
    if wanted:
        print(f"mediamill {__version__}")
        raise typer.Exit


def common(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version.",
            is_eager=True,
            callback=lambda value: _tell_version(wanted=value),
        ),
    ] = False,
) -> None:
    """Media generation and processing on one durable job core."""
    del version  # told before any command is looked for


def settings_for(*, quiet: bool = False, **given: Any) -> Loaded:
    """Read the settings, set logging up by them, and warn of variables that mean nothing.

    Args:
        quiet: For commands whose output is the result: only warnings are logged.
        given: Settings from the command line, by field; None: not given.
    """
    from mediamill.cli import _logs

    loaded = config.load(**given)
    _logs.set_up("warning" if quiet and loaded.settings.log_level == "info" else loaded.settings.log_level)
    config.export(loaded.settings)
    for sentence in loaded.warnings:
        log.warning("%s", sentence)
    return loaded

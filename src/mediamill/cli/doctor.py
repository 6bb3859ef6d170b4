"""`mediamill doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(_doctor)


def _doctor(
    data_dir: Annotated[Path | None, typer.Option(help="Folder for everything that is written.")] = None,
) -> int:
    """Check settings, database, storage, FFmpeg, fonts, GPU and disk; say how to mend what is wrong."""
    import asyncio

    from mediamill.cli import _checks
    from mediamill.cli._edge import Exit, settings_for

    loaded = settings_for(quiet=True, data_dir=data_dir)

    async def main() -> int:
        wrong = 0
        async for finding in _checks.findings(loaded):
            print(f"{'ok   ' if finding.mend is None else 'WRONG'} {finding.about}: {finding.fact}", flush=True)
            if finding.mend is not None:
                wrong += 1
                print(f"      mend: {finding.mend}", flush=True)
        return wrong

    return Exit.FAILED if asyncio.run(main()) else Exit.DONE

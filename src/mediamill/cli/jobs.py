"""`mediamill jobs`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlencode

import typer

if TYPE_CHECKING:
    from mediamill.cli._client import Service

T = TypeVar("T")
Server = Annotated[str | None, typer.Option(help="URL of the service. [default: http://127.0.0.1:8000]")]
JobId = Annotated[str, typer.Argument(metavar="JOB")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    jobs = typer.Typer(name="jobs", help="Ask a service for its jobs.", no_args_is_help=True)
    for command in (_list, _show, _wait, _cancel):
        jobs.command(command.__name__.removeprefix("_"))(command)
    app.add_typer(jobs)


def _list(
    status: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed or cancelled.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many at most.")] = 20,
    server: Server = None,
) -> None:
    """List jobs, the newest first."""
    from rich.table import Table

    from mediamill.cli import _show as show

    wanted = {"limit": limit, **({"status": status} if status else {}), **({"model": model} if model else {})}
    page = _with_service(server, lambda service: service.ask("GET", f"/v1/jobs?{urlencode(wanted)}"))
    table = Table("job", "model", "status", "progress", "created", box=None)
    for job in page["data"]:
        table.add_row(job["id"], job["model"], job["status"], f"{job['progress']} %", job["created_at"])
    if page["data"]:
        show.rows(table)
    else:
        print("There are no jobs.")


def _show(job_id: JobId, server: Server = None) -> None:
    """Print a job as JSON."""
    _print(_with_service(server, lambda service: service.ask("GET", f"/v1/jobs/{job_id}")))


def _wait(
    job_id: JobId,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Fetch the results into this folder.")] = None,
    server: Server = None,
) -> None:
    """Follow a job to its end; fails when the job failed. Ctrl-C stops following, the job goes on."""
    from mediamill.cli import _show as show
    from mediamill.cli._work import doing, raise_failure, targets

    async def follow(service: Service) -> list[Path]:
        with show.progress(job_id) as on_progress:

            async def told(job: Mapping[str, Any]) -> None:
                on_progress(job["progress"] / 100, doing(job))

            job = await service.follow(job_id, told, owner=False)
        raise_failure(job)
        if out is None:
            _print(job)
            return []
        paths = targets(out, [artifact["name"] for artifact in job["artifacts"]])
        for artifact, path in zip(job["artifacts"], paths, strict=True):
            await service.download(artifact["url"], path)
        return paths

    show.files(_with_service(server, follow))


def _cancel(job_id: JobId, server: Server = None) -> None:
    """Ask for a job's end and print it."""
    _print(_with_service(server, lambda service: service.cancel(job_id)))


def _print(job: Mapping[str, Any]) -> None:
    import json

    print(json.dumps(job, indent=2, ensure_ascii=False))


def _with_service(server: str | None, work: Callable[[Service], Awaitable[T]]) -> T:
    import asyncio

    from mediamill.cli._client import connect
    from mediamill.cli._edge import settings_for

    settings = settings_for(quiet=True, server=server).settings

    async def main() -> T:
        async with connect(settings, settings.server or f"http://127.0.0.1:{settings.port}") as service:
            return await work(service)

    return asyncio.run(main())

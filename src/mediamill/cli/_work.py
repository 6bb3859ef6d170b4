"""What the commands that do work share: an order is carried out here, or by a service, with progress and Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer

from mediamill import catalog, plugins
from mediamill.cli._edge import settings_for
from mediamill.config import Settings
from mediamill.errors import EngineFailed, InvalidRequest, MediamillError, UnsupportedMedia, every_class
from mediamill.media import sniff
from mediamill.model import InputFile, Json, OutputData, OutputFile, Progress, Work

Server = Annotated[
    str | None, typer.Option(help="URL of a service to use; its key is X_API_KEY. [default: work on this machine]")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where results go: a folder, or a file for a single result.")]

_SUBTITLES = (".srt", ".ass", ".vtt")
_SUFFIX = {"image": ".png", "video": ".mp4"}
"""Of what generative models make."""

OnProgress = Callable[[float, str], None]
"""`on_progress(fraction, what is being done)`."""


@dataclass(frozen=True)
class Order:
    """What a command asks for: a catalog entry's fields, and local files for its input fields."""

    model: str
    fields: Mapping[str, Json]
    files: Mapping[str, Path]
    """By dotted field path, e.g. "images.0.image_url"."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Better names for results, by the name the job gives them."""
    results: int = 1
    """How many files are sure to come."""


@dataclass
class Delivered:
    """Finished files, and the job's plain results."""

    files: list[Path] = field(default_factory=list)
    output: dict[str, Json] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def carry_out(
    order: Order, *, out: Path, server: str | None, on_preview: Callable[[Path], None] | None = None
) -> Delivered:
    """Do it with a progress bar, say what was made, and return it. Ctrl-C cancels the work.

    `on_preview` gets each look at unfinished work.

    Raises: InvalidRequest: a file or field is wrong; MediamillError: as the work raised; KeyboardInterrupt.
    """
    from mediamill.cli import _show

    settings = settings_for(quiet=True, server=server).settings
    _check_room(out, order.results)
    for name, path in order.files.items():
        if not path.is_file():
            raise InvalidRequest(f"{name}: there is no file {str(path)!r}.")
    with _show.progress(order.model) as on_progress:
        run = (
            by_service(order, settings, out, on_progress, on_preview)
            if settings.server
            else here(order, settings, out, on_progress, on_preview)
        )
        delivered = asyncio.run(run)
    for sentence in delivered.warnings:
        _show.warn(sentence)
    _show.files(delivered.files)
    return delivered


async def here(
    order: Order,
    settings: Settings,
    out: Path,
    on_progress: OnProgress,
    on_preview: Callable[[Path], None] | None = None,
) -> Delivered:
    """Carry it out in a child process of ours."""
    entry, settings = catalog.get(order.model), settings.unrouted()
    values = catalog.with_values(order.fields, {name: f"file:{path.name}" for name, path in order.files.items()})
    request, warnings = catalog.validate(entry, values)
    here = entry.allow(request, settings) or ()
    work = Work(
        job_id=uuid4().hex,  # seeds are drawn from it
        attempt=1,
        model=entry.name,
        params=request.model_dump(mode="json"),
        inputs={name: _input(name, path) for name, path in order.files.items()},
    )
    pool = catalog.pool_of(entry, settings)
    alone = settings.model_copy(update={"cpu_slots": settings.cpu_slots or 1})  # nothing else runs beside it
    provider = plugins.load("providers", "local").create(alone, pool=pool)
    delivered = Delivered(warnings=[*warnings, *here])
    with tempfile.TemporaryDirectory(prefix="mediamill-") as folder:
        events = provider.run(work, scratch=Path(folder), deadline_s=settings.run_timeout_s or entry.run_timeout_s)
        made: list[OutputFile] = []
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, Progress):
                        told = {"message": event.message, "phase": event.phase, "eta_s": event.eta_s}
                        on_progress(event.fraction, doing(told))
                    elif isinstance(event, OutputData):
                        found = dict(event.values)
                        delivered.warnings += found.pop("warnings", ())
                        delivered.output.update(found)
                    elif isinstance(event, OutputFile) and not event.preview:
                        made.append(event)
                    elif isinstance(event, OutputFile) and on_preview is not None:
                        on_preview(event.path)
        finally:
            await provider.close()
        names = [order.names.get(output.name, output.name) for output in made]
        for output, target in zip(made, targets(out, names), strict=True):
            shutil.move(output.path, target)
            delivered.files.append(target)
    return delivered


def doing(job: Mapping[str, Any]) -> str:
    """What a job does and how long it will take, as far as its envelope says."""
    what = str(job.get("message") or job.get("phase") or job.get("status") or "")
    return what if job.get("eta_s") is None else f"{what}, {math.ceil(job['eta_s'])} s left"


async def by_service(
    order: Order,
    settings: Settings,
    out: Path,
    on_progress: OnProgress,
    on_preview: Callable[[Path], None] | None = None,
) -> Delivered:
    """Upload, submit, follow, download."""
    from mediamill.cli._client import connect

    async with connect(settings, settings.server or "") as service:
        sent: dict[str, str] = {}
        for done, (name, path) in enumerate(order.files.items()):
            on_progress(0.0, f"uploading {done + 1}/{len(order.files)}")
            sent[name] = await service.upload(path)
        job = await service.submit(order.model, catalog.with_values(order.fields, sent))
        seen = None

        async def told(job: Mapping[str, Any]) -> None:
            nonlocal seen
            on_progress(job["progress"] / 100, doing(job))
            if on_preview is not None and (url := job.get("preview_url")) not in {None, seen}:
                seen = url
                with tempfile.TemporaryDirectory(prefix="mediamill-") as folder, contextlib.suppress(MediamillError):
                    path = Path(folder, "preview")
                    await service.download(str(url), path)
                    on_preview(path)

        job = await service.follow(job["id"], told)
        raise_failure(job)
        made = job["artifacts"]
        paths = targets(out, [order.names.get(artifact["name"], artifact["name"]) for artifact in made])
        for artifact, path in zip(made, paths, strict=True):
            await service.download(artifact["url"], path)
        return Delivered(paths, dict(job["output"] or {}), list(job["warnings"]))


def raise_failure(job: Mapping[str, Any]) -> None:
    """Raise what ended a job that did not succeed, by its code."""
    if job["status"] == "succeeded":
        return
    error = job["error"] or {"code": job["status"], "message": f"Job {job['id']} was {job['status']}."}
    kind = next((cls for cls in every_class() if cls.code == error["code"]), EngineFailed)
    raise kind(error["message"])


def targets(out: Path, names: Sequence[str]) -> list[Path]:
    """Where results go: `out` itself for one result when it looks like a file, else under it. Folders are made.

    Raises: InvalidRequest: a file was named for several results.
    """
    _check_room(out, len(names))
    paths = [out] if _is_file(out) and names else [out / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    return paths


def check_suffix(out: Path, model: str) -> None:
    """Raises InvalidRequest for a file's name that says another kind than what the model makes."""
    suffix = _SUFFIX.get(catalog.get(model).output_kind)
    if suffix and _is_file(out) and out.suffix.lower() != suffix:
        raise InvalidRequest(f"--out: {str(out)!r} must end in {suffix}, or be a folder.")


def _is_file(out: Path) -> bool:
    return bool(out.suffix) and not out.is_dir()


def _check_room(out: Path, results: int) -> None:
    if _is_file(out) and results > 1:
        raise InvalidRequest(f"--out: {str(out)!r} is one file and there are {results} results; name a folder.")


def _input(name: str, path: Path) -> InputFile:
    try:
        text = path.suffix.lower() in _SUBTITLES
        media_type = "application/x-subrip" if text else sniff.sniff(path).media_type
    except UnsupportedMedia as error:
        raise UnsupportedMedia(f"{name}: {str(path)!r}: {error.message}") from error
    return InputFile(name, path.resolve(), media_type, path.stat().st_size, "")

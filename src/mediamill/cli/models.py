"""`mediamill models list | check | pull | remove`: the weights of generative models on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mediamill.catalog import Entry

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Catalog name, e.g. zimage.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    models = typer.Typer(name="models", help="Weights of generative models on this machine.", no_args_is_help=True)
    for command in (_list, _check, _pull, _remove):
        models.command(command.__name__.removeprefix("_"))(command)
    app.add_typer(models)


def _list() -> None:
    """List the models, where their weights are and whether they are complete."""
    from rich.table import Table

    from mediamill import catalog
    from mediamill.cli import _show
    from mediamill.engines.diffusers import chosen, locate
    from mediamill.errors import ModelUnavailable

    settings = _settings()
    table = Table("model", "weights", "state", "size", "licence", box=None)
    for entry in catalog.load().values():
        if entry.weights is None:
            continue
        try:
            source = chosen.configured(entry, settings, ask_hub=False)
        except ModelUnavailable as error:
            table.add_row(entry.name, settings["MODEL_NAME"], error.message, "-", entry.licence or "-")
            continue
        folder = locate.find_folder(source, settings)
        size = "-" if folder is None else _show.size(locate.size_bytes(folder))
        table.add_row(entry.name, source, _state(folder), size, entry.licence or "-")
    _show.rows(table)


def _check(model: Model) -> None:
    """Check that the weights are that model's and all there; tells what is wrong or missing and fails then."""
    from mediamill.cli import _show
    from mediamill.engines.diffusers import chosen, locate

    settings, entry = _settings(), _entry(model)
    found = locate.located(_source(entry, settings), settings, name=model)
    locate.check_class(found, chosen.pipelines_of(entry), name=model)
    print(f"{model}: {found.pipeline} in {found.path}, complete")
    for component, numbers in found.component_params.items():
        if numbers:
            print(f"  {component}: {numbers / 1e9:.3f} billion parameters, {_show.size(2 * numbers)} in bfloat16")


def _pull(
    model: Model,
    source: Annotated[str | None, typer.Option(help="Another repo id than the configured one.")] = None,
) -> None:
    """Download a model's weights into the hub's cache, continuing what was begun."""
    from mediamill.cli import _show
    from mediamill.engines.diffusers import locate, pull
    from mediamill.errors import InvalidRequest

    settings, entry = _settings(), _entry(model)
    source = source or _source(entry, settings)
    if not locate.is_repo_id(source):
        raise InvalidRequest(f"{source!r} is a local path and not a repo id (owner/name); there is nothing to pull.")
    if entry.licence:
        print(f"{model} comes under: {entry.licence}")
    with _show.progress(f"pulling {source}") as show:
        folder = pull.pull(
            source,
            settings,
            on_bytes=lambda done, total: show(
                done / total if total else 1.0, f"{_show.size(done)} of {_show.size(total)}"
            ),
        )
    locate.located(source, settings, name=model)
    print(folder)


def _remove(
    model: Model,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model's weights from the hub's cache. A local folder of yours is not touched."""
    from mediamill.cli import _show
    from mediamill.engines.diffusers import locate, pull
    from mediamill.errors import InvalidRequest, NotFound

    settings, entry = _settings(), _entry(model)
    source = _source(entry, settings)
    if not locate.is_repo_id(source) or Path(source).expanduser().is_dir():
        raise InvalidRequest(f"{source!r} is a local path; delete it yourself if you want to.")
    homes = pull.cached(source, settings)
    if not homes:
        raise NotFound(f"{source} is not in the cache.")
    size = _show.size(sum(locate.size_bytes(home / "blobs") or locate.size_bytes(home) for home in homes))
    if not yes:
        typer.confirm(f"Delete {source} ({size})?", abort=True)
    pull.remove(source, settings)
    print(f"deleted {source}, {size}")


def _settings() -> Mapping[str, str]:
    """What a worker would pass to the engine."""
    from mediamill.cli._edge import settings_for
    from mediamill.providers._environment import engine_settings

    return engine_settings(settings_for(quiet=True).settings)


def _entry(model: str) -> Entry:
    from mediamill import catalog
    from mediamill.errors import InvalidRequest

    entry = catalog.get(model)
    if entry.weights is None:
        named = ", ".join(name for name, e in catalog.load().items() if e.weights)
        raise InvalidRequest(f"{model} has no weights of this kind; these have: {named}.")
    return entry


def _source(entry: Entry, settings: Mapping[str, str]) -> str:
    from mediamill.engines.diffusers import chosen

    return chosen.configured(entry, settings)


def _state(folder: Path | None) -> str:
    from mediamill.engines.diffusers import locate

    if folder is None:
        return "not here"
    lacking = locate.missing(folder)
    return f"incomplete: {lacking[0]}" if lacking else "complete"

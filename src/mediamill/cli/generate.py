"""`mediamill generate MODEL PROMPT`: one command for each generative catalog entry, its options from the request schema."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.core import TyperGroup

from mediamill.model import Json

_HELP = "Generate an image or a video, here or on a service; `mediamill generate MODEL --help` lists the options."
_HALF_BLOCK = "\u2580"
_PREVIEW_COLUMNS = 48


def register(app: typer.Typer) -> None:
    """Add the command group; the catalog is read when it is used."""
    group = typer.Typer(name="generate", cls=_Models, help=_HELP, no_args_is_help=True)
    group.callback()(_nothing)
    app.add_typer(group)


def _nothing() -> None:
    """Typer makes a group only of an app with a callback."""


class _Models(TyperGroup):
    """One command for each entry that takes a prompt, made when somebody looks."""

    @property  # type: ignore[override]  # the base has a plain attribute
    def commands(self) -> dict[str, Any]:
        """By model."""
        from mediamill import catalog

        return {
            name: _command(name) for name, entry in catalog.load().items() if "prompt" in entry.request.model_fields
        }

    @commands.setter
    def commands(self, _none: Any) -> None:
        """Typer sets what it was given: nothing."""


@cache
def _command(model: str) -> Any:
    from mediamill import catalog

    entry = catalog.get(model)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    def generate(**given: Any) -> None:
        _generate(model, given)

    parameters = list(_parameters(entry.request.model_fields))
    generate.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    generate.__annotations__ = {p.name: p.annotation for p in parameters}
    generate.__doc__ = entry.summary
    app.command(model)(generate)
    return typer.main.get_command(app)


def _parameters(fields: Mapping[str, FieldInfo]) -> Iterator[inspect.Parameter]:
    """`prompt` is the argument; an input file is an option without `_url`; base64 fields are not for a terminal."""
    from mediamill.cli._work import Out, Server

    yield _parameter("prompt", Annotated[str, typer.Argument(help="What to show.")], inspect.Parameter.empty)
    for name, info in fields.items():
        if name == "prompt" or name.endswith("_base64"):
            continue
        kind, choices = _option_type(name, info)
        option = (name.removesuffix("_url") if kind is Path else name).replace("_", "-")
        names = [f"--{option}", f"--no-{option}"] if kind is bool else [f"--{option}"]
        text = " ".join(filter(None, (info.description, choices, _default_text(info.default))))
        yield _parameter(name, Annotated[kind | None, typer.Option("/".join(names), help=text)], None)
    yield _parameter("out", Out, Path())
    yield _parameter("server", Server, None)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option_type(name: str, info: FieldInfo) -> tuple[Any, str]:
    """What Typer shall parse, and the choices where there are only some."""
    kinds = [k for k in _flat(info.annotation) if k is not type(None)]
    if name.endswith("_url") and kinds == [str]:
        return Path, "A local file."
    if get_origin(kinds[0]) is Literal:
        return str, f"One of {', '.join(map(str, get_args(kinds[0])))}."
    if get_origin(kinds[0]) is list:
        return list[str], ""
    return (float if float in kinds else kinds[0]), ""


def _flat(annotation: Any) -> list[Any]:
    if get_origin(annotation) in {UnionType, Union}:
        return [kind for arg in get_args(annotation) for kind in _flat(arg)]
    if get_origin(annotation) is Annotated:
        return _flat(get_args(annotation)[0])
    return [annotation]


def _default_text(default: Json) -> str:
    return "" if default in (None, "", PydanticUndefined) else f"[default: {default}]"


def _generate(model: str, given: dict[str, Any]) -> None:
    from mediamill.cli._work import Order, carry_out, check_suffix

    out, server = given.pop("out"), given.pop("server")
    check_suffix(out, model)
    files = {name: path for name, path in given.items() if isinstance(path, Path)}
    fields = {name: value for name, value in given.items() if value not in (None, []) and name not in files}
    on_preview: Callable[[Path], None] | None = _draw if sys.stderr.isatty() else None
    delivered = carry_out(Order(model, fields, files), out=out, server=server, on_preview=on_preview)
    if "seed" in delivered.output:
        print(f"seed {delivered.output['seed']}")


def _draw(path: Path) -> None:
    """A preview as coloured half blocks on standard error: two pixels a character."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        rows = max(2, round(_PREVIEW_COLUMNS * image.height / image.width / 2) * 2)
        small = image.convert("RGB").resize((_PREVIEW_COLUMNS, rows))
    pixels = np.asarray(small).tolist()
    for y in range(0, rows, 2):
        cells = (_cell(above, below) for above, below in zip(pixels[y], pixels[y + 1], strict=True))
        print(f"{''.join(cells)}\x1b[0m", file=sys.stderr)


def _cell(above: Sequence[int], below: Sequence[int]) -> str:
    upper, lower = (";".join(map(str, colour)) for colour in (above, below))
    return f"\x1b[38;2;{upper};48;2;{lower}m{_HALF_BLOCK}"

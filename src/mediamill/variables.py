"""Environment variables by their settings: every spelling, `_FILE` variants, contradictions, near misses.

Reads no environment itself: `config.py` hands it in, in layers.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mediamill.errors import Misconfigured

PREFIX = "MEDIAMILL_"
NAME = "<NAME>"
"""Stands in a family's variable for the catalog entry that the variable is about: upper case, `-` as `_`."""
_ORIGINS = ("environment", ".env")


@dataclass(frozen=True)
class Spelling:
    """The variables of one setting, the preferred one first. A secret may also lie in the file `<NAME>_FILE` names."""

    names: tuple[str, ...]
    secret: bool = False


@dataclass(frozen=True)
class Found:
    """A setting's text, the variable it came from, and where that variable is set ("environment" or ".env")."""

    text: str
    variable: str
    origin: str


@dataclass(frozen=True)
class Reading:
    """What the environment says, by field name, and what about it deserves a sentence."""

    found: Mapping[str, Found]
    families: Mapping[str, Mapping[str, Found]]
    """By field and NAME."""
    unknown: tuple[str, ...]
    """Sentences about MEDIAMILL_ variables that mean nothing here."""


def read(
    spellings: Mapping[str, Spelling], families: Mapping[str, str], layers: Sequence[Mapping[str, str]]
) -> Reading:
    """Look every setting up; the first layer is the environment, the second `.env`, and earlier ones win.

    Args:
        spellings: By field.
        families: By field, a variable with `<NAME>` in it: one setting for each catalog entry.
        layers: Variables and their values.

    Raises: Misconfigured when two spellings of one setting differ in one layer, or a `_FILE` cannot be read.
    """
    known = _known(spellings)
    found: dict[str, Found] = {}
    named: dict[str, dict[str, Found]] = {field: {} for field in families}
    unknown: dict[str, str] = {}
    for origin, layer in zip(_ORIGINS, layers, strict=False):
        for field, spelling in spellings.items():
            value = _look_up(spelling, layer, origin)
            if value is not None:
                found.setdefault(field, value)
        for variable in sorted(layer.keys() - known):
            member = _member(variable, families) if layer[variable] else None
            if member is not None:
                field, name = member
                named[field].setdefault(name, Found(layer[variable], variable, origin))
            elif variable.startswith(PREFIX):
                unknown.setdefault(variable, _unknown(variable, known))
    return Reading(found, named, tuple(unknown.values()))


def _member(variable: str, families: Mapping[str, str]) -> tuple[str, str] | None:
    """The field and the NAME of a variable that belongs to a family."""
    for field, template in families.items():
        before, _, after = template.partition(NAME)
        name = variable.removeprefix(before).removesuffix(after)
        if name and variable == f"{before}{name}{after}":
            return field, name
    return None


def _known(spellings: Mapping[str, Spelling]) -> frozenset[str]:
    """Every variable that means something here."""
    names = {name: spelling.secret for spelling in spellings.values() for name in spelling.names}
    return frozenset((*names, *(f"{name}_FILE" for name, secret in names.items() if secret)))


def _look_up(spelling: Spelling, layer: Mapping[str, str], origin: str) -> Found | None:
    """The one value of a setting in one layer; empty variables count as unset."""
    candidates = [Found(layer[name], name, origin) for name in spelling.names if layer.get(name)]
    if spelling.secret:
        files = [f"{name}_FILE" for name in spelling.names]
        candidates += [Found(_secret_in(name, layer[name]), name, origin) for name in files if layer.get(name)]
    if len({found.text for found in candidates}) > 1:
        variables = " and ".join(found.variable for found in candidates)
        raise Misconfigured(f"{variables} ({origin}) are one setting and have different values; keep one of them.")
    return candidates[0] if candidates else None


def _secret_in(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise Misconfigured(
            f"{variable}={path!r} must name a readable file that holds the secret: {reason}."
        ) from error


def _unknown(variable: str, known: frozenset[str]) -> str:
    bare = variable.removeprefix(PREFIX)
    close = [bare] if bare in known else difflib.get_close_matches(variable, sorted(known), n=1)
    return f"{variable} is not a setting of mediamill" + (f"; did you mean {close[0]}?" if close else ".")

"""Find a module by kind and file name; loud on failure."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType

from mediamill.errors import NotFound


def names(kind: str) -> list[str]:
    """File names of `mediamill.<kind>` and of the entry points in group `mediamill.<kind>`, sorted."""
    package = importlib.import_module(f"mediamill.{kind}")
    own = {m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}
    return sorted(own | {e.name for e in entry_points(group=f"mediamill.{kind}")})


def load(kind: str, name: str) -> ModuleType:
    """Import `mediamill.<kind>.<name>`, or the outside module registered under that name.

    Raises:
        NotFound: there is no such plugin; the message lists those there are.
        ImportError: it exists and does not import (never swallowed).
    """
    known = names(kind)
    if name not in known:
        raise NotFound(f"There is no {kind} named {name!r}; there are: {', '.join(known)}.")
    for entry in entry_points(group=f"mediamill.{kind}"):
        if entry.name == name:
            module = entry.load()
            if not isinstance(module, ModuleType):
                raise TypeError(f"The entry point {name!r} of mediamill.{kind} must be a module, not {module!r}.")
            return module
    return importlib.import_module(f"mediamill.{kind}.{name}")


def load_all(kind: str) -> dict[str, ModuleType]:
    """Every plugin of a kind by name."""
    return {name: load(kind, name) for name in names(kind)}

"""Which weights an entry runs on: its own setting, else MODEL_NAME where that is this model, else the default repo."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from mediamill import catalog
from mediamill.catalog import Entry, Weights
from mediamill.engines.diffusers import locate, pull
from mediamill.engines.diffusers.plans import Family
from mediamill.errors import ModelUnavailable, NotImplementedYet


def family_of(weights: Weights) -> Family:
    """The module of this folder that runs these weights. Raises NotImplementedYet when there is none."""
    name = f"mediamill.engines.diffusers.{weights.family}"
    if importlib.util.find_spec(name) is None:
        raise NotImplementedYet(f"The pipelines of {weights.repo} do not exist here yet.")
    module: Any = importlib.import_module(name)
    family: Family = module
    return family


def pipelines_of(entry: Entry) -> Sequence[str]:
    """Class names that an entry's family runs; empty for any, and where there is no family."""
    try:
        return family_of(entry.weights).PIPELINES if entry.weights else ()
    except NotImplementedYet:
        return ()


def configured(entry: Entry, settings: Mapping[str, str], *, ask_hub: bool = True) -> str:
    """The path or repo id that is in force for an entry.

    `MODEL_NAME` of a single-model worker counts for the entries that run those weights; the others keep theirs.

    Args:
        entry: One that has weights.
        settings: By upper-case name.
        ask_hub: Whether a repo that is in no cache may be asked what it is (one small file, once).

    Raises: ModelUnavailable: nothing tells what MODEL_NAME is. It is meant, so nothing else runs in its place.
    """
    own = settings.get(locate.setting_name(entry.name))
    default = entry.weights.repo if entry.weights else entry.name
    single = settings.get("MODEL_NAME")
    if own or not single:
        return own or default
    try:
        return single if entry.name in entries_for(single, settings, ask_hub=ask_hub) else default
    except ModelUnavailable as error:
        raise ModelUnavailable(f"MODEL_NAME: {error.message}") from error


def entries_for(source: str, settings: Mapping[str, str], *, ask_hub: bool = True) -> tuple[str, ...]:
    """Catalog names that run the weights at a path or repo id: told by the repo id, else by the pipeline found there.

    Raises: ModelUnavailable: no model's weights, or nothing tells whose.
    """
    entries = [entry for entry in catalog.load().values() if entry.weights is not None]
    named = tuple(e.name for e in entries if e.weights is not None and e.weights.repo == source)
    if named:
        return named
    pipeline = _pipeline(source, settings, ask_hub=ask_hub)
    running = tuple(e.name for e in entries if pipeline in pipelines_of(e))
    if not running:
        accepted = ", ".join(sorted({name for e in entries for name in pipelines_of(e)}))
        raise ModelUnavailable(f"{source!r} is of class {pipeline}, which nothing here runs; accepted: {accepted}.")
    return running


def _pipeline(source: str, settings: Mapping[str, str], *, ask_hub: bool) -> str:
    """The class of the pipeline, from the folder, the cache or the hub."""
    folder = locate.find_folder(source, settings)
    pipeline = locate.pipeline_in(folder) if folder is not None else ""
    if pipeline:
        return pipeline
    if not locate.is_repo_id(source):
        lacks = "is no folder and no repo id (owner/name)" if folder is None else "has no model_index.json"
        raise ModelUnavailable(f"{source!r} {lacks}: no diffusers pipeline is there.")
    if not (ask_hub and pull.allowed(source)):
        raise ModelUnavailable(f"{source!r} is not in the model cache, and without the hub nothing tells what it is.")
    return str(pull.index(source, settings).get("_class_name", ""))

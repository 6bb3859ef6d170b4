"""Where a model's weights lie on this machine, and whether they are all there. Imports no GPU library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from mediamill.errors import ModelUnavailable

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = (".safetensors", ".bin")
_VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\..+)")
_MOUNTED_CACHES = ("/runpod-volume/huggingface-cache/hub", "/runpod-volume/cache")


@dataclass(frozen=True)
class Located:
    """A complete pipeline folder. `source` is what was configured: a path or a repo id."""

    path: Path
    source: str
    pipeline: str
    """`_class_name` of its model_index.json."""
    component_params: Mapping[str, int]
    """Stored numbers by component, from the headers of the weight files."""


def setting_name(entry_name: str) -> str:
    """`MEDIAMILL_MODEL_LTX_VIDEO` for `ltx-video`."""
    return f"MEDIAMILL_MODEL_{entry_name.upper().replace('-', '_')}"


def cache_folders(settings: Mapping[str, str]) -> list[Path]:
    """Hub caches to look in, in order; the first is where a pull writes."""
    named = [settings.get("HF_HUB_CACHE") or settings.get("HUGGINGFACE_HUB_CACHE")]
    if home := settings.get("HF_HOME"):
        named.append(f"{home}/hub")
    named.append(settings.get("TRANSFORMERS_CACHE"))
    named += ["~/.cache/huggingface/hub", *_MOUNTED_CACHES]
    return list(dict.fromkeys(Path(name).expanduser() for name in named if name))


def find_folder(source: str, settings: Mapping[str, str]) -> Path | None:
    """The folder of a local path or of a cached repo (its `refs/main`, else its newest snapshot), complete or not."""
    local = Path(source).expanduser()
    if local.is_dir():
        return local
    if not is_repo_id(source):
        return None
    found = (_snapshot(cache / f"models--{source.replace('/', '--')}") for cache in cache_folders(settings))
    return next((folder for folder in found if folder is not None), None)


def is_repo_id(source: str) -> bool:
    """Whether `source` can be a repo id (`owner/name`) rather than a path."""
    return _REPO_ID.fullmatch(source) is not None


def _snapshot(repo: Path) -> Path | None:
    snapshots = repo / "snapshots"
    main = repo / "refs" / "main"
    if main.is_file() and (named := snapshots / main.read_text().strip()).is_dir():
        return named
    every = [p for p in snapshots.iterdir() if p.is_dir()] if snapshots.is_dir() else []
    return max(every, key=lambda p: p.stat().st_mtime, default=None)


def located(source: str, settings: Mapping[str, str], *, name: str) -> Located:
    """The complete folder of `source`. Raises ModelUnavailable: not there, partial, or not a pipeline."""
    folder = find_folder(source, settings)
    if folder is None:
        where = (
            f"is not in the model cache; get it with `mediamill models pull {name}`"
            if is_repo_id(source)
            else f"is no folder; set {setting_name(name)} to a local path or a repo id"
        )
        raise ModelUnavailable(f"The weights of {name}: {source!r} {where}.")
    lacking = missing(folder)
    if lacking:
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")  # noqa: PLR2004 - three names fit a line
        mend = f"finish it with `mediamill models pull {name}`" if is_repo_id(source) else "copy them again"
        raise ModelUnavailable(f"The weights of {name} ({source!r}) are incomplete: {shown}; {mend}.")
    return Located(folder, source, pipeline_in(folder), _params(folder))


def check_class(found: Located, pipelines: Sequence[str], *, name: str) -> None:
    """Raises ModelUnavailable for weights of none of these pipelines; no pipelines: any will do."""
    if pipelines and found.pipeline not in pipelines:
        raise ModelUnavailable(
            f"The weights of {name} are of class {found.pipeline}; accepted: {', '.join(pipelines)}. "
            f"See {setting_name(name)}."
        )


def missing(folder: Path) -> list[str]:
    """What a pipeline folder lacks: names of absent or cut-off files; empty when it is complete."""
    index = _index(folder)
    if not index:
        return ["model_index.json"]
    return [problem for name, cls in _components(index) for problem in _missing_of(folder / name, cls)]


def size_bytes(folder: Path) -> int:
    """Bytes of a folder's files, following links."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _index(folder: Path) -> dict[str, object]:
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


def pipeline_in(folder: Path) -> str:
    """`_class_name` of a pipeline folder's model_index.json; "" where there is none."""
    return str(_index(folder).get("_class_name", ""))


def _components(index: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Folders that a pipeline needs, and the class of what is in them: entries of the form [library, class]."""
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and value[1]:  # noqa: PLR2004 - [library, class]
            yield name, str(value[1])


def _missing_of(home: Path, cls: str) -> list[str]:
    if not home.is_dir():
        return [f"{home.name}/"]
    configs = [p for p in home.glob("*.json") if p.is_file()]
    if not configs:
        return [f"{home.name}/config.json"]
    if "Tokenizer" in cls:
        whole = any(p.is_file() for pattern in _VOCABULARY for p in home.glob(pattern))
        return [] if whole else [f"{home.name}/{_VOCABULARY[0]}"]
    if not (home / "config.json").exists():
        return []  # a scheduler or processor: no weights
    shards = {s for p in configs if p.name.endswith(".index.json") for s in _shards(p)}
    names = shards or {s for p in home.iterdir() if p.suffix in _WEIGHTS for s in _siblings(p.name)}
    if not names:
        return [f"{home.name}/*.safetensors"]
    return [f"{home.name}/{name}" for name in sorted(names) if not _whole(home / name)]


def _siblings(name: str) -> list[str]:
    """All the shards that one shard's name (`model-00001-of-00003.safetensors`) says there are."""
    shard = _SHARD.fullmatch(name)
    if shard is None:
        return [name]
    stem, count, suffix = shard.groups()
    return [f"{stem}-{number:05d}-of-{count}{suffix}" for number in range(1, int(count) + 1)]


def _shards(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text()).get("weight_map", {}).values())
    except (OSError, ValueError, AttributeError):
        return {index.name}


def _whole(path: Path) -> bool:
    """Whether a weight file is there and, for safetensors, as long as its header says."""
    if not path.is_file():
        return False
    if path.suffix != ".safetensors":
        return path.stat().st_size > 0
    header = _header(path)
    if header is None:
        return False
    start, tensors = header
    end = max((t["data_offsets"][1] for t in tensors.values()), default=0)
    return path.stat().st_size == start + int(end)


_Header = tuple[int, dict[str, dict[str, list[int]]]]


def _header(path: Path) -> _Header | None:
    """Where the data begins, and the tensors' entries."""
    stat = path.stat()
    return _read_header(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _read_header(path: Path, _size_bytes: int, _modified_ns: int) -> _Header | None:
    """Once for each state of a file: every job looks whether its weights are still there."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < 100 * 1024**2:
            return None
        try:
            header = json.loads(file.read(length))
            tensors = {name: _entry(value) for name, value in header.items() if name != "__metadata__"}
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
    return 8 + length, tensors


def _entry(value: Any) -> dict[str, list[int]]:
    """Raises TypeError or KeyError for what is no tensor's entry."""
    return {
        "shape": list(value["shape"]),
        "data_offsets": [int(value["data_offsets"][0]), int(value["data_offsets"][1])],
    }


def _params(folder: Path) -> dict[str, int]:
    """Numbers stored by component; a .bin file counts as half-precision."""
    return {name: _numbers(folder / name) for name, _cls in _components(_index(folder))}


def _numbers(home: Path) -> int:
    if not (home / "config.json").exists():
        return 0
    files = sorted(home.glob("*.safetensors"))
    plain = [p for p in files if p.stem.count(".") == 0]  # `model.fp16.safetensors` is the same weights once more
    headers = [_header(p) for p in plain or files]
    if not headers:
        return sum(p.stat().st_size // 2 for p in home.glob("*.bin"))
    shapes = chain.from_iterable((t["shape"] for t in header[1].values()) for header in headers if header)
    return sum(_product(shape) for shape in shapes)


def _product(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total

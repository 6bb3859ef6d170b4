"""What can be asked for. One file an entry; each registers itself with `register(Entry(...))` at import.

Imports no GPU library: the API process reads this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from mediamill import keys, plugins
from mediamill.config import Place, Settings, variable_part
from mediamill.errors import Detail, InvalidRequest, Misconfigured, NotFound
from mediamill.model import Job, Json

MediaKind = Literal["image", "video", "audio", "subtitles", "any"]
Pool = Literal["cpu", "gpu", "remote"]


@dataclass(frozen=True)
class Source:
    """Marks a request field as an input file: a URL, a `file:` reference, a `data:` URI or base64.

    Used as `image_url: Annotated[str, Source("image")]`. `max_bytes` caps the download.
    """

    kind: MediaKind
    max_bytes: int = 512 * 1024**2


ImageUrl = Annotated[str, Source("image", max_bytes=64 * 1024**2)]
VideoUrl = Annotated[str, Source("video", max_bytes=4 * 1024**3)]
AudioUrl = Annotated[str, Source("audio", max_bytes=2 * 1024**3)]
SubtitlesUrl = Annotated[str, Source("subtitles", max_bytes=4 * 1024**2)]


def _plain_folders(value: str) -> str:
    if any(ord(c) < 32 or ord(c) == 127 for c in value) or "\\" in value:  # noqa: PLR2004 - ASCII control characters
        raise ValueError("must not hold control characters or backslashes")
    if any(part in {"", ".", ".."} for part in value.strip("/").split("/")) and value.strip("/"):
        raise ValueError("must be plain folder names joined by '/', without '.' or '..'")
    if any(len(part.encode()) > keys.MAX_COMPONENT_BYTES for part in value.split("/")):
        raise ValueError(f"must have folder names of at most {keys.MAX_COMPONENT_BYTES} bytes")
    if keys.is_own(value):
        raise ValueError(
            "must not lie in attempts/, previews/, uploads/, .mediamill/ or a job's own folder of outputs/"
        )
    return value


def _plain_name(value: str) -> str:
    if any(ord(c) < 32 or ord(c) == 127 for c in value) or "/" in value or "\\" in value:  # noqa: PLR2004 - as above
        raise ValueError("must be a file name without folders and control characters")
    if not value.lower().endswith(".mp4") or not value[:-4].strip(". "):
        raise ValueError("must be a file name that ends in .mp4")
    return value


KeyFolder = Annotated[str, AfterValidator(_plain_folders), Field(max_length=512)]
"""A caller's folder for results: `Project/Video/`. A leading slash is left out, a trailing one added."""
VideoName = Annotated[str, AfterValidator(_plain_name), Field(max_length=200)]
"""A caller's name for one MP4."""


Seed = Annotated[int | None, Field(ge=0, lt=2**53)]
"""Unset or null: drawn, and told in the result. Below what every JSON reader keeps exact."""


def _even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even for H.264 video")
    return value


EvenPx = Annotated[int, AfterValidator(_even), Field(json_schema_extra={"multipleOf": 2})]
"""A side of a video."""


def folder_prefix(request: Any) -> str | None:
    """`key_prefix` of an entry whose request has a `path`."""
    folder = (request.path or "").strip("/")
    return f"{folder}/" if folder.strip() else None


def folder_warnings(request: Any) -> Sequence[str]:
    """`warn` of an entry whose request has a `path`."""
    return ("path: the leading slash was left out.",) if (request.path or "").startswith("/") else ()


@dataclass(frozen=True)
class InputRef:
    """One input of a request: the dotted field path, what it holds, and its limits."""

    field: str
    value: str
    source: Source


class Request(BaseModel):
    """Base of every catalog request: unknown fields are accepted and named in `warnings`, lossless strings coerced."""

    model_config = ConfigDict(
        extra="ignore", str_strip_whitespace=False, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """Unlike a string of digits, `true` is never meant as 1."""
        if isinstance(value, bool):
            types = _types_in(cls.model_fields[str(info.field_name)].annotation)
            if types & {int, float} and bool not in types:
                raise ValueError("must be a number")
        return value


def _types_in(annotation: Any) -> set[Any]:
    """An annotation and everything inside its unions, `Annotated` and containers."""
    return {annotation}.union(*(_types_in(arg) for arg in getattr(annotation, "__args__", ())))


@dataclass(frozen=True)
class Weights:
    """The weights an entry runs on, when its engine loads any."""

    repo: str
    """Repo id of the default weights; `MEDIAMILL_MODEL_<NAME>` puts another repo id or a local path in its place."""
    family: str = "plain"
    """File in the engine's folder that knows this family of pipelines."""
    size_multiple: int = 16
    """Width and height are generated on this grid and cropped to what was asked."""
    frame_multiple: int = 0
    """Frame counts are generated as `frame_multiple * k + 1`, the tail dropped; 0: not a video model."""


@dataclass(frozen=True)
class Entry:
    """One model or operation that can be asked for."""

    name: str
    """Its id in every API: lower case, digits, `-`."""
    summary: str
    request: type[Request]
    engine: str
    """File name in `engines/`."""
    output_kind: Literal["image", "video", "audio", "json"]
    pool: Pool = "cpu"
    queued_timeout_s: float = 24 * 3600.0
    run_timeout_s: float = 3600.0
    partial_inputs: bool = False
    """An input that cannot be had reaches the engine as an `input_errors` entry instead of failing the job."""
    key_prefix: Callable[[Any], str | None] = lambda _request: None
    """The caller's own key prefix (ends with "/"), or None for `outputs/{job_id}/`."""
    split: Callable[[Any, int, int], Sequence[Mapping[str, Json]]] | None = None
    """`split(request, above, parts)`: inputs of the parts, or empty to run whole. Each part is a job of this entry."""
    merge: Callable[[Any, Sequence[Job]], Mapping[str, Json]] | None = None
    """`merge(request, parts in order)`: the parent's output. Its artifacts are the parts' artifacts in order."""
    warn: Callable[[Any], Sequence[str]] = lambda _request: ()
    """Sentences for the reply's `warnings`: accepted, but not what the caller may expect."""
    allow: Callable[[Any, Settings], Sequence[str] | None] = lambda _request, _settings: None
    """Called before queueing; raises InvalidRequest for what these settings do not permit, NotImplementedYet for what
    is documented and does not exist yet. Returns sentences like those of `warn`, where they depend on the settings."""
    examples: Sequence[Mapping[str, Json]] = field(default_factory=tuple)
    licence: str | None = None
    weights: Weights | None = None


SHARED = "shared"
"""Stands for the RunPod endpoint of RUNPOD_ENDPOINT_ID where catalog names are listed."""
MAX_DETAILS = 1000
"""Wrong fields named in one reply."""

_entries: dict[str, Entry] = {}


def register(entry: Entry) -> Entry:
    """Make an entry known. A second one under the same name stops the start."""
    if entry.name in _entries and _entries[entry.name].request is not entry.request:
        raise RuntimeError(f"Two catalog entries are named {entry.name!r}.")
    _entries[entry.name] = entry
    return entry


@cache
def load() -> Mapping[str, Entry]:
    """Import every entry, loudly, and return them by name."""
    plugins.load_all("catalog")
    return dict(sorted(_entries.items()))


def get(name: str) -> Entry:
    """The entry of that name. Raises NotFound, naming what there is."""
    entry = load().get(name)
    if entry is None:
        raise NotFound(f"There is no model {name!r}; there are: {', '.join(load())}.")
    return entry


def engine_of(entry: Entry, fake_engines: Sequence[str]) -> str:
    """File name in `engines/` that serves this entry, given the names (or "all") that shall run on the fake one."""
    return "fake" if _is_faked(entry, fake_engines) else entry.engine


def _is_faked(entry: Entry, fake_engines: Sequence[str]) -> bool:
    generative = entry.pool == "gpu"
    return entry.name in fake_engines or (generative and "all" in fake_engines)


def check_fakes(fake_engines: Sequence[str]) -> None:
    """Raises Misconfigured for a name in MEDIAMILL_FAKE_ENGINES that no entry has."""
    unknown = [name for name in fake_engines if name != "all" and name not in load()]
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise Misconfigured(f"MEDIAMILL_FAKE_ENGINES names {names}; there are: all, {', '.join(load())}.")


def place_of(entry: Entry, settings: Settings) -> Place:
    """Where jobs of this entry run: the only decision about it.

    What shall run on the fake engine runs here, whatever the routes say: trying things out never costs money. Else
    MEDIAMILL_ROUTES says it; else an entry with an endpoint of its own goes to RunPod when the key is there, too.
    """
    if _is_faked(entry, settings.fake_engines):
        return "local"
    own = variable_part(entry.name) in settings.runpod_endpoints and settings.runpod_api_key is not None
    return settings.routes.get(entry.name) or ("runpod" if own else "local")


def routed(settings: Settings) -> list[Entry]:
    """The entries whose jobs run somewhere else than on workers of this installation."""
    return [entry for entry in load().values() if place_of(entry, settings) != "local"]


def endpoint_of(entry: Entry, settings: Settings) -> str | None:
    """Id of the RunPod endpoint for this entry, whether or not its jobs go there."""
    own = settings.runpod_endpoints.get(variable_part(entry.name))
    return own or (settings.runpod_endpoint_id if settings.routes.get(entry.name) == "runpod" else None)


def endpoints(settings: Settings) -> dict[str, str]:
    """Every configured RunPod endpoint, by catalog name; the one without a name of its own as `SHARED`."""
    found = {name: endpoint for name, entry in load().items() if (endpoint := endpoint_of(entry, settings))}
    shared = settings.runpod_endpoint_id
    return found if shared is None or shared in found.values() else {**found, SHARED: shared}


def check_routes(settings: Settings) -> None:
    """Raises Misconfigured for a name in MEDIAMILL_ROUTES that no entry has, and for a route that lacks a setting."""
    unknown = sorted(settings.routes.keys() - load().keys())
    if unknown:
        raise Misconfigured(f"MEDIAMILL_ROUTES names {', '.join(map(repr, unknown))}; there are: {', '.join(load())}.")
    for entry in routed(settings):
        if settings.runpod_api_key is None:
            raise Misconfigured(f"MEDIAMILL_ROUTES sends {entry.name} to RunPod; that needs RUNPOD_API_KEY.")
        if endpoint_of(entry, settings) is None:
            variable = f"RUNPOD_{variable_part(entry.name)}_ENDPOINT_ID"
            raise Misconfigured(
                f"MEDIAMILL_ROUTES sends {entry.name} to RunPod; that needs {variable} or RUNPOD_ENDPOINT_ID."
            )


def pool_of(entry: Entry, settings: Settings) -> Pool:
    """The pool whose workers run this entry: fake engines need no GPU, work elsewhere needs nothing but patience."""
    if place_of(entry, settings) != "local":
        return "remote"
    return "cpu" if engine_of(entry, settings.fake_engines) == "fake" else entry.pool


def validate(entry: Entry, raw: Mapping[str, Json]) -> tuple[Any, tuple[str, ...]]:
    """The typed request with defaults filled in, and the warnings of the first reply.

    Raises: InvalidRequest with one detail for each wrong field: its path, its value, what is accepted.
    """
    try:
        request = entry.request.model_validate(raw)
    except ValidationError as error:
        raise InvalidRequest.of(*details_of(error)) from error
    unknown = [f"Unknown field {path!r} was ignored." for path in unknown_fields(entry.request, raw)]
    return request, (*unknown, *entry.warn(request))


def details_of(error: ValidationError) -> tuple[Detail, ...]:
    """One Detail for each of pydantic's complaints, with the offending value where it is short."""
    return tuple(_detail(e) for e in error.errors(include_url=False, include_context=False)[:MAX_DETAILS])


def _detail(e: Mapping[str, Any]) -> Detail:
    path = ".".join(str(part) for part in e["loc"]) or "input"
    if e["type"] == "missing":
        return Detail(path, "is required")
    message = str(e["msg"]).removeprefix("Value error, ")
    if e["type"] in {"model_type", "model_attributes_type"}:
        message = "Input should be an object"  # pydantic's own words name the class
    shown = repr(e.get("input"))
    return Detail(path, f"{message} (got {shown if len(shown) <= 80 else shown[:77] + '...'})")  # noqa: PLR2004 - one short line


def unknown_fields(model: type[BaseModel], raw: Json, prefix: str = "") -> Iterator[str]:
    """Dotted paths of keys in `raw` that `model` does not know, also inside lists of models."""
    if not isinstance(raw, Mapping):
        return
    known: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        known[info.alias or name] = info.annotation
        known[name] = info.annotation
    for key, value in raw.items():
        if key not in known:
            yield f"{prefix}{key}"
            continue
        inner = _model_inside(known[key])
        if inner is None:
            continue
        items = value if isinstance(value, list) else [value]
        for i, item in enumerate(items):
            yield from unknown_fields(
                inner, item, f"{prefix}{key}.{i}." if isinstance(value, list) else f"{prefix}{key}."
            )


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for arg in getattr(annotation, "__args__", ()):
        found = _model_inside(arg)
        if found is not None:
            return found
    return None


def input_refs(request: BaseModel, prefix: str = "") -> Iterator[InputRef]:
    """Every input file of a request, in field order, by walking its `Source` annotations."""
    for name, info in type(request).model_fields.items():
        value = getattr(request, name)
        source = _source_of(info)
        path = f"{prefix}{name}"
        if value is None:
            continue
        if source is not None and isinstance(value, str):
            yield InputRef(path, value, source)
        elif isinstance(value, BaseModel):
            yield from input_refs(value, f"{path}.")
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from input_refs(item, f"{path}.{i}.")
                elif source is not None and isinstance(item, str):
                    yield InputRef(f"{path}.{i}", item, source)


def raw_refs(model: type[BaseModel], raw: Json, prefix: str = "") -> Iterator[InputRef]:
    """The inputs in what a caller sent, whatever else is wrong with it: texts where `model` has a `Source`."""
    if not isinstance(raw, Mapping):
        return
    for name, info in model.model_fields.items():
        source, inner = _source_of(info), _model_inside(info.annotation)
        value: Any = raw.get(name)
        several = isinstance(value, list) and any(get_origin(t) is list for t in _types_in(info.annotation))
        for path, item in ((f"{name}.{i}", item) for i, item in enumerate(value)) if several else [(name, value)]:
            if inner is not None:
                yield from raw_refs(inner, item, f"{prefix}{path}.")
            elif source is not None and isinstance(item, str) and item:
                yield InputRef(f"{prefix}{path}", item, source)


def with_values(fields: Mapping[str, Json], values: Mapping[str, Json]) -> dict[str, Json]:
    """A deep copy of a request's `fields` with these values at dotted paths."""
    whole: dict[str, Json] = copy.deepcopy(dict(fields))
    for path, value in values.items():
        *parents, last = path.split(".")
        holder: Any = whole
        for step in parents:
            holder = holder[int(step)] if isinstance(holder, list) else holder[step]
        holder[int(last) if isinstance(holder, list) else last] = value
    return whole


def _source_of(info: FieldInfo) -> Source | None:
    return next((m for m in info.metadata if isinstance(m, Source)), None) or _source_inside(info.annotation)


def _source_inside(annotation: Any) -> Source | None:
    """A Source nested in `Annotated[...] | None` or `list[Annotated[...]]`."""
    for meta in getattr(annotation, "__metadata__", ()):
        if isinstance(meta, Source):
            return meta
    for arg in getattr(annotation, "__args__", ()):
        found = _source_inside(arg)
        if found is not None:
            return found
    return None

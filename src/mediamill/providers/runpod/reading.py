"""What RunPod says about a job, in our words: progress, results, failures. Pure functions over foreign JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, ValidationError, model_validator

from mediamill.errors import (
    DeadlineExceeded,
    EngineError,
    EngineFailed,
    InputError,
    InvalidRequest,
    MediamillError,
    OutOfMemory,
    ProviderError,
    TooLarge,
    every_class,
)
from mediamill.model import Json, Phase, Progress

ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
"""The states that a job does not leave."""
LARGEST_OUTPUT_BYTES = 256 * 1024
_MOST_FILES = 1000
_MOST_WARNINGS = 100
_LONGEST_SENTENCE = 500
_MEMORY = re.compile(r"(out.?of|not enough|insufficient).?memory", re.IGNORECASE)
_FOREIGN = ("url", "video_url", "image_url", "audio_url", "video", "image", "audio")
"""Where other people's workers put their one file, as a URL or as base64."""
_TELLABLE = (EngineError, InputError, InvalidRequest, TooLarge)
_BY_NAME = {
    name: cls for cls in every_class() if issubclass(cls, _TELLABLE) for name in (cls.code, cls.__name__.lower())
}


def _one_component(name: str) -> str:
    if name in {".", ".."}:
        raise ValueError("must be a file name")
    return name


class RemoteFile(BaseModel):
    """One file of a result, as a URL or as base64 (also as a `data:` URI)."""

    name: Annotated[
        str | None, StringConstraints(pattern=r"^[^/\\\x00-\x1f\x7f]{1,200}$"), AfterValidator(_one_component)
    ] = None
    """None: to be named by what the file is."""
    media_type: Annotated[str | None, StringConstraints(pattern=r"^[a-z]+/[\w.+-]{1,80}$")] = None
    size_bytes: int | None = Field(None, ge=0)
    sha256: Annotated[str | None, StringConstraints(pattern=r"^[0-9a-f]{64}$", to_lower=True)] = None
    url: str | None = None
    base64: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.url is None) == (self.base64 is None):
            raise ValueError("must have a url or base64, not both")
        return self


@dataclass(frozen=True)
class Result:
    """What a finished job brought."""

    files: tuple[RemoteFile, ...]
    output: Mapping[str, Json]
    warnings: tuple[str, ...]


def progress_of(body: Mapping[str, Any]) -> Progress:
    """What an unfinished job does, as far as its worker tells."""
    if body["status"] == "IN_QUEUE":
        return Progress(0.0, Phase.LOADING, "waiting for a worker on RunPod")
    told = body.get("output")
    if not isinstance(told, Mapping):
        return Progress(0.0, Phase.GENERATING)
    message, phase = told.get("message"), told.get("phase")
    return Progress(
        fraction=min(1.0, _number(told.get("progress")) or 0.0),
        phase=Phase(phase) if isinstance(phase, str) and phase in set(Phase) else Phase.GENERATING,
        message=message[:_LONGEST_SENTENCE] if isinstance(message, str) else None,
        eta_s=_number(told.get("eta_s")),
    )


def _number(value: object) -> float | None:
    """A finite number of at least 0, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value) if value >= 0 else None


def result_of(output: Json) -> Result:
    """The files and plain results in a finished job's output.

    Raises: What the worker says went wrong; ProviderError when nothing in it is a result.
    """
    if isinstance(output, Mapping) and output.get("error"):
        raise failure(output["error"], code=output.get("code"))
    if not isinstance(output, Mapping) or "artifacts" not in output:
        return Result(_foreign_files(output), {}, ())
    listed, values, told = output["artifacts"], output.get("output") or {}, output.get("warnings") or ()
    if not isinstance(listed, list) or len(listed) > _MOST_FILES:
        raise ProviderError(f"The worker's `artifacts` must be a list of at most {_MOST_FILES}.")
    if not isinstance(values, Mapping) or len(json.dumps(values)) > LARGEST_OUTPUT_BYTES:
        raise ProviderError(f"The worker's `output` must be an object of at most {LARGEST_OUTPUT_BYTES} bytes of JSON.")
    sentences = [w[:_LONGEST_SENTENCE] for w in told if isinstance(w, str)][:_MOST_WARNINGS]
    return Result(tuple(_files(listed)), values, tuple(sentences))


def _files(listed: Sequence[Json]) -> list[RemoteFile]:
    files = []
    for number, item in enumerate(listed):
        try:
            files.append(RemoteFile.model_validate(item))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            path = ".".join(["artifacts", str(number), *map(str, first["loc"])])
            raise ProviderError(f"The worker's {path} is wrong: {first['msg']}.") from error
    return files


def _foreign_files(output: Json) -> tuple[RemoteFile, ...]:
    """The one file of a worker that is not ours: plain text, or under one of the usual names."""
    values = [output] if isinstance(output, str) else []
    if isinstance(output, Mapping):
        values = [value for name in _FOREIGN if isinstance(value := output.get(name), str) and value]
    if not values:
        raise ProviderError(f"The worker ended without a file; looked for artifacts, {', '.join(_FOREIGN)}.")
    is_url = re.match(r"https?://", values[0], re.IGNORECASE) is not None
    return (RemoteFile(url=values[0]) if is_url else RemoteFile(base64=values[0]),)


def end_of(body: Mapping[str, Any]) -> Result:
    """What a job that has ended brought.

    Raises: What it failed with: by its own code where that is one of ours.
    """
    match body["status"]:
        case "COMPLETED":
            return result_of(body.get("output"))
        case "CANCELLED":
            raise ProviderError("The job was cancelled on RunPod.")
        case "TIMED_OUT":
            raise DeadlineExceeded("The job took longer than its limit on RunPod.")
    beside = body["output"] if isinstance(body.get("output"), Mapping) else {}
    raise failure(body.get("error") or beside.get("error"), code=beside.get("code"))


def failure(said: Json, *, code: Json = None) -> MediamillError:
    """Why a worker failed.

    Args:
        said: A sentence, or an object with message and type, or (so RunPod's library tells an exception) such an object
            as JSON text.
        code: What the worker says of it besides; counts where it is one of ours.
    """
    details = _object(said)
    told = details.get("error_message") or details.get("message") or details.get("error")
    message = _sentence(told if details else said)
    kind = str(details.get("code") or details.get("error_type") or code or "")
    if _MEMORY.search(kind) or _MEMORY.search(message):
        return OutOfMemory(message or None)
    name = re.sub(r"[^\w.]", "", kind.removeprefix("<class")).rpartition(".")[2].lower()
    cls = _BY_NAME.get(name, EngineFailed)
    tail = "\n".join(str(details.get("error_traceback") or "").splitlines()[-40:])
    if issubclass(cls, EngineFailed):
        return cls(message or "The worker on RunPod failed and did not say why.", log_tail=tail)
    return cls(message or None)


def _object(said: Json) -> Mapping[str, Any]:
    if isinstance(said, str) and said.lstrip().startswith("{"):
        try:
            said = json.loads(said)
        except ValueError:
            return {}
    return said if isinstance(said, Mapping) else {}


def _sentence(text: Json) -> str:
    """One line of bounded length."""
    plain = " ".join(text.split()) if isinstance(text, str) else ""
    return plain if len(plain) <= _LONGEST_SENTENCE else plain[: _LONGEST_SENTENCE - 1] + "…"

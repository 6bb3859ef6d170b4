"""What a worker and its child say to each other: one JSON object a line, files as paths, never as bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mediamill.errors import Busy, Detail, EngineFailed, MediamillError, RetryLater, every_class
from mediamill.model import Event, InputFile, JobError, MediaFacts, OutputData, OutputFile, Phase, Progress, Work

LINE_LIMIT_BYTES = 4 * 1024**2
LOG_LINES = 40


def encode(message: Mapping[str, Any]) -> bytes:
    """One line."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"), default=str).encode() + b"\n"


def work_to(work: Work) -> dict[str, Any]:
    """A Work as JSON."""
    return asdict(work)


def work_from(message: Mapping[str, Any]) -> Work:
    """The Work that `work_to` wrote."""
    inputs = {name: InputFile(**{**file, "path": Path(file["path"])}) for name, file in message["inputs"].items()}
    errors = {name: JobError(**error) for name, error in message["input_errors"].items()}
    return Work(**{**message, "inputs": inputs, "input_errors": errors})


def event_to(event: Event) -> dict[str, Any]:
    """An Event as JSON, with its kind under `say`."""
    return {"say": type(event).__name__, **asdict(event)}


def _progress(body: Mapping[str, Any]) -> Progress:
    phase = body["phase"]
    return Progress(**{**body, "phase": None if phase is None else Phase(phase)})


def _file(body: Mapping[str, Any]) -> OutputFile:
    return OutputFile(**{**body, "path": Path(body["path"]), "facts": MediaFacts(**body["facts"])})


def _data(body: Mapping[str, Any]) -> OutputData:
    return OutputData(body["values"])


_EVENTS: Mapping[str, Callable[[Mapping[str, Any]], Event]] = {
    "Progress": _progress,
    "OutputFile": _file,
    "OutputData": _data,
}


def event_from(message: Mapping[str, Any]) -> Event | None:
    """The Event that `event_to` wrote, or None when the line says something else."""
    read = _EVENTS.get(message["say"])
    return read({k: v for k, v in message.items() if k not in {"say", "run"}}) if read else None


def error_to(error: MediamillError) -> dict[str, Any]:
    """An error as JSON: code, sentence, details, and what its class keeps besides."""
    return {
        "code": error.code,
        "message": error.message,
        "details": [asdict(detail) for detail in error.details],
        "log_tail": getattr(error, "log_tail", ""),
        "delay_s": getattr(error, "delay_s", None),
    }


def error_from(message: Mapping[str, Any]) -> MediamillError:
    """The error that `error_to` wrote, in its own class."""
    cls = _CLASSES.get(message["code"], EngineFailed)
    if issubclass(cls, EngineFailed):
        return cls(message["message"], log_tail=message["log_tail"])
    if issubclass(cls, RetryLater | Busy):
        return cls(message["message"], delay_s=message["delay_s"])
    error = cls(message["message"])
    error.details = tuple(Detail(**detail) for detail in message["details"])
    return error


_CLASSES = {cls.code: cls for cls in every_class()}

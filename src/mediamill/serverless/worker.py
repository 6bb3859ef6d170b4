"""What a RunPod worker does with a job; `runpod_handler.py` is the shell around it that knows the SDK.

A job's `input` is flat: a catalog entry's fields, beside them `model` (or `operation`) and `job_id`. Progress and result
are what mediamill's own RunPod provider reads.
"""

from __future__ import annotations

import base64
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mediamill import catalog
from mediamill.config import Settings
from mediamill.engines.diffusers import entries_for
from mediamill.errors import Detail, InvalidRequest, MediamillError, Misconfigured, ModelUnavailable, NotFound
from mediamill.model import Artifact, Json, Phase, Progress
from mediamill.providers._environment import engine_settings
from mediamill.serverless.report import report
from mediamill.serverless.slot import Done, Slot, attempted, checked

_log = logging.getLogger(__name__)

INLINE_BYTES = 7 * 1024**2
"""Files inside a reply, in all: as base64 they are 9.8 million characters, and RunPod's limit is 10 MB."""
TELL_EVERY_S = 0.5
TEST = "test"
"""An operation that is no model: says what works here."""

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

Tell = Callable[[dict[str, Any], dict[str, Json]], None]
"""`tell(job, progress)`."""


@dataclass(frozen=True)
class Asked:
    """A job's `input` taken apart. `operation`: a catalog name, or `test`."""

    operation: str
    fields: Mapping[str, Json]
    job_id: str


def served_model(settings: Settings) -> str | None:
    """What a job that names no model runs: MEDIAMILL_SERVE_MODEL, else what MODEL_NAME's weights are; None: unknown.

    Raises: Misconfigured: there is no such model.
    """
    if settings.serve_model is not None:
        try:
            return catalog.get(settings.serve_model).name
        except NotFound as error:
            raise Misconfigured(f"MEDIAMILL_SERVE_MODEL: {error.message}") from error
    if settings.model_name is None:
        return None
    try:
        found = entries_for(settings.model_name, engine_settings(settings))
    except ModelUnavailable as error:
        _log.warning("MODEL_NAME: %s", error.message)
        return None
    return found[0] if len(found) == 1 else None


def asked(job: Mapping[str, Any], served: str | None) -> Asked:
    """What a job wants; `served` is run where it names nothing. Raises InvalidRequest naming field and value."""
    raw = job.get("input")
    if not isinstance(raw, Mapping):
        raise _wrong("input", "must be an object", raw)
    fields = dict(raw)
    field = "operation" if "operation" in fields or _is_field_of(served, fields.get("model")) else "model"
    name = fields.pop(field, None) or served
    names = (*catalog.load(), TEST)
    accepted = ", ".join(names)
    if name is None:
        detail = Detail("model", "is required, or MEDIAMILL_SERVE_MODEL on the worker")
        raise InvalidRequest(f"model: {detail.message}; accepted are {accepted}.", details=[detail])
    if name not in names:
        raise _wrong(field, f"must be one of {accepted}", name)
    return Asked(name, fields, _job_id(fields.pop("job_id", None) or job.get("id")))


def _is_field_of(served: str | None, model: Json) -> bool:
    """Whether `model` is no name of an entry but the served one's own field, as the size of the speech model is."""
    return (
        served is not None
        and model not in tuple(catalog.load())
        and "model" in catalog.get(served).request.model_fields
    )


def _job_id(value: Json) -> str:
    if not isinstance(value, str) or not _JOB_ID.fullmatch(value):
        raise _wrong("job_id", "must be 1 to 64 letters, digits, - or _", value)
    return value


def _wrong(field: str, message: str, value: Json) -> InvalidRequest:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."  # noqa: PLR2004 - one short line
    return InvalidRequest.of(Detail(field, f"{message} (got {shown})"))


def result(done: Done) -> dict[str, Json]:
    """What `output` holds of a job that has COMPLETED."""
    found: dict[str, Json] = {"artifacts": [_artifact(a, done.files[a.name]) for a in done.job.artifacts]}
    if done.job.output:
        found["output"] = dict(done.job.output)
    if done.job.warnings:
        found["warnings"] = list(done.job.warnings)
    return found


def _artifact(artifact: Artifact, file: str | bytes) -> dict[str, Json]:
    facts = artifact.facts
    shown = {"width": facts.width_px, "height": facts.height_px, "duration_s": facts.duration_s}
    where = {"url": file} if isinstance(file, str) else {"base64": base64.b64encode(file).decode()}
    return {
        "name": artifact.name,
        "media_type": artifact.media_type,
        "size_bytes": artifact.size_bytes,
        "sha256": artifact.sha256,
        **where,
        **{name: value for name, value in shown.items() if value is not None},
    }


class Telling:
    """Progress as the host may have it: each phase at once, else every half second at most."""

    def __init__(self, tell: Callable[[dict[str, Json]], None]) -> None:
        """`tell` gets what `output` holds of a job that is IN_PROGRESS."""
        self._tell = tell
        self._told_s = 0.0
        self._phase: Phase | None = None

    def __call__(self, progress: Progress) -> None:
        """Tell it, or leave it out."""
        now_s = time.monotonic()
        if progress.phase == self._phase and now_s - self._told_s < TELL_EVERY_S:
            return
        self._phase, self._told_s = progress.phase, now_s
        told = {
            "progress": round(progress.fraction, 4),
            "phase": progress.phase,
            "message": progress.message,
            "eta_s": progress.eta_s,
        }
        self._tell({name: value for name, value in told.items() if value is not None})


class Handler:
    """Called by the SDK with one job after another; cancelling a call cancels its work."""

    def __init__(self, settings: Settings, tell: Tell) -> None:
        """Raises Misconfigured: nothing could be done with these settings."""
        self._slot = Slot(settings)
        self._served = served_model(settings)
        self._tell = tell

    async def handle(self, job: dict[str, Any]) -> dict[str, Json]:
        """The result; or `{"error": sentence, "code"}`, with which the SDK ends the job as FAILED, `output` being `code`."""
        try:
            return await attempted(self._do(job), job_id=job.get("id"))
        except MediamillError as error:
            return {"error": error.message, "code": error.code}

    async def close(self) -> None:
        """End the child. Safe to repeat; the child also ends with this process."""
        await self._slot.close()

    async def _do(self, job: dict[str, Any]) -> dict[str, Json]:
        wanted = asked(job, self._served)
        if wanted.operation == TEST:
            return {"artifacts": [], "output": await report(self._slot.settings)}
        order = checked(self._slot.settings, wanted.operation, wanted.fields, job_id=wanted.job_id)
        done = await self._slot.do(
            order,
            inline=not self._slot.has_bucket,
            inline_bytes=INLINE_BYTES,
            on_progress=Telling(lambda progress: self._tell(job, progress)),
        )
        return result(done)

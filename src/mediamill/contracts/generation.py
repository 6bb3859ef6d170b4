"""The generation contract: `/api/v1/generate`, a union on `model`, camelCase, four shapes of a job."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, create_model, field_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from mediamill import catalog
from mediamill.contracts import percent, when
from mediamill.errors import Detail, InvalidRequest, MediamillError, NotFound
from mediamill.model import Artifact, Job, Json, Status

QUEUED_MESSAGE = "Job queued. Poll GET /api/v1/generate/{jobId} for status."
QUEUED_ON_RUNPOD_MESSAGE = "Job queued on RunPod. Poll GET /api/v1/generate/{jobId} for status."
"""As documented, braces included."""
MAX_BULK = 50
_ENVELOPE = ("model", "webhookUrl", "webhook_url")
_BULK_FIELDS = ("jobs", "webhookUrl", "webhook_url")
_CANCELLED = "Job was cancelled"
_WORDS: Mapping[Status, str] = {
    Status.QUEUED: "queued",
    Status.RUNNING: "processing",
    Status.SUCCEEDED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "failed",
}

Webhook = Annotated[str | None, Field(description="Callback URL on completion")]
ErrorT = TypeVar("ErrorT", bound=MediamillError)


class _Wire(catalog.Request):
    """camelCase on the wire; otherwise strict and lenient as the catalog's requests are."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    webhook_url: Webhook = None

    def input(self) -> dict[str, Json]:
        """The catalog's input."""
        return self.model_dump(exclude={"model", "webhook_url"})


class Ltx2(_Wire):
    """LTX-2: image to video (`"mode": "t2v"`: text to video)."""

    model: Literal["ltx2"]
    mode: Annotated[Literal["i2v", "t2v"], Field(description="t2v needs no image")] = "i2v"
    image_url: Annotated[
        str | None, Field(description="URL to source image; required unless mode is t2v", validate_default=True)
    ] = None
    prompt: Annotated[
        str | None, Field(max_length=5000, description="Text prompt for generation", validate_default=True)
    ] = None
    duration: Annotated[float, Field(ge=3, le=10, description="Video duration in seconds")] = 5
    width: catalog.EvenPx = Field(1024, ge=512, le=1920, description="Output width, even")
    height: catalog.EvenPx = Field(576, ge=512, le=1080, description="Output height, even")
    num_inference_steps: Annotated[int, Field(ge=10, le=50, description="Diffusion steps")] = 30
    guidance_scale: Annotated[float, Field(ge=1, le=15, description="Prompt adherence")] = 7.5
    fps: Annotated[float, Field(ge=12, le=30, description="Frames per second")] = 24
    negative_prompt: Annotated[str | None, Field(max_length=5000, description="Features to avoid")] = None
    seed: catalog.Seed = Field(None, description="Random seed for reproducibility")
    audio_url: Annotated[str | None, Field(description="Speech to move the lips to")] = None
    generate_audio: Annotated[bool, Field(description="Make a sound track too")] = False

    @field_validator("image_url", "prompt")
    @classmethod
    def _source(cls, value: str | None, info: ValidationInfo) -> str | None:
        needed_in = "i2v" if info.field_name == "image_url" else "t2v"
        return _required(value, info, mode=needed_in)

    def input(self) -> dict[str, Json]:
        """Frames are duration x fps, half up; steps and guidance have the catalog's names."""
        whole = super().input()
        whole["steps"] = whole.pop("num_inference_steps")
        whole["guidance"] = whole.pop("guidance_scale")
        whole["num_frames"] = max(1, math.floor(whole.pop("duration") * self.fps + 0.5))
        return {**whole, "prompt": self.prompt or "", "file_name": "output.mp4"}


class ZImage(_Wire):
    """Z-Image: text to image (with `imageUrl`: image to image)."""

    model: Literal["zimage"]
    prompt: Annotated[str, Field(min_length=1, max_length=1000, description="Text prompt (English or Chinese)")]
    negative_prompt: Annotated[str | None, Field(max_length=500, description="Features to avoid")] = None
    width: Annotated[int, Field(ge=512, le=2048, description="Output width")] = 1024
    height: Annotated[int, Field(ge=512, le=2048, description="Output height")] = 1024
    steps: Annotated[int, Field(ge=8, le=100, description="Inference steps (8-9 for Turbo)")] = 9
    guidance_scale: Annotated[float, Field(ge=0, le=20, description="0 for Turbo, 1-20 for Base")] = 0
    seed: catalog.Seed = Field(None, description="Random seed for reproducibility")
    image_url: Annotated[str | None, Field(description="A picture to start from")] = None
    strength: Annotated[float, Field(gt=0, le=1, description="How far to go from imageUrl")] = 0.6

    @field_validator("guidance_scale")
    @classmethod
    def _turbo_or_base(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError("must be 0, or 1 to 20")
        return value


class LongCat(_Wire):
    """LongCat: audio-driven avatar."""

    model: Literal["longcat"]
    audio_url: Annotated[str, Field(description="URL to audio file (WAV recommended)")]
    mode: Annotated[Literal["at2v", "ai2v"], Field(description="at2v: audio+text, ai2v: audio+image")] = "ai2v"
    image_url: Annotated[
        str | None, Field(description="Reference image URL, required for ai2v", validate_default=True)
    ] = None
    prompt: Annotated[str | None, Field(max_length=5000, description="Character description")] = None
    resolution: Annotated[Literal["480P", "720P"], Field(description="Output resolution")] = "480P"
    audio_cfg: Annotated[float, Field(ge=1, le=10, description="Audio guidance scale")] = 4.0
    num_segments: Annotated[int, Field(ge=1, le=10, description="Segments for longer videos")] = 1

    @field_validator("image_url")
    @classmethod
    def _face(cls, value: str | None, info: ValidationInfo) -> str | None:
        return _required(value, info, mode="ai2v")


class Wav2Lip(_Wire):
    """Wav2Lip: lip-sync of a video."""

    model: Literal["wav2lip"]
    video_url: Annotated[str, Field(description="URL to the video with a face")]
    audio_url: Annotated[str, Field(description="URL to the speech")]
    pad_top: Annotated[int, Field(ge=0, le=50)] = 0
    pad_bottom: Annotated[int, Field(ge=0, le=50)] = 10
    pad_left: Annotated[int, Field(ge=0, le=50)] = 0
    pad_right: Annotated[int, Field(ge=0, le=50)] = 0


def _required(value: str | None, info: ValidationInfo, *, mode: str) -> str | None:
    """The value, which must be there in that mode; a rule of the field, so that it is told beside all the others."""
    if info.data.get("mode") == mode and not value:
        raise PydanticCustomError("missing", "is required")
    return value


DOCUMENTED: Mapping[str, type[_Wire]] = {"ltx2": Ltx2, "zimage": ZImage, "longcat": LongCat, "wav2lip": Wav2Lip}
"""The models with camelCase fields; every other catalog entry is asked with its own."""


def every_wire() -> list[type[BaseModel]]:
    """The request of each model: the documented ones, and every other entry's with `model` and `webhookUrl` around."""
    return [*DOCUMENTED.values(), *(_own(entry) for name, entry in catalog.load().items() if name not in DOCUMENTED)]


def _own(entry: catalog.Entry) -> type[BaseModel]:
    around: dict[str, Any] = {
        "model": (Literal[entry.name], ...),
        "webhookUrl": (Webhook, None),
    }
    return create_model(f"{entry.request.__name__}Job", __base__=entry.request, __doc__=entry.summary, **around)


@dataclass(frozen=True)
class Asked:
    """A request taken apart."""

    model: str
    input: Mapping[str, Json]
    webhook_url: str | None
    warnings: tuple[str, ...]


def request(raw: Mapping[str, Json]) -> Asked:
    """The catalog entry and its input.

    Raises: InvalidRequest with one detail for each wrong field, under its wire name.
    """
    model = raw.get("model")
    if not isinstance(model, str):
        message = "is required" if model is None else f"must be a string (got {model!r})"
        raise InvalidRequest.of(Detail("model", message))
    wire = DOCUMENTED.get(model)
    return _other(model, raw) if wire is None else _documented(wire, raw)


def _documented(wire: type[_Wire], raw: Mapping[str, Json]) -> Asked:
    try:
        typed = wire.model_validate(raw)
    except ValidationError as error:
        raise wire_error(InvalidRequest.of(*catalog.details_of(error)), str(raw["model"])) from error
    unknown = tuple(f"Unknown field {name!r} was ignored." for name in catalog.unknown_fields(wire, raw))
    return Asked(str(raw["model"]), typed.input(), typed.webhook_url, unknown)


def _other(model: str, raw: Mapping[str, Json]) -> Asked:
    """An entry by its name, with the catalog's own fields; they are checked when it is queued."""
    try:
        catalog.get(model)
    except NotFound as error:
        raise InvalidRequest.of(Detail("model", error.message)) from error
    return Asked(model, {k: v for k, v in raw.items() if k not in _ENVELOPE}, webhook_url(raw), ())


def webhook_url(raw: Mapping[str, Json]) -> str | None:
    """The webhook URL of a request or a bulk. Raises InvalidRequest for what is no text."""
    url = webhook_in(raw)
    if url is not None and not isinstance(url, str):
        raise InvalidRequest.of(Detail("webhookUrl", f"must be a string (got {url!r})"))
    return url


def webhook_in(raw: Mapping[str, Json]) -> Json:
    """What a request holds as its webhook URL, whatever that is."""
    return raw.get("webhookUrl", raw.get("webhook_url"))


def in_catalog_words(raw: Mapping[str, Json]) -> dict[str, Json]:
    """What a request of any kind holds, by the catalog's names of the fields."""
    wire = DOCUMENTED.get(str(raw.get("model")), catalog.Request)
    names = {info.alias or name: name for name, info in wire.model_fields.items()}
    return {names.get(name, name): value for name, value in raw.items()}


def wire_error(error: ErrorT, model: str) -> ErrorT:
    """The same error, the catalog's fields named as this contract spells them."""
    details = [Detail(_spelled(d.path, model), _spelled(d.message, model)) for d in error.details]
    return _retold(error, _spelled(error.message, model), details)


def _retold(error: ErrorT, message: str, details: Sequence[Detail]) -> ErrorT:
    told = copy(error)
    told.message, told.details, told.args = message, tuple(details), (message,)
    return told


def _spelled(sentence: str, model: str) -> str:
    aliases = {name: info.alias or name for name, info in DOCUMENTED.get(model, _Wire).model_fields.items()}
    return re.sub(r"\w+", lambda word: aliases.get(word[0], word[0]), sentence)


@dataclass(frozen=True)
class AskedBulk:
    """A bulk taken apart."""

    jobs: Sequence[Mapping[str, Json]]
    """Each is a `request`; an empty one where there was no object."""
    warnings: tuple[str, ...]
    """About the bulk itself; each job has its own."""


def bulk(raw: Mapping[str, Json]) -> AskedBulk:
    """The requests of a bulk, and the warnings about what is around them. Raises InvalidRequest: there are none, or too many."""
    jobs = raw.get("jobs")
    if not isinstance(jobs, list) or not 1 <= len(jobs) <= MAX_BULK:
        count = f"{len(jobs)} requests" if isinstance(jobs, list) else repr(jobs)[:80]
        raise InvalidRequest.of(Detail("jobs", f"must be a list of 1 to {MAX_BULK} requests (got {count})"))
    unknown = tuple(f"Unknown field {name!r} was ignored." for name in raw if name not in _BULK_FIELDS)
    return AskedBulk([one if isinstance(one, Mapping) else {} for one in jobs], unknown)


def below(error: ErrorT, index: int) -> ErrorT:
    """The same error, about the job `jobs.{index}` of a bulk."""
    details = [Detail(f"jobs.{index}.{d.path}", d.message) for d in error.details]
    return _retold(error, f"jobs.{index}: {error.message}", details)


def accepted(job: Job, *, on_runpod: bool = False) -> dict[str, Json]:
    """The 202; it names the place where the job will run."""
    body: dict[str, Json] = {
        "success": True,
        "jobId": job.id,
        "model": job.model,
        "status": "queued",
        "message": QUEUED_ON_RUNPOD_MESSAGE if on_runpod else QUEUED_MESSAGE,
    }
    return body | told_warnings(job)


def told_warnings(job: Job) -> dict[str, Json]:
    """What the first reply also says, whatever its shape."""
    told = [_spelled(sentence, job.model) for sentence in job.warnings]
    return {"warnings": told} if told else {}


def reply(job: Job, urls: Mapping[str, str]) -> dict[str, Json]:
    """What polling gives: queued, processing, completed or failed."""
    body: dict[str, Json] = {"status": _WORDS[job.status], "jobId": job.id, "model": job.model}
    match body["status"]:
        case "queued":
            if job.position is not None:
                body["position"] = job.position
            body["createdAt"] = when(job.created_at)
        case "processing":
            body |= {
                "progress": percent(job.progress),
                "startedAt": when(job.started_at),
                "createdAt": when(job.created_at),
            }
            if url := urls.get(job.preview or ""):
                body["previewUrl"] = url
        case "completed":
            body |= {
                "result": _result(job, urls),
                "processingTimeMs": _processing_ms(job),
                "createdAt": when(job.created_at),
                "completedAt": when(job.finished_at),
            }
        case _:
            body |= {"error": reason(job), "createdAt": when(job.created_at), "failedAt": when(job.finished_at)}
    return body


def cancelled(job: Job, urls: Mapping[str, str]) -> dict[str, Json]:
    """The answer to a cancel: the job as it would be polled now."""
    return {"success": True, **reply(job, urls)}


def _result(job: Job, urls: Mapping[str, str]) -> dict[str, Json]:
    """The first file, with probed facts; where there are more, all of them in `files`."""
    if not job.artifacts:
        return dict(job.output or {})
    result = _file(job.artifacts[0], urls)
    if job.input.get("seed") is None and job.output and "seed" in job.output:
        result["seed"] = job.output["seed"]
    if len(job.artifacts) > 1:
        result["files"] = [{"name": artifact.name, **_file(artifact, urls)} for artifact in job.artifacts]
    return result


def _file(artifact: Artifact, urls: Mapping[str, str]) -> dict[str, Json]:
    shown: dict[str, Json] = {
        "url": urls[artifact.name],
        "contentType": artifact.media_type,
        "fileSizeBytes": artifact.size_bytes,
    }
    facts = artifact.facts
    if facts.duration_s is not None and not artifact.media_type.startswith("image/"):
        shown["durationMs"] = round(facts.duration_s * 1000)
    if facts.width_px is not None:
        shown |= {"width": facts.width_px, "height": facts.height_px}
    return shown


def _processing_ms(job: Job) -> int:
    """Of the times as they are shown, so that whoever subtracts them gets the same."""
    return _ms(job.finished_at or job.created_at) - _ms(job.created_at)


def _ms(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def reason(job: Job) -> str:
    """Why a job has no result, in one sentence."""
    if job.status is Status.CANCELLED:
        return _CANCELLED
    if job.error is None:
        return "Job failed"
    if job.error.code == "deadline_exceeded" and job.finished_at is not None:
        waited_s = (job.finished_at - (job.started_at or job.created_at)).total_seconds()
        return f"Job timed out after {max(1, round(waited_s))} s"
    return _spelled(job.error.message, job.model)


def webhook(job: Job, urls: Mapping[str, str]) -> dict[str, Json]:
    """The documented callback."""
    if job.status is not Status.SUCCEEDED:
        return {"jobId": job.id, "status": "failed", "error": reason(job)}
    result = _result(job, urls)
    told = {name: result[name] for name in ("url", "fileSizeBytes") if name in result}
    return {"jobId": job.id, "status": "completed", "result": {**told, "processingTimeMs": _processing_ms(job)}}


def bulk_accepted(batch_id: str, jobs: Sequence[Job], *, warnings: Sequence[str] = ()) -> dict[str, Json]:
    """The 202 of a bulk."""
    body: dict[str, Json] = {
        "success": True,
        "batchId": batch_id,
        "jobs": [{"index": i, "jobId": job.id, "status": "queued", **told_warnings(job)} for i, job in enumerate(jobs)],
    }
    return body | ({"warnings": list(warnings)} if warnings else {})


def bulk_status(jobs: Sequence[Job]) -> str:
    """pending, processing, completed, partial_failure or failed."""
    words = [_WORDS[job.status] for job in jobs]
    if all(word == "queued" for word in words):
        return "pending"
    if any(word in {"queued", "processing"} for word in words):
        return "processing"
    done = words.count("completed")
    return "completed" if done == len(words) else "partial_failure" if done else "failed"


def bulk_reply(batch_id: str, jobs: Sequence[Job], urls: Sequence[Mapping[str, str]]) -> dict[str, Json]:
    """What polling a bulk gives, and its webhook's body: each job as it would be polled, with its index."""
    words = [_WORDS[job.status] for job in jobs]
    return {
        "batchId": batch_id,
        "status": bulk_status(jobs),
        "total": len(jobs),
        "completed": words.count("completed"),
        "failed": words.count("failed"),
        "jobs": [{"index": i, **reply(job, u)} for i, (job, u) in enumerate(zip(jobs, urls, strict=True))],
    }


def error_reply(error: MediamillError, status: int) -> dict[str, Json]:  # noqa: ARG001 - the status is not in the body
    """The error envelope."""
    body: dict[str, Any] = {"success": False, "error": error.message}
    if error.details:
        body["details"] = [{"path": d.path, "message": d.message} for d in error.details]
    if error.job_id is not None:
        body["jobId"] = error.job_id
    return body

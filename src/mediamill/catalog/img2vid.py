"""`img2vid`: stills to clips with a slow zoom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from mediamill.catalog import Entry, ImageUrl, KeyFolder, Request, folder_prefix, folder_warnings, register
from mediamill.config import Settings
from mediamill.errors import Detail, EngineFailed, InputUnreachable, InvalidRequest, MediamillError, UnsupportedMedia
from mediamill.media.sniff import PICTURES
from mediamill.model import Job, JobError, Json, Status

MAX_STILLS = 1000
_MEDIA_AT_FAULT = frozenset({"input_error", "input_unreachable", "unsupported_media", "too_large"})


def _text(value: object) -> object:
    """Numbers are taken for the text that they print as; low-code tools send them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return str(int(value)) if float(value).is_integer() else str(value)


class Still(Request):
    """One picture and how long its clip shall be."""

    id: Annotated[str, BeforeValidator(_text), Field(min_length=1, max_length=200)] = Field(
        description="The caller's name for it; each only once."
    )
    image_url: ImageUrl = Field(description=f"{PICTURES}; at most 50 megapixels.")
    duracao: float = Field(gt=0, allow_inf_nan=False, description="Length of the clip, seconds.")


class Img2VidRequest(Request):
    """What can be asked of `img2vid`."""

    images: list[Still] = Field(min_length=1, max_length=MAX_STILLS, description="The stills, in order.")
    path: KeyFolder | None = Field(
        default=None, description="Folder (key prefix) for the clips; unset: outputs/{job id}/."
    )
    quality: Literal["fast", "balanced", "best"] = Field(
        default="balanced", description="fast: least CPU. best: sharper sampling and a slower encoder."
    )
    codec: Literal["h264", "av1"] = Field(default="h264", description="av1: smaller files that fewer players know.")
    anchor: Literal["center", "top-left"] = Field(default="center", description="The point that stands still.")
    start_index: int = Field(
        default=0, ge=0, le=1_000_000, description="The clips are named video_{start_index + 1}.mp4 and on."
    )

    @field_validator("images")
    @classmethod
    def _each_once(cls, stills: list[Still]) -> list[Still]:
        twice = {name for name, times in Counter(still.id for still in stills).items() if times > 1}
        if twice:
            raise ValueError(f"each id may occur once; more than once: {', '.join(map(repr, sorted(twice)[:5]))}")
        return stills


def clip_name(start_index: int, position: int) -> str:
    """File name of the clip of the still at a position, counted from 0."""
    return f"video_{start_index + position + 1}.mp4"


def outcome(request: Img2VidRequest, errors: Mapping[str, JobError]) -> dict[str, Json]:
    """The job's output: clips in request order, and why the others are missing. `errors` by the still's id.

    Raises: when nothing was made, the one error that says why.
    """
    if len(errors) == len(request.images):
        raise _nothing_made([errors[still.id] for still in request.images], [s.id for s in request.images])
    made = [(i, still) for i, still in enumerate(request.images) if still.id not in errors]
    return {
        "videos": [{"id": still.id, "filename": clip_name(request.start_index, i)} for i, still in made],
        "errors": [
            {"id": still.id, "error": errors[still.id].message, "code": errors[still.id].code}
            for still in request.images
            if still.id in errors
        ],
        "total": len(request.images),
        "processed": len(made),
    }


def _nothing_made(errors: Sequence[JobError], ids: Sequence[str]) -> MediamillError:
    codes = {error.code for error in errors}
    first = f"image {ids[0]!r}: {errors[0].message}"
    sentence = first if len(errors) == 1 else f"None of the {len(errors)} images could be used; {first}"
    if codes <= {"input_unreachable"}:
        return InputUnreachable(sentence)
    if codes <= _MEDIA_AT_FAULT:
        return UnsupportedMedia(sentence)
    return EngineFailed(sentence)


def _split(request: Any, above: int, parts: int) -> Sequence[Mapping[str, Json]]:
    """Runs of stills as equal as can be; each part knows where in the request it begins."""
    count = len(request.images)
    parts = min(parts, count)
    if count <= above or parts < 2:  # noqa: PLR2004 - one part is the whole
        return ()
    whole = request.model_dump(mode="json")
    bounds = [count * i // parts for i in range(parts + 1)]
    return [
        {**whole, "images": whole["images"][a:b], "start_index": request.start_index + a} for a, b in pairwise(bounds)
    ]


def _merge(request: Any, parts: Sequence[Job]) -> Mapping[str, Json]:
    """Every part's clips and errors in order; the stills of a part that failed failed with its error."""
    errors: dict[str, JobError] = {}
    for part in parts:
        if part.status is Status.SUCCEEDED and part.output is not None:
            errors |= {str(e["id"]): JobError(e["code"], e["error"]) for e in part.output.get("errors", ())}
            continue
        why = part.error or JobError("cancelled", "This part of the job was cancelled.")
        errors |= {str(still["id"]): why for still in part.input["images"]}
    return outcome(request, errors)


def _allow(request: Any, settings: Settings) -> None:
    message = f"must be at most {settings.max_clip_s:g} seconds"
    details = [
        Detail(f"images.{i}.duracao", f"{message} (got {still.duracao:g})")
        for i, still in enumerate(request.images)
        if still.duracao > settings.max_clip_s
    ]
    if details:
        raise InvalidRequest.of(*details)


register(
    Entry(
        name="img2vid",
        summary="Photos to clips with a slow zoom, 1920x1080 at 24 frames a second",
        request=Img2VidRequest,
        engine="ffmpeg",
        output_kind="video",
        partial_inputs=True,
        key_prefix=folder_prefix,
        split=_split,
        merge=_merge,
        warn=folder_warnings,
        allow=_allow,
        examples=(
            {
                "images": [
                    {"id": "img-1", "image_url": "https://example.com/photo1.jpg", "duracao": 6.48},
                    {"id": "img-2", "image_url": "https://example.com/photo2.jpg", "duracao": 5.0},
                ],
                "path": "Project Name/Video Title/videos/temp/",
            },
        ),
    )
)

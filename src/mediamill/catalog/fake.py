"""`fake`: real, playable, deterministic files from nothing, to try and to test everything around an engine."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mediamill.catalog import Entry, Request, register
from mediamill.config import Settings
from mediamill.errors import Detail, InvalidRequest

MAX_WORK_S = 3600.0


class FakeRequest(Request):
    """What the fake engine shall make, how long it shall pretend to work, and how it shall fail."""

    kind: Literal["image", "video", "audio"] = "video"
    width: int = Field(256, ge=16, le=4096)
    height: int = Field(256, ge=16, le=4096)
    duration_s: float = Field(1.0, gt=0, le=600)
    fps: float = Field(24.0, ge=1, le=120)
    seed: int = Field(0, ge=0, lt=2**63)
    work_s: float = Field(0.0, ge=0, le=MAX_WORK_S)
    """Seconds of pretended work before the file is made."""
    misbehave: Literal["crash", "hang", "gil", "ignore_cancel", "oom", "leak"] | None = None
    """For tests of what stands around the engine; refused where no fake engines are configured."""

    @model_validator(mode="after")
    def _even_video(self) -> Self:
        if self.kind == "video" and (self.width % 2 or self.height % 2):
            raise ValueError(f"a video's width and height must be even (got {self.width}x{self.height})")
        return self


def _allow(request: Any, settings: Settings) -> None:
    if request.misbehave and not settings.fake_engines:
        message = f"{request.misbehave!r} is accepted only where MEDIAMILL_FAKE_ENGINES is set; leave it out"
        raise InvalidRequest.of(Detail("misbehave", message))


register(
    Entry(
        name="fake",
        summary="Deterministic test media: a real MP4 with sound, PNG or WAV that says it is fake.",
        request=FakeRequest,
        engine="fake",
        output_kind="video",
        allow=_allow,
        examples=({"kind": "video", "width": 320, "height": 180, "duration_s": 1, "fps": 24, "seed": 7, "work_s": 2},),
    )
)

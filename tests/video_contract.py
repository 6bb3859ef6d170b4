"""The video processing document's TypeScript types and example requests, as data for tests."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Video(_Exact):
    id: str
    video_url: str
    filename: str


class Execution(_Exact):
    startTime: str  # noqa: N815 - the document's own names, here and below
    endTime: str  # noqa: N815
    durationMs: int | float  # noqa: N815
    durationSeconds: int | float  # noqa: N815


class Stats(BaseModel):
    model_config = ConfigDict(strict=True)

    jobId: str  # noqa: N815
    total: int | None = None
    processed: int | None = None


class VideoResponse(BaseModel):
    """The document's `VideoResponse`: what a typed client reads; more fields are allowed."""

    model_config = ConfigDict(strict=True)

    code: int
    message: str
    video_url: str | None = None
    videos: list[Video] | None = None
    execution: Execution
    stats: Stats


REQUIRED = {
    "img2vid": "images array is required with at least one image",
    "caption": "url_video, url_srt, path, and output_filename are required",
    "addaudio": "url_video, url_audio, path, and output_filename are required",
}
"""The sentence of each route's 400."""

"""Jobs in each state, from which the contracts make the example answers of the OpenAPI document."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from mediamill.model import Artifact, Job, JobError, MediaFacts, Status

_AT = datetime(2026, 1, 21, 21, tzinfo=UTC)
_ID = "01a218da-eed9-734e-b063-b29f4250111d"
_CLIP = Artifact(
    name="output.mp4",
    key=f"outputs/{_ID}/output.mp4",
    media_type="video/mp4",
    size_bytes=12345678,
    sha256="0" * 64,
    facts=MediaFacts(width_px=1024, height_px=576, duration_s=5.0, fps=24.0, frames=120, video_codec="h264"),
)
_PREVIEW = f"previews/{_ID}/preview-15.png"
URLS = {name: f"https://media.example.com/files/{key}" for name, key in ((_CLIP.name, _CLIP.key), (_PREVIEW, _PREVIEW))}
"""Of every sample's files, by the names that contracts ask for."""

QUEUED = Job(id=_ID, model="ltx2", status=Status.QUEUED, input={"prompt": "A cinematic scene"}, created_at=_AT)
RUNNING = replace(QUEUED, status=Status.RUNNING, progress=0.5, started_at=_AT + timedelta(seconds=5), preview=_PREVIEW)
DONE = replace(
    QUEUED,
    status=Status.SUCCEEDED,
    progress=1.0,
    started_at=_AT + timedelta(seconds=5),
    finished_at=_AT + timedelta(seconds=45),
    artifacts=(_CLIP,),
    output={"seed": 42},
)
FAILED = replace(
    QUEUED,
    status=Status.FAILED,
    started_at=_AT + timedelta(seconds=5),
    finished_at=_AT + timedelta(seconds=30),
    error=JobError("out_of_memory", "Out of memory while running ltx2. Lower width and height (now 1024x576)."),
)
CANCELLED = replace(QUEUED, status=Status.CANCELLED, finished_at=_AT + timedelta(seconds=12))

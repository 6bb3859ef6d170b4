"""A worker of few words: takes the next job and ends it at once, so that tests of the API need no engine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from mediamill import catalog
from mediamill.api.deps import Deps
from mediamill.jobs.rows import Taken
from mediamill.model import Artifact, JobError, Json, MediaFacts

FACTS = MediaFacts(width_px=320, height_px=180, duration_s=1.0, fps=24.0, frames=24, video_codec="h264")


async def take(deps: Deps) -> Taken:
    """The next job, running."""
    taken = await deps.store.take(slot=uuid4(), worker="hands", pools=["cpu", "gpu"])
    assert taken is not None, "no job is waiting"
    return taken


async def finish(
    deps: Deps,
    *,
    names: Sequence[str] = ("out.mp4",),
    media_type: str = "video/mp4",
    content: bytes = b"0123456789",
    output: Mapping[str, Json] | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """Let the next job succeed with these files under its own keys; returns its id."""
    files = {"names": names, "media_type": media_type, "content": content}
    return await end(deps, await take(deps), **files, output=output, warnings=warnings)


async def end(
    deps: Deps,
    taken: Taken,
    *,
    names: Sequence[str] = ("out.mp4",),
    media_type: str = "video/mp4",
    content: bytes = b"0123456789",
    output: Mapping[str, Json] | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """The same for a job that was taken before."""
    entry = catalog.get(taken.job.model)
    prefix = entry.key_prefix(entry.request.model_validate(taken.job.input)) or f"outputs/{taken.job.id}/"
    artifacts = [await _put(deps, prefix + name, media_type, content) for name in names]
    timings = {"generating_s": 0.5}
    done = await deps.store.succeed(
        taken.job.id, taken.attempt, artifacts=artifacts, output=output, timings=timings, warnings=warnings
    )
    assert done
    return taken.job.id


async def fail(deps: Deps, code: str, message: str = "It failed.") -> str:
    """Let the next job fail."""
    taken = await take(deps)
    assert await deps.store.fail(taken.job.id, taken.attempt, JobError(code, message), timings={})
    return taken.job.id


async def _put(deps: Deps, key: str, media_type: str, content: bytes) -> Artifact:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(content)
        stored = await deps.storage.put(key, path, media_type=media_type)
    return Artifact(key.rpartition("/")[2], key, media_type, stored.size_bytes, stored.sha256, FACTS)

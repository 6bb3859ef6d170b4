"""Tiny pipelines on disk, once a session, and an engine over them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mediamill import catalog
from mediamill.engines import diffusers as engine_module
from mediamill.engines.diffusers import DiffusersEngine
from mediamill.model import EngineContext, Event, InputFile, OutputData, OutputFile, Progress, Work
from tests.tiny_pipelines import build_ltx_video, build_zimage


@pytest.fixture(scope="session")
def tiny_zimage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_zimage(tmp_path_factory.mktemp("tiny") / "zimage")


@pytest.fixture(scope="session")
def tiny_ltx_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_ltx_video(tmp_path_factory.mktemp("tiny") / "ltx-video")


@pytest.fixture(scope="session")
def tiny_settings(tiny_zimage: Path, tiny_ltx_video: Path) -> Mapping[str, str]:
    """Settings as a worker passes them."""
    return {
        "MEDIAMILL_MODEL_ZIMAGE": str(tiny_zimage),
        "MEDIAMILL_MODEL_LTX_VIDEO": str(tiny_ltx_video),
        "DEVICE": "cpu",
    }


@pytest.fixture(scope="module")
def diffusers_engine(tiny_settings: Mapping[str, str]) -> Iterator[DiffusersEngine]:
    made = engine_module.create(tiny_settings)
    yield made
    made.close()


@dataclass
class Ran:
    """What one run said."""

    events: list[Event] = field(default_factory=list)

    @property
    def file(self) -> OutputFile:
        return next(e for e in self.events if isinstance(e, OutputFile) and not e.preview)

    @property
    def previews(self) -> list[OutputFile]:
        return [e for e in self.events if isinstance(e, OutputFile) and e.preview]

    @property
    def progress(self) -> list[Progress]:
        return [e for e in self.events if isinstance(e, Progress)]

    @property
    def output(self) -> dict[str, Any]:
        return dict(next(e.values for e in self.events if isinstance(e, OutputData)))


def work_of(model: str, *, job_id: str = "job-1", inputs: Mapping[str, Path] | None = None, **raw: Any) -> Work:
    """Work as the core makes it: the request validated, defaults filled in."""
    files = {
        name: InputFile(name, path, "image/png", path.stat().st_size, "0" * 64) for name, path in (inputs or {}).items()
    }
    entry = catalog.get(model)
    request, _ = catalog.validate(entry, {**raw, **{name: f"file:{name}" for name in files}})
    return Work(job_id, 1, model, request.model_dump(mode="json"), files)


def run(engine: DiffusersEngine, scratch: Path, work: Work, cancelled: threading.Event | None = None) -> Ran:
    """Run to the end and collect."""
    scratch.mkdir(parents=True, exist_ok=True)
    ran = Ran()
    ran.events.extend(engine.run(work, EngineContext(scratch, cancelled or threading.Event())))
    return ran

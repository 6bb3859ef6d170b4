"""What every engine owes to every catalog entry: run on tiny parameters, whatever the engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mediamill import catalog, plugins
from mediamill.catalog import Entry
from mediamill.config import Settings
from mediamill.errors import Cancelled, InputError, NotImplementedYet
from mediamill.media.probe import probe
from mediamill.model import Engine, EngineContext, Event, InputFile, OutputData, OutputFile, Progress, Work
from tests import speech
from tests.media_samples import sine, still, video, wav

SRT = "1\n00:00:00,000 --> 00:00:00,400\nhello\n"
MEDIA_TYPES = {".png": "image/png", ".mp4": "video/mp4", ".wav": "audio/wav", ".srt": "application/x-subrip"}
OUTPUT_LIMIT_BYTES = 256 * 1024


@dataclass(frozen=True)
class Case:
    """A request of an entry, as small as its engine works on."""

    model: str
    asked: Mapping[str, Any]
    inputs: Mapping[str, Callable[[Path], Path]] = field(default_factory=dict)
    """By dotted field path: writes the file and returns its path."""
    fake: bool = False

    @property
    def entry(self) -> Entry:
        return catalog.get(self.model)


def _picture(folder: Path) -> Path:
    return still(folder / "in.png", 64, 64)


def _video(folder: Path) -> Path:
    return video(folder / "in.mp4", frames=12)


def _sound(folder: Path) -> Path:
    return wav(folder / "in.wav", sine(0.5))


def _speech(folder: Path) -> Path:
    return speech.write_wav(folder / "in.wav", speech.samples("beckett.wav")[: 3 * speech.RATE_HZ])


def _subtitles(folder: Path) -> Path:
    path = folder / "in.srt"
    path.write_text(SRT, "utf-8")
    return path


IMAGE = {"prompt": "a red fox", "width": 72, "height": 64, "steps": 3, "seed": 7}
CLIP = {"prompt": "a fox", "width": 64, "height": 72, "num_frames": 10, "num_inference_steps": 3, "seed": 7}
CASES = {
    "zimage": Case("zimage", IMAGE),
    "zimage from a picture": Case("zimage", {**IMAGE, "strength": 1.0}, {"image_url": _picture}),
    "ltx-video": Case("ltx-video", CLIP),
    "ltx-video from a picture": Case("ltx-video", CLIP, {"image_url": _picture}),
    "ltx2 faked": Case("ltx2", {"prompt": "a fox", "width": 64, "height": 64, "num_frames": 9, "seed": 7}, fake=True),
    "fake image": Case("fake", {"kind": "image", "width": 64, "height": 64, "work_s": 0.05}),
    "fake video": Case("fake", {"kind": "video", "width": 64, "height": 64, "duration_s": 0.2, "work_s": 0.05}),
    "fake audio": Case("fake", {"kind": "audio", "duration_s": 0.2, "work_s": 0.05}),
    "img2vid": Case(
        "img2vid",
        {"images": [{"id": "a", "image_url": "https://example.com/a.png", "duracao": 0.1}]},
        {"images.0.image_url": _picture},
    ),
    "caption": Case("caption", {}, {"url_video": _video, "url_srt": _subtitles}),
    "addaudio": Case("addaudio", {}, {"url_video": _video, "url_audio": _sound}),
    "transcribe": Case("transcribe", {"model": "tiny", "language": "en"}, {"url_audio": _speech}),
}
NOT_YET = {"longcat", "wav2lip"}


@pytest.fixture(scope="module")
def engines(tiny_settings: Mapping[str, str]) -> Iterator[Callable[[Case], Engine]]:
    """The engine of a case, made once."""
    settings = {**tiny_settings, "MEDIAMILL_MODEL_WHISPER_TINY": str(speech.tiny_en()), "ENCODER": "libx264"}
    made: dict[str, Any] = {}

    def engine(case: Case) -> Engine:
        name = catalog.engine_of(case.entry, [case.model] if case.fake else [])
        if name not in made:
            made[name] = plugins.load("engines", name).create(settings)
        found: Engine = made[name]
        return found

    yield engine
    for one in made.values():
        getattr(one, "close", lambda: None)()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def work_of(case: Case, folder: Path) -> Work:
    """Work as the core makes it."""
    folder.mkdir(exist_ok=True)
    files = {name: write(folder) for name, write in case.inputs.items()}
    top = {name: f"https://example.com/{path.name}" for name, path in files.items() if "." not in name}
    request, _ = catalog.validate(case.entry, {**case.asked, **top})
    inputs = {
        name: InputFile(name, path, MEDIA_TYPES[path.suffix], path.stat().st_size, "0" * 64)
        for name, path in files.items()
    }
    return Work("job-1", 1, case.model, request.model_dump(mode="json"), inputs)


def run(engine: Engine, work: Work, scratch: Path, cancelled: threading.Event | None = None) -> list[Event]:
    """Every event; files are looked at while the engine waits, as the child does."""
    scratch.mkdir()
    events: list[Event] = []
    for event in engine.run(work, EngineContext(scratch, cancelled or threading.Event())):
        if isinstance(event, OutputFile):
            assert event.path.is_file()
        events.append(event)
    return events


def files_of(events: Sequence[Event]) -> list[OutputFile]:
    return [e for e in events if isinstance(e, OutputFile) and not e.preview]


def test_every_entry_is_here() -> None:
    assert {case.model for case in CASES.values()} | NOT_YET == set(catalog.load())
    for name in NOT_YET:
        with pytest.raises(NotImplementedYet):
            catalog.get(name).allow(None, Settings(_env_file=None))


@pytest.fixture(scope="module")
def once(
    engines: Callable[[Case], Engine], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Case], tuple[Path, list[Event]]]:
    """A case's scratch folder and events, run the first time it is asked for."""
    ran: dict[int, tuple[Path, list[Event]]] = {}

    def of(case: Case) -> tuple[Path, list[Event]]:
        if id(case) not in ran:
            folder = tmp_path_factory.mktemp("once")
            ran[id(case)] = folder / "scratch", run(engines(case), work_of(case, folder / "in"), folder / "scratch")
        return ran[id(case)]

    return of


Once = Callable[[Case], tuple[Path, list[Event]]]


def test_work_becomes_files_of_the_declared_kind(case: Case, once: Once) -> None:
    scratch, events = once(case)
    for file in (e for e in events if isinstance(e, OutputFile)):
        assert file.path.resolve().is_relative_to(scratch.resolve())
        assert Path(file.name).name == file.name
    made = files_of(events)
    assert len({file.name for file in made}) == len(made) > 0
    wanted = {"kind": case.entry.output_kind, **case.asked}
    for file in made:
        kind = file.media_type.partition("/")[0]
        if wanted["kind"] == "json":
            assert file.path.stat().st_size > 0
            continue
        facts = probe(file.path, media_type=file.media_type)
        assert kind == wanted["kind"]
        for name, found in (("width", facts.width_px), ("height", facts.height_px), ("num_frames", facts.frames)):
            assert found == wanted.get(name, found)


def test_progress_and_results_can_be_told(case: Case, once: Once) -> None:
    _, events = once(case)
    progress = [e for e in events if isinstance(e, Progress)]
    fractions = [p.fraction for p in progress]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] <= 1
    assert all(p.eta_s is None or 0 <= p.eta_s < 3600 for p in progress)
    values = [e.values for e in events if isinstance(e, OutputData)]
    assert sum(len(json.dumps(v, allow_nan=False)) for v in values) < OUTPUT_LIMIT_BYTES


def test_the_same_work_gives_the_same_bytes(
    case: Case, once: Once, engines: Callable[[Case], Engine], tmp_path: Path
) -> None:
    _, first = once(case)
    again = run(engines(case), work_of(case, tmp_path / "in"), tmp_path / "scratch")
    one, other = ({f.name: f.path.read_bytes() for f in files_of(events)} for events in (first, again))
    assert one == other


def test_a_cancelled_job_ends_without_a_result(case: Case, engines: Callable[[Case], Engine], tmp_path: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    events: list[Event] = []
    (tmp_path / "scratch").mkdir()
    with pytest.raises(Cancelled):
        events.extend(engines(case).run(work_of(case, tmp_path / "in"), EngineContext(tmp_path / "scratch", cancelled)))
    assert files_of(events) == []


def test_leaving_early_leaves_nothing_running(case: Case, engines: Callable[[Case], Engine], tmp_path: Path) -> None:
    before = set(threading.enumerate())
    (tmp_path / "scratch").mkdir()
    events: Any = engines(case).run(
        work_of(case, tmp_path / "in"), EngineContext(tmp_path / "scratch", threading.Event())
    )
    next(events)
    events.close()
    assert [t for t in set(threading.enumerate()) - before if not isinstance(t, threading.Timer)] == []
    assert set(engines(case).held()) <= set(catalog.load())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.inputs])
def test_an_input_that_is_no_media_is_the_callers_fault(
    name: str, engines: Callable[[Case], Engine], tmp_path: Path
) -> None:
    case = CASES[name]
    work = work_of(case, tmp_path / "in")
    for file in work.inputs.values():
        file.path.write_bytes(b"this is no media" * 100)
    with pytest.raises(InputError):
        run(engines(case), work, tmp_path / "scratch")

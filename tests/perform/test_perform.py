"""One attempt from inputs to stored outputs, with a scripted provider and the memory storage."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from mediamill import catalog
from mediamill.catalog import Entry, ImageUrl, InputRef
from mediamill.config import Settings
from mediamill.errors import (
    DeadlineExceeded,
    EngineFailed,
    InputUnreachable,
    LeaseLost,
    MediamillError,
    NotFound,
    RetryLater,
    StorageRefused,
    StorageUnavailable,
)
from mediamill.model import (
    Artifact,
    Elsewhere,
    Event,
    InputFile,
    Job,
    JobError,
    MediaFacts,
    OutputData,
    OutputFile,
    Phase,
    Progress,
    Provider,
    Status,
    StoredObject,
    Work,
)
from mediamill.perform import Assignment, Performed, discard, perform, publish
from mediamill.storage import memory
from mediamill.storage.memory import MemoryStorage

Script = Callable[[Work, Path], AsyncIterator[Event]]


class Scripted:
    """A provider that plays a script and remembers the work and whether it was closed early."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.work: list[Work] = []
        self.closed_early = False

    async def run(self, work: Work, *, scratch: Path, deadline_s: float) -> AsyncIterator[Event]:
        self.work.append(work)
        try:
            async for event in self.script(work, scratch):
                yield event
        except (GeneratorExit, asyncio.CancelledError):
            self.closed_early = True
            raise


class Files:
    """Inputs that are local files, or errors."""

    def __init__(self, answers: dict[str, Path | MediamillError]) -> None:
        self.answers = answers

    async def resolve(
        self, refs: Sequence[InputRef], *, into: Path, partial: bool
    ) -> tuple[dict[str, InputFile], dict[str, JobError]]:
        files: dict[str, InputFile] = {}
        errors: dict[str, JobError] = {}
        for ref in refs:
            answer = self.answers[ref.value]
            if isinstance(answer, Path):
                files[ref.field] = InputFile(ref.field, answer, "image/png", 1, "00")
            elif partial:
                errors[ref.field] = JobError(answer.code, answer.message)
            else:
                raise answer
        assert into.is_dir()
        return files, errors


class Failing(MemoryStorage):
    """Refuses the first calls of each kind."""

    def __init__(self, *, puts: int = 0, copies: int = 0, error: MediamillError | None = None) -> None:
        super().__init__(memory.LocalUrls("http://files", b"secret"))
        self.left = {"put": puts, "copy": copies}
        self.error = error or StorageUnavailable("The bucket does not answer.")
        self.calls: list[str] = []

    def _maybe(self, what: str) -> None:
        self.calls.append(what)
        self.left[what] -= 1
        if self.left[what] >= 0:
            raise self.error

    async def put(self, key: str, source: Path, *, media_type: str) -> StoredObject:
        self._maybe("put")
        return await super().put(key, source, media_type=media_type)

    async def copy(self, source_key: str, key: str) -> None:
        self._maybe("copy")
        await super().copy(source_key, key)


def entry_named(name: str) -> catalog.Entry:
    class Stills(catalog.Request):
        images: list[ImageUrl] = Field(default_factory=list)
        size: int = 7

    return Entry(name, "", Stills, engine="fake", output_kind="video", key_prefix=lambda _r: "clips/{job_id}/")


@pytest.fixture
def stills() -> AsyncIterator[Entry]:
    entry = entry_named("stills")
    catalog.register(entry)
    catalog.load.cache_clear()
    yield entry
    del catalog._entries["stills"]
    catalog.load.cache_clear()


def storage() -> MemoryStorage:
    return memory.create(Settings(), public_url="http://files", secret=b"secret")


def job(model: str = "fake", **values: Any) -> Job:
    return Job("j1", model, Status.RUNNING, values, datetime.now(UTC))


async def go(
    provider: Provider, tmp_path: Path, *, of: Job | None = None, into: MemoryStorage | None = None, **rest: Any
) -> tuple[Performed, list[Progress]]:
    told: list[Progress] = []
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    performed = await perform(
        Assignment(of or job(), 3, rest.pop("deadline_s", 30.0), rest.pop("elsewhere", None)),
        provider=provider,
        storage=into or storage(),
        inputs=rest.pop("inputs", Files({})),
        scratch=scratch,
        on_progress=told.append,
        **rest,
    )
    return performed, told


def output(scratch: Path, name: str, content: bytes = b"bytes", **rest: Any) -> OutputFile:
    path = scratch / f"made-{len(list(scratch.iterdir()))}"
    path.write_bytes(content)
    return OutputFile(name, path, "video/mp4", **rest)


async def two_files(_work: Work, scratch: Path) -> AsyncIterator[Event]:
    yield Progress(0.2, Phase.GENERATING, "step 1")
    yield output(scratch, "b.mp4", b"second letter", facts=MediaFacts(width_px=64, frames=9))
    yield Progress(0.1)
    yield OutputData({"seed": 4, "warnings": ["The seed is small."]})
    yield output(scratch, "a.mp4", b"first letter")
    yield OutputData({"steps": 8, "warnings": ["The seed is small.", "So are the steps."]})


async def nothing(_work: Work, _scratch: Path) -> AsyncIterator[Event]:
    yield Progress(1.0)


async def for_ever(_work: Work, _scratch: Path) -> AsyncIterator[Event]:
    yield Progress(0.5, Phase.GENERATING)
    await asyncio.Event().wait()


async def one_file(_work: Work, scratch: Path) -> AsyncIterator[Event]:
    yield output(scratch, "clip.mp4")


async def bytes_of(where: MemoryStorage, key: str) -> bytes:
    return b"".join([chunk async for chunk in where.open(key)])


async def test_outputs_lie_under_the_attempts_keys_until_they_are_published(tmp_path: Path) -> None:
    where = storage()
    performed, _ = await go(Scripted(two_files), tmp_path, into=where)
    assert [s.staged_key for s in performed.staged] == ["attempts/j1/3/b.mp4", "attempts/j1/3/a.mp4"]
    assert performed.output == {"seed": 4, "steps": 8}
    assert performed.warnings == ("The seed is small.", "So are the steps.")
    with pytest.raises(NotFound):
        await where.stat("outputs/j1/b.mp4")

    artifacts = await publish(performed, where)
    assert [(a.name, a.key, a.size_bytes) for a in artifacts] == [
        ("b.mp4", "outputs/j1/b.mp4", 13),
        ("a.mp4", "outputs/j1/a.mp4", 12),
    ]
    assert artifacts[0].facts == MediaFacts(width_px=64, frames=9)
    assert artifacts == await publish(performed, where), "safe to repeat"
    assert await bytes_of(where, "outputs/j1/b.mp4") == b"second letter"

    await discard(performed, where)
    assert [key async for key, _ in where.list("attempts")] == []
    assert len([key async for key, _ in where.list("outputs")]) == 2


async def test_progress_never_falls_and_every_phase_is_timed(tmp_path: Path) -> None:
    performed, told = await go(Scripted(two_files), tmp_path)
    fractions = [p.fraction for p in told]
    assert fractions == sorted(fractions)
    phases = list(dict.fromkeys(p.phase for p in told))
    assert phases == [Phase.FETCHING, Phase.LOADING, Phase.GENERATING, Phase.UPLOADING]
    assert set(performed.timings) == {"fetching_s", "loading_s", "generating_s", "uploading_s"}
    assert [p.message for p in told if p.message] == ["step 1"]


async def test_the_engine_gets_defaults_and_local_files_and_the_entry_names_the_place(
    tmp_path: Path, stills: Entry
) -> None:
    provider = Scripted(one_file)
    inputs = Files({"http://a/1.png": tmp_path / "1.png", "http://a/2.png": tmp_path / "2.png"})
    of = job("stills", images=["http://a/1.png", "http://a/2.png"])
    performed, _ = await go(provider, tmp_path, of=of, inputs=inputs)
    (work,) = provider.work
    assert work.params == {"images": ["http://a/1.png", "http://a/2.png"], "size": 7}
    assert {field: file.path.name for field, file in work.inputs.items()} == {"images.0": "1.png", "images.1": "2.png"}
    assert performed.staged[0].artifact.key == "clips/j1/clip.mp4"


async def test_an_input_that_cannot_be_had_fails_the_job_or_reaches_a_partial_engine(
    tmp_path: Path, stills: Entry
) -> None:
    inputs = Files({"http://a/1.png": InputUnreachable("images.0: 404"), "http://a/2.png": tmp_path / "2.png"})
    of = job("stills", images=["http://a/1.png", "http://a/2.png"])
    with pytest.raises(InputUnreachable, match=r"images\.0: 404"):
        await go(Scripted(one_file), tmp_path, of=of, inputs=inputs)
    provider = Scripted(one_file)
    catalog._entries["stills"] = replace(stills, partial_inputs=True)
    catalog.load.cache_clear()
    (tmp_path / "again").mkdir()
    await go(provider, tmp_path / "again", of=of, inputs=inputs)
    assert provider.work[0].input_errors == {"images.0": JobError("input_unreachable", "images.0: 404")}
    assert list(provider.work[0].inputs) == ["images.1"]


async def test_a_storage_that_is_away_before_the_work_hands_the_job_back(tmp_path: Path, stills: Entry) -> None:
    provider = Scripted(one_file)
    inputs = Files({"file:uploads/1": StorageUnavailable("The bucket does not answer.")})
    with pytest.raises(RetryLater, match="does not answer"):
        await go(provider, tmp_path, of=job("stills", images=["file:uploads/1"]), inputs=inputs)
    assert provider.work == []


async def test_a_failing_put_is_repeated_without_doing_the_work_again(tmp_path: Path) -> None:
    where, provider = Failing(puts=2), Scripted(one_file)
    performed, _ = await go(provider, tmp_path, into=where)
    assert len(provider.work) == 1
    assert where.calls == ["put"] * 3
    assert await bytes_of(where, performed.staged[0].staged_key) == b"bytes"


@pytest.mark.parametrize(
    ("where", "error", "puts"),
    [
        (Failing(puts=99), StorageUnavailable, 2),
        (Failing(puts=99, error=StorageRefused("The disk is full.")), StorageRefused, 1),
    ],
)
async def test_a_storage_that_stays_away_or_refuses_fails_the_job(
    tmp_path: Path, where: Failing, error: type[MediamillError], puts: int
) -> None:
    with pytest.raises(error):
        await go(Scripted(one_file), tmp_path, into=where, patience_s=0.3)
    assert where.calls.count("put") == puts


@pytest.mark.parametrize("name", ["../up.mp4", "", ".", "a/b.mp4", "a\0b"])
async def test_an_engine_cannot_choose_where_its_file_goes(tmp_path: Path, name: str) -> None:
    async def script(_work: Work, scratch: Path) -> AsyncIterator[Event]:
        yield output(scratch, name)

    with pytest.raises(EngineFailed, match="one path component"):
        await go(Scripted(script), tmp_path)


async def test_two_files_of_one_name_are_an_error(tmp_path: Path) -> None:
    async def script(_work: Work, scratch: Path) -> AsyncIterator[Event]:
        yield output(scratch, "a.mp4")
        yield output(scratch, "a.mp4")

    with pytest.raises(EngineFailed, match=r"two files named 'a\.mp4'"):
        await go(Scripted(script), tmp_path)


async def test_no_result_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="without a result"):
        await go(Scripted(nothing), tmp_path)


async def test_previews_are_stored_apart_and_are_no_artifacts(tmp_path: Path) -> None:
    where = storage()

    async def script(_work: Work, scratch: Path) -> AsyncIterator[Event]:
        yield output(scratch, "look.png", b"early", preview=True)
        while not [key async for key, _ in where.list("previews")]:
            await asyncio.sleep(0)
        yield output(scratch, "clip.mp4")

    looks: list[str] = []
    performed, _ = await go(Scripted(script), tmp_path, into=where, on_preview=looks.append)
    assert [s.artifact.name for s in performed.staged] == ["clip.mp4"]
    assert looks == ["previews/j1/look.png"]
    assert await bytes_of(where, looks[0]) == b"early"


async def test_a_preview_that_arrives_after_a_later_one_is_not_shown(tmp_path: Path) -> None:
    class FirstIsSlow(MemoryStorage):
        async def put(self, key: str, source: Path, *, media_type: str) -> StoredObject:
            if key.endswith("look-1.png"):
                await later.wait()
            return await super().put(key, source, media_type=media_type)

    where, later, looks = FirstIsSlow(memory.LocalUrls("http://files", b"secret")), asyncio.Event(), []

    async def script(_work: Work, scratch: Path) -> AsyncIterator[Event]:
        for name in ("look-1.png", "look-2.png"):
            yield output(scratch, name, b"early", preview=True)
        while not looks:
            await asyncio.sleep(0)
        later.set()
        while len([key async for key, _ in where.list("previews")]) < 2:
            await asyncio.sleep(0)
        yield output(scratch, "clip.mp4")

    await go(Scripted(script), tmp_path, into=where, on_preview=looks.append)
    assert looks == ["previews/j1/look-2.png"]


async def test_the_deadline_covers_everything_and_stops_the_work(tmp_path: Path) -> None:
    provider = Scripted(for_ever)
    with pytest.raises(DeadlineExceeded, match=r"longer than 0\.2 s; it was then generating"):
        await go(provider, tmp_path, deadline_s=0.2)
    assert provider.closed_early


async def test_a_cancelled_caller_stops_the_work_and_the_uploads(tmp_path: Path) -> None:
    provider, started = Scripted(for_ever), asyncio.Event()

    class Slow(MemoryStorage):
        async def put(self, key: str, source: Path, *, media_type: str) -> StoredObject:
            started.set()
            await asyncio.Event().wait()
            raise AssertionError

    async def script(_work: Work, scratch: Path) -> AsyncIterator[Event]:
        yield output(scratch, "a.mp4")
        await asyncio.Event().wait()

    provider.script = script
    where = Slow(memory.LocalUrls("http://files", b"secret"))
    task = asyncio.create_task(go(provider, tmp_path, into=where))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert provider.closed_early
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_publishing_asks_before_it_copies_and_stops_when_the_job_is_not_ours(tmp_path: Path) -> None:
    where = storage()
    performed, _ = await go(Scripted(two_files), tmp_path, into=where)

    async def not_ours(artifacts: Sequence[Artifact]) -> None:
        assert [a.key for a in artifacts] == [staged.artifact.key for staged in performed.staged]
        raise LeaseLost

    with pytest.raises(LeaseLost):
        await publish(performed, where, still_ours=not_ours)
    with contextlib.suppress(StopAsyncIteration):
        assert await anext(aiter(where.list("outputs"))) is None


async def test_publishing_survives_a_storage_that_hiccups(tmp_path: Path) -> None:
    where = Failing(copies=1)
    performed, _ = await go(Scripted(two_files), tmp_path, into=where)
    await publish(performed, where)
    assert len([key async for key, _ in where.list("outputs")]) == 2


class Far:
    """A provider whose work others take; tells whether its handle was kept when it was closed or asked to go on."""

    def __init__(self, *, then: Script = one_file) -> None:
        self.then = then
        self.kept: list[bool] = []

    async def run(self, work: Work, *, scratch: Path, deadline_s: float) -> AsyncIterator[Event]:
        taken = Elsewhere(work.elsewhere or "far/1")
        try:
            yield taken
        finally:
            self.kept.append(taken.kept)
        async for event in self.then(work, scratch):
            yield event


async def test_the_handle_of_work_elsewhere_is_kept_before_anything_else(tmp_path: Path) -> None:
    far, kept = Far(), []

    async def keep(handle: str) -> None:
        kept.append((handle, list(far.kept)))

    performed, _ = await go(far, tmp_path, keep_elsewhere=keep, elsewhere="far/0")
    assert (kept, far.kept) == ([("far/0", [])], [True])
    assert [s.artifact.name for s in performed.staged] == ["clip.mp4"]


async def test_work_elsewhere_that_nobody_keeps_stays_the_providers(tmp_path: Path) -> None:
    far = Far()
    await go(far, tmp_path)
    assert far.kept == [False]


async def test_a_handle_that_cannot_be_kept_ends_the_attempt(tmp_path: Path) -> None:
    async def keep(_handle: str) -> None:
        raise LeaseLost

    far = Far()
    with pytest.raises(LeaseLost):
        await go(far, tmp_path, keep_elsewhere=keep)
    assert far.kept == [False]


async def test_keeping_is_not_broken_off_half_way(tmp_path: Path) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def keep(_handle: str) -> None:
        begun.set()
        await go_on.wait()

    far = Far()
    going = asyncio.create_task(go(far, tmp_path, keep_elsewhere=keep))
    await begun.wait()
    going.cancel()
    await asyncio.sleep(0)
    assert not going.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await going
    assert far.kept == [True]

"""img2vid, caption and addaudio: checks, and what is reported; the work itself is in `media/`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mediamill.catalog.img2vid import Img2VidRequest, clip_name, outcome
from mediamill.errors import (
    Cancelled,
    EngineFailed,
    InputError,
    InvalidRequest,
    MediamillError,
    TooLarge,
    UnsupportedMedia,
)
from mediamill.media import burn, captions, ken_burns, mux, stills
from mediamill.media.burn import Tool
from mediamill.media.captions import Captions
from mediamill.media.karaoke import SubtitleStyle
from mediamill.media.probe import Container, inspect
from mediamill.media.stills import ClipPlan
from mediamill.model import (
    Engine,
    EngineContext,
    Event,
    InputFile,
    JobError,
    OutputData,
    OutputFile,
    Phase,
    Progress,
    Work,
)

MAX_CLIP_FRAMES = 24 * 3600 * ken_burns.FPS
"""A day; what callers may ask for is a setting, checked long before."""
MAX_VIDEO_S = 12 * 3600.0
MAX_VIDEO_FRAMES = 60 * 12 * 3600
_NEWS_EVERY_S = 0.1
_VIDEO_TYPE = "video/mp4"
_FULL = 1.0


def create(_settings: Mapping[str, str]) -> Engine:
    """The engine; its settings come with each piece of work."""
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder writes a page to stderr for every clip
    return FFmpegEngine()


class FFmpegEngine:
    """Holds nothing between jobs."""

    def held(self) -> Sequence[str]:
        """No weights here."""
        return ()

    def run(self, work: Work, ctx: EngineContext) -> Iterator[Event]:
        """Do one job of `img2vid`, `caption` or `addaudio`."""
        match work.model:
            case "img2vid":
                yield from _img2vid(work, ctx)
            case "caption":
                yield from _caption(work, ctx)
            case "addaudio":
                yield from _add_audio(work, ctx)
            case other:
                raise InvalidRequest(f"The ffmpeg engine does not know {other!r}.")


# stills to clips


@dataclass
class _Batch:
    """The stills of a job on their way: each thread writes its own place in `done`, the job's thread reads."""

    request: Img2VidRequest
    plans: list[ClipPlan]
    scratch: Path
    encoder: str
    decoding: threading.Semaphore
    stop: threading.Event = field(default_factory=threading.Event)
    done: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def fraction(self) -> float:
        """Pictures made of all that there will be; those of a still that failed count as made."""
        return sum(self.done) / sum(plan.frames for plan in self.plans)

    def render(self, position: int, source: Path) -> Path:
        """One still to its clip, in a thread of its own."""
        plan = self.plans[position]
        out = self.scratch / clip_name(self.request.start_index, position)

        def count(n: int) -> None:
            self.done[position] = max(n, self.done[position])  # a clip that begins again in software goes not back

        with self.decoding:
            if self.stop.is_set():
                raise Cancelled
            still = stills.load(source, plan)
        stills.render(
            still,
            out,
            plan,
            encoder=self.encoder,
            on_picture=count,
            on_fallback=self.warnings.append,
            cancelled=self.stop,
        )
        return out


def _img2vid(work: Work, ctx: EngineContext) -> Iterator[Event]:
    request = Img2VidRequest.model_validate(work.params)
    errors = _refused(work, request)
    plans = [
        ClipPlan(ken_burns.frame_count(still.duracao), request.anchor, request.quality, request.codec)
        for still in request.images
    ]
    at_once = stills_at_once(ctx.settings)
    batch = _Batch(
        request=request,
        plans=plans,
        scratch=ctx.scratch,
        encoder=ctx.settings.get("ENCODER", "auto"),
        decoding=threading.Semaphore(max(1, at_once // 2)),  # a large picture takes most memory while it is decoded
        done=[plan.frames if still.id in errors else 0 for plan, still in zip(plans, request.images, strict=True)],
    )
    yield Progress(0.0, Phase.ENCODING, f"0 of {len(plans)} clips")
    with ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="still") as pool:
        waiting = {
            pool.submit(batch.render, i, work.inputs[f"images.{i}.image_url"].path): i
            for i, still in enumerate(request.images)
            if still.id not in errors
        }
        try:
            yield from _collect(waiting, batch, errors, ctx)
        finally:
            batch.stop.set()
            pool.shutdown(cancel_futures=True)
    yield OutputData({**outcome(request, errors), "warnings": list(dict.fromkeys(batch.warnings))})
    yield Progress(_FULL)


def _refused(work: Work, request: Img2VidRequest) -> dict[str, JobError]:
    """Why a still cannot be tried at all, by its id."""
    errors: dict[str, JobError] = {}
    for i, still in enumerate(request.images):
        name = f"images.{i}.image_url"
        if name in work.input_errors:
            errors[still.id] = work.input_errors[name]
        elif name not in work.inputs:
            errors[still.id] = JobError("input_unreachable", f"{name}: the file is not there.")
        elif still.duracao * ken_burns.FPS > MAX_CLIP_FRAMES:
            errors[still.id] = JobError("too_large", f"images.{i}.duracao: {still.duracao:g} s are too long.")
    return errors


def _collect(
    waiting: dict[Future[Path], int], batch: _Batch, errors: dict[str, JobError], ctx: EngineContext
) -> Iterator[Event]:
    """Relay progress and finished clips until all have ended; a still that fails is noted and loses no other."""
    began_s = time.monotonic()
    ended = len(batch.plans) - len(waiting)
    while waiting:
        finished, _ = wait(waiting, timeout=_NEWS_EVERY_S, return_when=FIRST_COMPLETED)
        if ctx.cancelled.is_set():
            raise Cancelled
        for future in finished:
            position = waiting.pop(future)
            still = batch.request.images[position]
            ended += 1
            try:
                path = future.result()
            except Cancelled:
                raise
            except MediamillError as error:
                batch.done[position] = batch.plans[position].frames
                errors[still.id] = JobError(error.code, error.message)
            else:
                yield OutputFile(path.name, path, _VIDEO_TYPE)
        message = f"{ended} of {len(batch.plans)} clips"
        yield _progress(batch.fraction(), began_s, message)


def stills_at_once(settings: Mapping[str, str]) -> int:
    """BATCH_SIZE, bounded by the cores: each still keeps one busy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(int(settings.get("BATCH_SIZE", "5")), cores))


# captions


def _caption(work: Work, ctx: EngineContext) -> Iterator[Event]:
    params = work.params
    yield Progress(0.0, Phase.LOADING)
    video = _video_input(work, "url_video")
    with _field("url_srt"):
        subtitles = captions.read(_input(work, "url_srt").path)
    path, source = video
    warnings = _caption_warnings(subtitles, source)
    out = ctx.scratch / "captioned.mp4"
    tool = tool_of(ctx, warnings)
    style = SubtitleStyle.model_validate(params["style"]) if params.get("style") else None
    nothing_to_draw = not subtitles.cues and source.video[0].codec == "h264"
    if params.get("mode") == "soft" or nothing_to_draw:
        with _field("url_video"):
            yield from _relayed(burn.soft(path, source, subtitles, out, tool=tool), source.video[0].duration_s)
    else:
        quality = params.get("quality", "balanced")
        warnings += _tone_mapped(source)
        with _field("url_srt"):
            steps = burn.burn(path, source, subtitles, out, tool=tool, quality=quality, style=style)
            yield from _relayed(steps, source.video[0].duration_s)
    _check_captioned(inspect(out), source)
    yield OutputFile(str(params.get("output_filename") or "captioned.mp4"), out, _VIDEO_TYPE)
    yield OutputData(
        {
            "mode": params.get("mode", "burn"),
            "cues": len(subtitles.cues),
            "encoding": subtitles.encoding,
            "warnings": warnings,
        }
    )
    yield Progress(_FULL)


def _caption_warnings(subtitles: Captions, source: Container) -> list[str]:
    if not subtitles.cues:
        return ["url_srt: there are no subtitles in it; nothing was drawn."]
    length_s = source.video[0].duration_s
    late = sum(cue.start_s >= length_s for cue in subtitles.cues)
    return [f"url_srt: {late} subtitles begin after the end of the video ({length_s:.2f} s)."] if late else []


def _check_captioned(made: Container, source: Container) -> None:
    """Raises EngineFailed when pictures or the sound were lost on the way."""
    before, after = source.video[0], made.video[0] if made.video else None
    if after is None or bool(source.audio) != bool(made.audio):
        raise EngineFailed("The result lacks a stream of the source.")
    if abs(after.frames - before.frames) > max(2, before.frames // 50):
        raise EngineFailed(f"The result has {after.frames} pictures, the source {before.frames}.")


# sound


def _add_audio(work: Work, ctx: EngineContext) -> Iterator[Event]:
    yield Progress(0.0, Phase.LOADING)
    video = _video_input(work, "url_video")
    sound = _input(work, "url_audio")
    with _field("url_audio"):
        sounds = inspect(sound.path)
        if not sounds.audio:
            raise UnsupportedMedia("the file has no audio stream.")
    out = ctx.scratch / "with_audio.mp4"
    expected_s = min(video[1].video[0].duration_s, sounds.audio[0].duration_s)
    warnings = [] if mux.copies_video(video[1]) else _tone_mapped(video[1])
    steps = mux.add_audio(video, (sound.path, sounds), out, tool=tool_of(ctx, warnings))
    made = yield from _relayed(steps, expected_s)
    yield OutputFile(str(work.params.get("output_filename") or "with_audio.mp4"), out, _VIDEO_TYPE)
    yield OutputData(
        {
            "duration_s": round(made.duration_s, 3),
            "video_duration_s": round(made.video_s, 3),
            "audio_duration_s": round(made.audio_s, 3),
            "video_copied": made.video_copied,
            "audio_copied": made.audio_copied,
            "warnings": warnings,
        }
    )
    yield Progress(_FULL)


# what the operations share


def tool_of(ctx: EngineContext, warnings: list[str]) -> Tool:
    """How FFmpeg is to be run for this piece of work; what it has to say about that goes into `warnings`."""
    fonts_dir = ctx.settings.get("FONTS_DIR")
    return Tool(
        ffmpeg=ctx.settings.get("FFMPEG", ""),
        encoder=ctx.settings.get("ENCODER", "auto"),
        fonts_dir=Path(fonts_dir) if fonts_dir else None,
        cancelled=ctx.cancelled,
        on_fallback=warnings.append,
    )


def _input(work: Work, name: str) -> InputFile:
    if name not in work.inputs:
        raise UnsupportedMedia(f"{name}: the file is not there.")
    return work.inputs[name]


def _video_input(work: Work, name: str) -> tuple[Path, Container]:
    """A video within the limits, inspected. Raises UnsupportedMedia and TooLarge naming the field."""
    path = _input(work, name).path
    with _field(name):
        source = inspect(path)
        if not source.video:
            raise UnsupportedMedia("the file has no video stream.")
        track = source.video[0]
        if track.duration_s <= 0:
            raise UnsupportedMedia("the video has no length.")
        if track.duration_s > MAX_VIDEO_S or track.frames > MAX_VIDEO_FRAMES:
            raise TooLarge(
                f"the video has {track.frames} pictures in {track.duration_s:.0f} s; at most {MAX_VIDEO_FRAMES} in "
                f"{MAX_VIDEO_S:.0f} s are accepted."
            )
    return path, source


def _tone_mapped(source: Container) -> list[str]:
    """What to say of a video whose pictures are encoded again."""
    hdr = source.video[0].hdr
    return [f"url_video: HDR ({hdr.upper()}) was tone-mapped to SDR (BT.709)."] if hdr else []


@contextmanager
def _field(name: str) -> Iterator[None]:
    """Errors of the caller's media say which field they are about."""
    try:
        yield
    except (InputError, TooLarge) as error:
        raise type(error)(f"{name}: {error.message}") from error


def _relayed(steps: Generator[float, None, Any], length_s: float) -> Generator[Event, None, Any]:
    """Seconds made as progress; returns what the steps return."""
    began_s = time.monotonic()
    while True:
        try:
            made_s = next(steps)
        except StopIteration as end:
            return end.value
        yield _progress(made_s / length_s if length_s > 0 else 0.0, began_s, None)


def _progress(fraction: float, began_s: float, message: str | None) -> Progress:
    fraction = min(max(fraction, 0.0), 0.999)
    spent_s = time.monotonic() - began_s
    eta_s = spent_s * (1 - fraction) / fraction if fraction > 0.01 else None  # noqa: PLR2004 - too early to tell
    return Progress(fraction, Phase.ENCODING, message, eta_s)

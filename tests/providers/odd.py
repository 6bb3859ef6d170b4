"""An engine from outside the package that does what no engine should, and the catalog entry that asks for it.

Installed into a folder as a distribution with an entry point, it is found by a child process like any outside plugin.
"""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mediamill import catalog
from mediamill.errors import EngineFailed, UnsupportedMedia
from mediamill.model import EngineContext, Event, OutputData, OutputFile, Phase, Progress, Work


class OddRequest(catalog.Request):
    do: str


ENTRY = catalog.Entry("odd", "Misbehaves.", OddRequest, engine="odd", output_kind="json")


def install(folder: Path) -> None:
    """Make this file the engine `odd` for every Python that has `folder` on its path."""
    info = folder / "odd-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[mediamill.engines]\nodd = odd_engine\n")
    (folder / "odd_engine.py").write_text(Path(__file__).read_text())


def create(_settings: Mapping[str, str]) -> OddEngine:
    return OddEngine()


class OddEngine:
    def held(self) -> Sequence[str]:
        return ()

    def run(self, work: Work, ctx: EngineContext) -> Iterator[Event]:
        return _ODDITIES[work.params["do"]](work, ctx)


def _grandchildren(_work: Work, ctx: EngineContext) -> Iterator[Event]:
    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    same = subprocess.Popen(sleep)
    own = subprocess.Popen(sleep, start_new_session=True)
    nested = subprocess.Popen(
        [sys.executable, "-S", "-c", f"import subprocess; subprocess.run({sleep!r})"], start_new_session=True
    )
    yield Progress(0.1, Phase.GENERATING, " ".join(str(p.pid) for p in (same, own, nested)))
    while True:
        time.sleep(1)


def _noise(_work: Work, _ctx: EngineContext) -> Iterator[Event]:
    print("a library says hello", flush=True)  # noqa: T201
    os.write(1, b"{not json\n")
    yield OutputData({"read": sys.stdin.read()})


def _flood(_work: Work, _ctx: EngineContext) -> Iterator[Event]:
    for index in range(20_000):
        yield Progress(index / 20_000, Phase.GENERATING)
    yield OutputData({"done": True})


def _big(_work: Work, _ctx: EngineContext) -> Iterator[Event]:
    yield OutputData({"text": "x" * 200_000})
    yield OutputData({"more": "x" * 70_000})


def _raise(_work: Work, _ctx: EngineContext) -> Iterator[Event]:
    yield Progress(0.5)
    raise ValueError("token=hunter2")


def _full(_work: Work, ctx: EngineContext) -> Iterator[Event]:
    yield Progress(0.5)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(ctx.scratch / "hunter2"))


def _exit(_work: Work, _ctx: EngineContext) -> Iterator[Event]:
    yield Progress(0.5)
    sys.exit(3)


def _hard_exit(_work: Work, _ctx: EngineContext) -> Iterator[Event]:
    yield Progress(0.5)
    os._exit(3)


def _known_error(_work: Work, _ctx: EngineContext) -> Iterator[Event]:
    yield Progress(0.5)
    raise UnsupportedMedia("images.0.image_url: not a picture")


def _log_tail(_work: Work, _ctx: EngineContext) -> Iterator[Event]:
    yield Progress(0.5)
    raise EngineFailed("The encoder refused.", log_tail="line 1\nline 2")


def _damaged(_work: Work, ctx: EngineContext) -> Iterator[Event]:
    path = ctx.scratch / "clip.mp4"
    path.write_bytes(b"this is not a film")
    yield OutputFile("clip.mp4", path, "video/mp4")


def _outside(_work: Work, ctx: EngineContext) -> Iterator[Event]:
    (ctx.scratch / "link.png").symlink_to("/etc/hostname")
    yield OutputFile("link.png", ctx.scratch / "link.png", "image/png")


def _missing(_work: Work, ctx: EngineContext) -> Iterator[Event]:
    yield OutputFile("gone.png", ctx.scratch / "gone.png", "image/png")


def _text(_work: Work, ctx: EngineContext) -> Iterator[Event]:
    path = ctx.scratch / "a.srt"
    path.write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    yield OutputFile("a.srt", path, "application/x-subrip")


def _environment(_work: Work, ctx: EngineContext) -> Iterator[Event]:
    yield OutputData({"environment": dict(os.environ), "settings": dict(ctx.settings)})


def _heedless(_work: Work, ctx: EngineContext) -> Iterator[Event]:
    """Ends well although it was cancelled meanwhile."""
    for _ in itertools.count():
        yield Progress(0.5)
        time.sleep(0.01)
        if ctx.cancelled.is_set():
            break
    yield OutputData({"done": True})


_ODDITIES: Mapping[str, Callable[[Work, EngineContext], Iterator[Event]]] = {
    "grandchildren": _grandchildren,
    "noise": _noise,
    "flood": _flood,
    "big": _big,
    "raise": _raise,
    "full": _full,
    "exit": _exit,
    "hard_exit": _hard_exit,
    "known_error": _known_error,
    "log_tail": _log_tail,
    "damaged": _damaged,
    "outside": _outside,
    "missing": _missing,
    "text": _text,
    "environment": _environment,
    "heedless": _heedless,
}

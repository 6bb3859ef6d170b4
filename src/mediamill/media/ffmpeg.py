"""Run FFmpeg as a child under limits: local files only, one forced demuxer, own process group, nothing left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import imageio_ffmpeg

from mediamill.errors import Cancelled, DeadlineExceeded, EngineFailed, Misconfigured
from mediamill.media.encoders import EncoderChoice
from mediamill.media.probe import MAX_PIXELS, MAX_STREAMS
from mediamill.media.sniff import DEMUXERS, Sniffed

_GIB = 1024**3
_LOG_LINES = 40
_LINE_CHARS = 500
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_PASSED = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES")


@dataclass(frozen=True)
class Limits:
    """What one run may take. `memory_bytes` 0: unlimited, for hardware encoders, which map far more than they use."""

    wall_s: float = 3600.0
    stall_s: float = 120.0
    output_bytes: int = 16 * _GIB
    memory_bytes: int = 16 * _GIB


@cache
def binary(setting: Path | str | None = None) -> Path:
    """The FFmpeg to run: the configured one, else the one that comes along.

    Raises: Misconfigured: the configured one is not an executable file.
    """
    if not setting:
        return Path(imageio_ffmpeg.get_ffmpeg_exe())
    path = Path(setting)
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise Misconfigured(f"MEDIAMILL_FFMPEG is {str(setting)!r}, which is not an executable file.")
    return path


def input_args(path: Path, sniffed: Sniffed) -> list[str]:
    """Options that let FFmpeg read this one file by its one demuxer, and nothing that the file may point to."""
    return [
        *("-protocol_whitelist", "file,pipe", "-format_whitelist", DEMUXERS),
        *("-max_streams", str(MAX_STREAMS), "-max_pixels", str(MAX_PIXELS)),
        *("-f", sniffed.demuxer, "-i", f"file:{path.resolve()}"),
    ]


def text_input_args(name: str, demuxer: str) -> list[str]:
    """As `input_args`, for a subtitle file of our own in the job's folder."""
    return ["-protocol_whitelist", "file,pipe", "-format_whitelist", demuxer, "-f", demuxer, "-i", f"file:{name}"]


def encoder_args(choice: EncoderChoice) -> list[str]:
    """An encoder and its options as arguments."""
    options = [part for key, value in choice.options.items() for part in (f"-{key}:v", value)]
    return ["-c:v", choice.name, *options]


def run(
    args: Sequence[str],
    *,
    folder: Path,
    setting: Path | str | None = None,
    limits: Limits = Limits(),
    cancelled: threading.Event | None = None,
) -> Generator[float, None, str]:
    """Run FFmpeg in `folder`, yielding seconds of output made so far; returns its messages.

    Closing the generator, an error and a cancel all kill the whole process group and reap it.

    Args:
        args: Inputs, filters and outputs; global options are added.
        folder: Working folder, home and place for caches of the child.
        setting: A configured binary.
        limits: What it may take.
        cancelled: Looked at 20 times a second.
    Raises: Cancelled, DeadlineExceeded (too long, or no progress), EngineFailed (with its last 40 lines).
    """
    command = [
        str(binary(setting)),
        *("-nostdin", "-hide_banner", "-y", "-loglevel", "info", "-max_alloc", str(2 * _GIB)),
        *("-progress", "pipe:1", "-stats_period", "0.2", "-nostats"),
        *args,
    ]
    child = subprocess.Popen(
        command,
        cwd=folder,
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=_limiter(limits),  # noqa: PLW1509 - only system calls on values made before the fork
    )
    log: deque[str] = deque(maxlen=_LOG_LINES * 5)
    news: queue.SimpleQueue[float] = queue.SimpleQueue()
    reports = threading.Thread(target=_read_progress, args=(child.stdout, news), daemon=True)
    readers = [threading.Thread(target=_read_log, args=(child.stderr, log), daemon=True), reports]
    for reader in readers:
        reader.start()
    try:
        done_s = yield from _watch(child, news, limits, cancelled or threading.Event())
        reports.join()
        yield from _rest(news, done_s)
    finally:
        _end(child, readers)
    messages = "\n".join(log)
    if child.returncode != 0:
        raise EngineFailed(_why(child.returncode, log), log_tail="\n".join(list(log)[-_LOG_LINES:]))
    return messages


def _watch(
    child: subprocess.Popen[str], news: queue.SimpleQueue[float], limits: Limits, cancelled: threading.Event
) -> Generator[float, None, float]:
    """Until it has ended; returns the last of what was yielded."""
    began = heard = time.monotonic()
    done_s = -1.0
    while child.poll() is None:
        if cancelled.is_set():
            raise Cancelled
        now = time.monotonic()
        if now - began > limits.wall_s:
            raise DeadlineExceeded(f"FFmpeg took longer than {limits.wall_s:g} s.")
        if now - heard > limits.stall_s:
            raise DeadlineExceeded(f"FFmpeg made no progress for {limits.stall_s:g} s.")
        try:
            made_s = news.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        if made_s > done_s:
            done_s, heard = made_s, time.monotonic()
            yield made_s
    return done_s


def _rest(news: queue.SimpleQueue[float], done_s: float) -> Iterator[float]:
    """What was reported while nobody looked, rising from `done_s` on."""
    while not news.empty():
        made_s = news.get()
        if made_s > done_s:
            done_s = made_s
            yield made_s


def _end(child: subprocess.Popen[str], readers: Sequence[threading.Thread]) -> None:
    """Kill the group if it still runs, reap the child, and close its pipes."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    for reader in readers:
        reader.join()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()


def _read_log(pipe: IO[str], log: deque[str]) -> None:
    """Line by line, a hostile line without end in bounded pieces."""
    while line := pipe.readline(_LINE_CHARS):
        log.append(line.rstrip("\n"))


def _read_progress(pipe: IO[str], news: queue.SimpleQueue[float]) -> None:
    while line := pipe.readline(_LINE_CHARS):
        key, _, value = line.strip().partition("=")
        if key == "out_time_us" and value.lstrip("-").isdigit():
            news.put(int(value) / 1_000_000)


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _PASSED if name in os.environ}
    fonts = folder / "fonts.conf"
    own = {"FONTCONFIG_FILE": str(fonts)} if fonts.exists() else {}
    return {
        **kept,
        "LC_ALL": "C.UTF-8",
        "HOME": str(folder),
        "XDG_CACHE_HOME": str(folder),
        "TMPDIR": str(folder),
        **own,
    }


def _limiter(limits: Limits) -> Callable[[], None]:
    """What the child does before it becomes FFmpeg: die with us, and take no more than the limits."""
    cpu_s = int(limits.wall_s * (os.cpu_count() or 1)) + 1
    wanted = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, limits.output_bytes),
        (resource.RLIMIT_NOFILE, 256),
    ]
    if limits.memory_bytes:
        wanted.append((resource.RLIMIT_AS, limits.memory_bytes))
    values = [(what, _within_hard(what, value)) for what, value in wanted]

    def limit() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for what, value in values:
            resource.setrlimit(what, (value, value))

    return limit


def _within_hard(what: int, value: int) -> int:
    hard = resource.getrlimit(what)[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _why(code: int, log: Sequence[str]) -> str:
    """One sentence for the caller, without paths."""
    text = "\n".join(log)
    if "No space left on device" in text:
        return "The disk is full."
    if code == -signal.SIGXFSZ or "File too large" in text:
        return "The output would be larger than what is accepted."
    if code == -signal.SIGXCPU:
        return "FFmpeg used more CPU time than what is accepted."
    if code < 0:
        return f"FFmpeg was ended by signal {-code}."
    return "FFmpeg could not do it; the log has its last lines."

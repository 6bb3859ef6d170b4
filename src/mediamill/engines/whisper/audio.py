"""Any container to one long row of 16 kHz mono samples on disk, in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt

from mediamill.errors import Cancelled, TooLarge, UnsupportedMedia
from mediamill.media.probe import opened
from mediamill.media.sniff import sniff

RATE_HZ = 16_000
MAX_AUDIO_S = 12 * 3600.0
_SAMPLE_BYTES = 2
_GAP_S = 0.1
"""A hole in the timestamps longer than this is filled with silence, so that subtitles stay in step with the picture."""
_REPORT_S = 30.0


@dataclass(frozen=True)
class Sound:
    """Samples in a file: int16, 16 kHz, mono. A three-hour file is 345 MB on disk and as much memory as is read."""

    path: Path
    samples: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.samples / RATE_HZ

    def read(self, start: int, end: int) -> npt.NDArray[np.float32]:
        """Samples `start` (inclusive) to `end` (exclusive) as float32, -1 to 1."""
        start, end = max(0, start), min(end, self.samples)
        if end <= start:
            return np.zeros(0, np.float32)
        raw = np.fromfile(self.path, np.int16, count=end - start, offset=start * _SAMPLE_BYTES)
        return raw.astype(np.float32) / 32768.0


class Decoding:
    """Decodes a file's first audio stream while being iterated; then `sound` is there."""

    def __init__(self, source: Path, into: Path, cancelled: threading.Event) -> None:
        """Args: `source`: what the caller sent. `into`: where the samples go. `cancelled`: looked at often."""
        self._source, self._into, self._cancelled = source, into, cancelled
        self.sound = Sound(into, 0)
        self.damaged = 0
        """Packets that could not be decoded and were left out."""

    def __iter__(self) -> Iterator[float]:
        """Yield the share done, 0 to 1, now and then.

        Raises: UnsupportedMedia: no audio stream, or not decodable. TooLarge: longer than 12 h. Cancelled.
        """
        sniffed = sniff(self._source)
        if not sniffed.demuxer:
            raise UnsupportedMedia(f"The file is a picture ({sniffed.media_type}); it has no audio stream.")
        with opened(self._source, sniffed.demuxer) as container, self._into.open("wb") as out:
            stream = next((s for s in container.streams.audio if s.codec_context is not None), None)
            if stream is None:
                raise UnsupportedMedia("The file has no audio stream that can be decoded, so there is nothing to hear.")
            yield from self._decode(container, stream, out)
        if self.sound.samples == 0:
            raise UnsupportedMedia("No sound could be decoded from the file: it is damaged or its audio is empty.")

    def _decode(self, container: Any, stream: Any, out: Any) -> Iterator[float]:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
        total_s = (container.duration or 0) / av.time_base
        origin_s = min(0.0, (container.start_time or 0) / av.time_base) if container.start_time else 0.0
        written, reported_s = 0, 0.0
        for frame in self._frames(container, stream):
            if self._cancelled.is_set():
                raise Cancelled
            written += _silence(out, written, frame, origin_s)
            written += _write(out, _resampled(resampler, frame))
            if written > MAX_AUDIO_S * RATE_HZ:
                raise TooLarge(f"The audio is longer than {MAX_AUDIO_S / 3600:g} hours, which is the most accepted.")
            if written / RATE_HZ - reported_s >= _REPORT_S:
                reported_s = written / RATE_HZ
                self.sound = Sound(self._into, written)
                yield min(1.0, reported_s / total_s) if total_s > 0 else 0.0
        written += _write(out, _resampled(resampler, None))
        out.flush()
        self.sound = Sound(self._into, written)

    def _frames(self, container: Any, stream: Any) -> Iterator[Any]:
        """Decoded frames; a damaged packet is skipped, as players do, until nothing but damage is left."""
        good = 0
        for packet in container.demux(stream):
            try:
                for frame in packet.decode():
                    good += 1
                    yield frame
            except (av.error.FFmpegError, ValueError) as error:
                self.damaged += 1
                if self.damaged > 50 + good:
                    raise UnsupportedMedia("The audio stream is damaged: most of it cannot be decoded.") from error


def _silence(out: Any, written: int, frame: Any, origin_s: float) -> int:
    """Fill what the timestamps leave out before `frame`: a late start, or lost packets."""
    if frame.pts is None or frame.time_base is None:
        return 0
    missing = round((float(frame.pts * frame.time_base) - origin_s) * RATE_HZ) - written
    if missing <= _GAP_S * RATE_HZ:
        return 0
    if written + missing > MAX_AUDIO_S * RATE_HZ:
        raise TooLarge(f"The audio's timestamps run past {MAX_AUDIO_S / 3600:g} hours, which is the most accepted.")
    block = np.zeros(RATE_HZ, np.int16)
    left = missing
    while left > 0:
        out.write(block[: min(left, RATE_HZ)].tobytes())
        left -= RATE_HZ
    return missing


def _resampled(resampler: Any, frame: Any | None) -> Iterator[npt.NDArray[np.int16]]:
    if frame is not None:
        frame.pts = None  # the resampler would otherwise fill or drop at holes itself
    try:
        for piece in resampler.resample(frame):
            yield piece.to_ndarray().reshape(-1)
    except (av.error.FFmpegError, ValueError) as error:
        raise UnsupportedMedia("The audio stream changes its format in a way that cannot be decoded.") from error


def _write(out: Any, pieces: Iterator[npt.NDArray[np.int16]]) -> int:
    count = 0
    for piece in pieces:
        out.write(piece.tobytes())
        count += piece.size
    return count

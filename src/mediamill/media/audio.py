"""Sound of any kind as AAC of an exact length."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from mediamill.errors import UnsupportedMedia
from mediamill.media.probe import AudioTrack, Container, opened

AAC_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
ADTS_PRIMING_SAMPLES = 1024
"""A raw .aac file has no field for the encoder's priming, so its first block is silence that shifts all that follows."""
BLOCK_SAMPLES = 1024
BITS_PER_S = 192_000


def aac_rate_hz(rate_hz: int) -> int:
    """The nearest rate AAC knows that loses nothing, at most 48 kHz."""
    return next((rate for rate in AAC_RATES_HZ if rate >= rate_hz), AAC_RATES_HZ[-1])


def priming_samples(source: Container) -> int:
    """Samples at the start of a file that are no sound, and that no demuxer drops by itself."""
    return ADTS_PRIMING_SAMPLES if source.sniffed.demuxer == "aac" else 0


def sounding_s(source: Container) -> float:
    """How long the sound of a file is, without priming."""
    track = source.audio[0]
    return max(0.0, track.duration_s - priming_samples(source) / track.rate_hz)


def aac_packets(path: Path, source: Container, stream: Any, *, duration_s: float) -> Iterator[Any]:
    """Decode the first sound of a file and encode it onto an AAC stream, cut to exactly that long.

    Args:
        path: The file.
        source: Its inspection.
        stream: An open AAC output stream; its rate and layout decide.
        duration_s: Rounded to whole samples.
    Raises: UnsupportedMedia: the sound cannot be decoded.
    """
    wanted = round(duration_s * stream.codec_context.sample_rate)
    fifo: Any = av.AudioFifo()
    written = 0
    for frame in _blocks(path, source, stream.codec_context):
        fifo.write(frame)
        while fifo.samples >= BLOCK_SAMPLES and written < wanted:
            block = fifo.read(min(BLOCK_SAMPLES, wanted - written))
            yield from _encoded(stream, block, written)
            written += block.samples
        if written >= wanted:
            break
    rest = min(fifo.samples, wanted - written)
    if rest > 0:
        yield from _encoded(stream, fifo.read(rest), written)
    elif written == 0:
        raise UnsupportedMedia("The sound cannot be decoded.")
    yield from stream.encode(None)


def _encoded(stream: Any, block: Any, at: int) -> Iterator[Any]:
    rate_hz = stream.codec_context.sample_rate
    block.pts, block.time_base, block.sample_rate = at, Fraction(1, rate_hz), rate_hz
    yield from stream.encode(block)


def _blocks(path: Path, source: Container, context: Any) -> Iterator[Any]:
    """The sound in the encoder's format, rate and layout, from its true start on."""
    track: AudioTrack = source.audio[0]
    resampler = av.AudioResampler(format=context.format, layout=context.layout, rate=context.sample_rate)
    skip = priming_samples(source)
    with opened(path, source.sniffed.demuxer) as container:
        stream = next(s for s in container.streams if s.index == track.index)
        try:
            for frame in container.decode(stream):
                if skip >= frame.samples:
                    skip -= frame.samples
                    continue
                if skip:
                    frame, skip = _without_start(frame, skip), 0  # noqa: PLW2901 - the same sound, shortened
                frame.pts = None
                yield from resampler.resample(frame)
        except av.error.FFmpegError as error:
            raise UnsupportedMedia(f"The sound is damaged: {error.strerror}.") from error
        yield from resampler.resample(None)


def _without_start(frame: Any, samples: int) -> Any:
    values = frame.to_ndarray()
    channels = frame.layout.nb_channels
    rest = values[:, samples * channels :] if not frame.format.is_planar else values[:, samples:]
    shorter = av.AudioFrame.from_ndarray(rest.copy(), format=frame.format.name, layout=frame.layout.name)
    shorter.sample_rate = frame.sample_rate
    return shorter

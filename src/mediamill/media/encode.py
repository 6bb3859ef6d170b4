"""Pictures to an MP4 file: bt709 conversion and tags, exact rates, index at the front."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from mediamill.errors import EngineFailed, UnsupportedMedia
from mediamill.media.encoders import EncoderChoice, Quality, software
from mediamill.media.facts import MediaFacts
from mediamill.media.probe import probe, reason_of

Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[Any]
Planes = tuple[Pixels, Pixels, Pixels]

_BT709 = 1
_LIMITED = 1
_AAC_BLOCK_SAMPLES = 1024
_AUDIO_BITS_PER_S = 192_000


@dataclass(frozen=True)
class Sound:
    """Samples to go with pictures: (n,) mono or (n, channels), float in -1 to 1 or int16."""

    samples: Samples
    rate_hz: int

    @property
    def layout(self) -> str:
        """What it is encoded as: more than two channels are mixed down to one."""
        return "stereo" if self.samples.ndim > 1 and self.samples.shape[1] == 2 else "mono"  # noqa: PLR2004 - a pair


class VideoWriter:
    """Writes one MP4, picture by picture; holds what the encoder looks ahead and no more.

    Use as a context manager: leaving it normally finishes the file, leaving it by an exception leaves the file broken
    for the caller to delete.
    """

    def __init__(
        self,
        out: Path,
        *,
        width_px: int,
        height_px: int,
        fps: Fraction,
        encoder: EncoderChoice,
        sound: Sound | None = None,
    ) -> None:
        """`sound`: what `write_sound` will be given after the pictures.

        Raises: UnsupportedMedia: odd or empty size. EngineFailed: the encoder does not open.
        """
        if width_px < 2 or height_px < 2 or width_px % 2 or height_px % 2:  # noqa: PLR2004 - 4:2:0 needs pairs
            raise UnsupportedMedia(f"A video of {width_px}x{height_px} cannot be made: both sides must be even.")
        self._encoder = encoder
        self._pictures = 0
        self._spare: Any = None
        self._converter = VideoReformatter()
        try:
            self._container: Any = av.open(str(out), "w", format="mp4", options={"movflags": "+faststart"})
            self._video = self._container.add_stream(encoder.name, rate=fps, options=dict(encoder.options))
            context: Any = self._video.codec_context
            context.width, context.height, context.pix_fmt = width_px, height_px, "yuv420p"
            context.time_base = 1 / fps
            context.thread_count = encoder.threads
            context.color_primaries = context.color_trc = context.colorspace = _BT709
            context.color_range = _LIMITED
            self._audio: Any = None
            if sound is not None:
                self._audio = self._container.add_stream("aac", rate=sound.rate_hz)
                self._audio.bit_rate = _AUDIO_BITS_PER_S
                self._audio.codec_context.layout = sound.layout  # else mono is spread over two channels, 3 dB quieter
            context.open()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise EngineFailed(f"The encoder {encoder.name} does not start: {reason_of(error)}.") from error

    def __enter__(self) -> Self:
        """Nothing to do: the file is open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush and finish the file, or close it as it is after an error."""
        if kind is not None:
            try:
                self._container.close()
            except (av.error.FFmpegError, OSError):
                return
            return
        self._mux(self._video, None)
        if self._audio is not None:
            self._mux(self._audio, None)
        try:
            self._container.close()  # writes the index, and moves it to the front
        except (av.error.FFmpegError, OSError) as failure:
            raise EngineFailed(f"The video cannot be finished: {reason_of(failure)}.") from failure

    def picture(self) -> tuple[Any, Planes]:
        """An empty picture and views of its Y, U and V planes, to be filled in place and passed to `write`."""
        frame, self._spare = self._spare, None
        if frame is None:
            context: Any = self._video.codec_context
            frame = av.VideoFrame(context.width, context.height, "yuv420p")
            frame.colorspace, frame.color_range = _BT709, _LIMITED
            frame.color_primaries = frame.color_trc = _BT709
        views = tuple(
            np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
            for plane in frame.planes
        )
        return frame, (views[0], views[1], views[2])

    def write(self, frame: Any) -> None:
        """Encode the next picture."""
        frame.pts = self._pictures
        frame.time_base = self._video.codec_context.time_base
        self._pictures += 1
        self._mux(self._video, frame)
        if self._encoder.reuses_frames:
            self._spare = frame

    def write_rgb(self, pixels: Pixels) -> None:
        """Encode the next picture from (H, W, 3) uint8 full-range RGB.

        The default conversion is bt601, which players of HD video do not assume: colours would be off by up to 32 of 255.
        One converter does all pictures, in this thread: `frame.reformat` sets one up each time, with a thread for each
        core, and that takes longer than the conversion.
        """
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame: Any = self._converter.reformat(
            rgb, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
        )
        frame.color_primaries = frame.color_trc = _BT709
        self.write(frame)

    def write_sound(self, sound: Sound, *, duration_s: Fraction) -> None:
        """Encode the sound, cut or padded with silence to exactly that long."""
        wanted = int(duration_s * sound.rate_hz)
        block = _as_float_channels(sound.samples)[:, :wanted]
        block = np.pad(block, ((0, 0), (0, wanted - block.shape[1])))
        for start in range(0, wanted, _AAC_BLOCK_SAMPLES):
            piece = np.ascontiguousarray(block[:, start : start + _AAC_BLOCK_SAMPLES])
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=sound.layout)
            frame.sample_rate = sound.rate_hz
            frame.pts = start
            frame.time_base = Fraction(1, sound.rate_hz)
            self._mux(self._audio, frame)

    def _mux(self, stream: Any, frame: Any) -> None:
        try:
            self._container.mux(stream.encode(frame))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise EngineFailed(f"The encoder {self._encoder.name} failed: {reason_of(error)}.") from error


def _as_float_channels(samples: Samples) -> npt.NDArray[np.float32]:
    """(channels, n) float32 with one or two channels; more are mixed down to one."""
    values = np.asarray(samples)
    scale = 1 / 32768 if np.issubdtype(values.dtype, np.integer) else 1.0
    channels = np.atleast_2d(values.T if values.ndim > 1 else values).astype(np.float32) * np.float32(scale)
    if channels.shape[0] > 2:  # noqa: PLR2004 - stereo is as it is
        channels = channels.mean(axis=0, keepdims=True)
    clipped: npt.NDArray[np.float32] = np.clip(channels, np.float32(-1), np.float32(1))
    return clipped


def frames_to_video(
    frames: Iterable[Pixels],
    out: Path,
    *,
    fps: Fraction | float,
    sound: Sound | None = None,
    quality: Quality = "best",
    encoder: EncoderChoice | None = None,
) -> MediaFacts:
    """Encode pictures as H.264 in MP4, streaming; holds two pictures and the encoder's look-ahead in memory.

    Args:
        frames: Each (H, W, 3) uint8 RGB, full range; H and W even, all equal.
        out: The file to write; its folder exists.
        fps: Exact rate, e.g. Fraction(30000, 1001).
        sound: Cut or padded with silence to the pictures' length.
        quality: best is visually lossless (CRF 18).
        encoder: Another encoder than x264 at that quality.
    Returns: A probe of `out`, read back from the file, not assumed.
    Raises: UnsupportedMedia: odd size, changing shape or no pictures. EngineFailed: the encoder refused.
    """
    rate = Fraction(fps).limit_denominator(1001)
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None:
        raise UnsupportedMedia("A video of no pictures cannot be made.")
    height_px, width_px = first.shape[:2]
    writer = VideoWriter(
        out,
        width_px=width_px,
        height_px=height_px,
        fps=rate,
        encoder=encoder or software("h264", quality),
        sound=sound,
    )
    with writer:
        count = 0
        for count, pixels in enumerate(_chain(first, pictures), 1):
            if pixels.shape != first.shape:
                raise UnsupportedMedia(f"Picture {count} is {pixels.shape}, the first is {first.shape}.")
            writer.write_rgb(pixels)
        if sound is not None:
            writer.write_sound(sound, duration_s=count / rate)
    return probe(out, media_type="video/mp4")


def _chain(first: Pixels, rest: Iterable[Pixels]) -> Iterable[Pixels]:
    yield first
    yield from rest

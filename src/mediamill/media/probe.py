"""Read a media file's facts: streams, sizes, exact picture counts, durations, colour tags. Decodes next to nothing."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import pillow_heif
from PIL import Image, UnidentifiedImageError

from mediamill.errors import OutOfMemory, TooLarge, UnsupportedMedia
from mediamill.media import tone
from mediamill.media.facts import Hdr, MediaFacts
from mediamill.media.sniff import DEMUXERS, Sniffed, sniff

MAX_PIXELS = 50_000_000
"""Most pixels of one picture; a decoder needs about 4 bytes for each."""
MAX_SIDE_PX = 16_384
MAX_HEIC_BYTES = 4 * MAX_PIXELS
"""libheif has the whole file in memory; the pixels that are accepted are no more than this, uncompressed."""
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
pillow_heif.options.THUMBNAILS = False
pillow_heif.options.DEPTH_IMAGES = False
pillow_heif.options.AUX_IMAGES = False
pillow_heif.options.DECODE_THREADS = 1  # one thread a still
MAX_STREAMS = 32
MAX_FRAMES = 10_000_000
"""Most packets of one stream that are counted before the file is refused."""

_QUOTED = re.compile(r"""[:\s]*(['"]).*?\1""")
_HEADER_DURATIONS = frozenset({"mov", "wav", "avi", "aiff", "flac", "ogg", "mp3"})
"""Demuxers whose stream duration is stored and leaves out encoder priming; elsewhere it is a guess or missing."""


@dataclass(frozen=True)
class ColourTags:
    """ITU-T H.273 numbers as FFmpeg gives them: bt709 is 1, 2 is unspecified; `range`: 1 limited, 2 full, 0 unset.

    `peak_nits` is the brightest light that the file says it has, or was made on; 0: it says nothing.
    """

    matrix: int
    primaries: int
    transfer: int
    range: int
    peak_nits: float = 0.0

    @property
    def meaning(self) -> tone.Colour:
        """What its red, green and blue stand for."""
        return tone.Colour(self.primaries, self.transfer, self.peak_nits)


@dataclass(frozen=True)
class VideoTrack:
    """One moving picture stream. Sizes are as displayed, after rotation; cover art is not listed."""

    index: int
    codec: str
    width_px: int
    height_px: int
    pixel_format: str
    frames: int
    duration_s: float
    fps: Fraction
    rotation_deg: int
    colour: ColourTags
    start_s: float = 0.0
    square_pixels: bool = True

    @property
    def hdr(self) -> Hdr | None:
        """Which HDR it is, if it is."""
        return tone.HDR_NAMES.get(self.colour.transfer)


@dataclass(frozen=True)
class AudioTrack:
    """One sound stream."""

    index: int
    codec: str
    rate_hz: int
    channels: int
    duration_s: float
    start_s: float = 0.0


@dataclass(frozen=True)
class Container:
    """A whole audio or video file."""

    sniffed: Sniffed
    video: tuple[VideoTrack, ...] = ()
    audio: tuple[AudioTrack, ...] = ()
    subtitles: int = 0

    @property
    def facts(self) -> MediaFacts:
        """The envelope's view of it: the first video and the first audio stream."""
        video = self.video[0] if self.video else None
        audio = self.audio[0] if self.audio else None
        return MediaFacts(
            width_px=video.width_px if video else None,
            height_px=video.height_px if video else None,
            duration_s=round(video.duration_s if video else audio.duration_s if audio else 0.0, 6),
            fps=round(float(video.fps), 6) if video else None,
            frames=video.frames if video else None,
            video_codec=video.codec if video else None,
            audio_codec=audio.codec if audio else None,
            has_audio=audio is not None,
            hdr=video.hdr if video else None,
        )


@contextmanager
def opened(path: Path, demuxer: str) -> Iterator[Any]:
    """An open PyAV container read by that one demuxer, which may follow no reference out of the file.

    Raises: UnsupportedMedia: it cannot be opened, or has more than `MAX_STREAMS` streams.
    """
    limits = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}
    try:
        container = av.open(
            str(path), format=demuxer, options=limits, container_options=limits, metadata_errors="ignore"
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UnsupportedMedia(f"The file cannot be read as {demuxer}: {reason_of(error)}.") from error
    with container:
        if len(container.streams) > MAX_STREAMS:
            raise UnsupportedMedia(f"The file has {len(container.streams)} streams; at most {MAX_STREAMS} are read.")
        yield container


def probe(path: Path, *, media_type: str | None = None) -> MediaFacts:
    """The facts of a picture, video, sound or text file, read from the file itself.

    Args:
        path: A local file.
        media_type: What it ought to be; only text and JSON need it (their facts are empty). Else the bytes decide, and
            a media type of another kind ("image/..." for a video) is refused.
    Raises: UnsupportedMedia: unreadable, truncated, or another kind. TooLarge: too many pixels.
    """
    if media_type is not None and _is_text(media_type):
        return _text_facts(path)
    sniffed = sniff(path)
    facts = _picture_facts(path) if sniffed.kind == "image" else inspect(path, sniffed).facts
    wanted = (media_type or sniffed.kind).split("/")[0]
    if wanted in {"image", "video", "audio"} and wanted != _kind_of(facts, sniffed):
        raise UnsupportedMedia(f"The file is {sniffed.media_type}, not {media_type}.")
    return facts


def _kind_of(facts: MediaFacts, sniffed: Sniffed) -> str:
    if sniffed.kind == "image":
        return "image"
    return "video" if facts.video_codec else "audio"


def inspect(path: Path, sniffed: Sniffed | None = None) -> Container:
    """Every stream of an audio or video file; reads all packets, decodes one picture.

    Raises: UnsupportedMedia: a still picture, unreadable, truncated, or without any sound or moving picture.
    """
    sniffed = sniffed or sniff(path)
    if not sniffed.demuxer:
        raise UnsupportedMedia(f"The file is a picture ({sniffed.media_type}), not a video or sound.")
    try:
        with opened(path, sniffed.demuxer) as container:
            tallies = _tally(container)
            video = [
                _video(s, tallies[s.index], sniffed)
                for s in container.streams.video
                if s.index in tallies and not _is_cover(s)
            ]
            audio = [
                _audio(s, tallies[s.index], sniffed)
                for s in container.streams.audio
                if s.index in tallies and s.codec_context
            ]
            subtitles = len(container.streams.subtitles)
        tags = [_first_picture(path, sniffed, track) for track in video[:1]]
    except (av.error.FFmpegError, OSError) as error:
        raise UnsupportedMedia(f"The file is damaged: {reason_of(error)}.") from error
    if not video and not audio:
        raise UnsupportedMedia("The file has neither a video nor an audio stream.")
    return Container(sniffed, tuple(tags + video[1:]), tuple(audio), subtitles)


@dataclass
class _Tally:
    """What the packets of one stream add up to, in ticks of its timebase; discarded packets are not counted."""

    packets: int = 0
    all_packets: int = 0
    start: int | None = None
    end: int = 0
    deltas: list[int] = field(default_factory=list)


def _tally(container: Any) -> dict[int, _Tally]:
    tallies = {stream.index: _Tally() for stream in container.streams}
    for packet in container.demux():
        if packet.size == 0:
            continue
        tally = tallies.setdefault(packet.stream_index, _Tally())  # some containers add streams on the way
        tally.all_packets += 1
        if packet.is_discard:
            continue
        tally.packets += 1
        if tally.packets > MAX_FRAMES:
            raise TooLarge(f"The file has more than {MAX_FRAMES} pictures or sound blocks.")
        if packet.pts is not None:
            tally.start = packet.pts if tally.start is None else min(tally.start, packet.pts)
            tally.end = max(tally.end, packet.pts + (packet.duration or 0))
    return tallies


def _duration_s(stream: Any, tally: _Tally, demuxer: str) -> float:
    if demuxer in _HEADER_DURATIONS and stream.duration:
        return float(stream.duration * stream.time_base)
    if tally.start is None:
        return 0.0
    return float((tally.end - max(tally.start, 0)) * stream.time_base)  # what lies before 0 is priming


def _video(stream: Any, tally: _Tally, sniffed: Sniffed) -> VideoTrack:
    context = stream.codec_context
    if context is None:
        raise UnsupportedMedia("The video stream has a codec that cannot be decoded here.")
    _check_size(context.width, context.height)
    if sniffed.demuxer == "mov" and stream.frames > tally.all_packets:
        raise UnsupportedMedia(f"The file is truncated: {tally.all_packets} of {stream.frames} pictures are there.")
    if tally.packets == 0:
        raise UnsupportedMedia("The video stream has no pictures.")
    duration_s = _duration_s(stream, tally, sniffed.demuxer)
    rate = stream.average_rate or stream.guessed_rate
    if rate is None or (sniffed.demuxer in {"avi", "flv"} and duration_s > 0):
        rate = Fraction(tally.packets / duration_s).limit_denominator(1001) if duration_s > 0 else Fraction(25)
    aspect = stream.sample_aspect_ratio
    return VideoTrack(
        index=stream.index,
        codec=context.codec.canonical_name,
        width_px=context.width,
        height_px=context.height,
        pixel_format=context.pix_fmt or "",
        frames=tally.packets,
        duration_s=duration_s,
        fps=Fraction(rate),
        rotation_deg=0,
        colour=ColourTags(2, 2, 2, 0),
        start_s=float((tally.start or 0) * stream.time_base),
        square_pixels=not aspect or aspect == 1,
    )


def _audio(stream: Any, tally: _Tally, sniffed: Sniffed) -> AudioTrack:
    context = stream.codec_context
    if tally.all_packets == 0:
        raise UnsupportedMedia("The audio stream has no sound in it.")
    return AudioTrack(
        index=stream.index,
        codec=context.codec.canonical_name,
        rate_hz=context.sample_rate,
        channels=context.channels,
        duration_s=_duration_s(stream, tally, sniffed.demuxer),
        start_s=float((tally.start or 0) * stream.time_base),
    )


def _first_picture(path: Path, sniffed: Sniffed, track: VideoTrack) -> VideoTrack:
    """Decode one picture: what only it tells (rotation, pixel format, colour), and proof that it can be decoded."""
    with opened(path, sniffed.demuxer) as container:
        stream = next(s for s in container.streams if s.index == track.index)
        stream.codec_context.thread_count = 1
        frame = next(container.decode(stream), None)
        if frame is None:
            raise UnsupportedMedia("The video stream has no picture that can be decoded.")
    turned = int(frame.rotation) % 360
    sideways = turned in {90, 270}
    colour = ColourTags(
        int(frame.colorspace),
        int(frame.color_primaries),
        int(frame.color_trc),
        int(frame.color_range),
        _peak_nits(frame),
    )
    return replace(
        track,
        width_px=frame.height if sideways else frame.width,
        height_px=frame.width if sideways else frame.height,
        pixel_format=frame.format.name,
        rotation_deg=turned,
        colour=colour,
    )


def _peak_nits(frame: Any) -> float:
    """The maximum content light level (CTA-861.3), else that of the mastering display (SMPTE ST 2086); 0: neither.

    They come as FFmpeg's own structures: two unsigned numbers, and ten fractions followed by two flags.
    """
    light = frame.side_data.get("CONTENT_LIGHT_LEVEL")
    if light is not None and (peak := struct.unpack_from("=I", bytes(light))[0]) > 0:
        return float(peak)
    display = frame.side_data.get("MASTERING_DISPLAY_METADATA")
    if display is None:
        return 0.0
    *_, top, bottom, _has_primaries, has_luminance = struct.unpack_from("=22i", bytes(display))
    return top / bottom if has_luminance and bottom > 0 else 0.0


def _is_cover(stream: Any) -> bool:
    """Cover art in a sound file is a "video" stream of one picture."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def check_picture_size(path: Path) -> tuple[int, int]:
    """Width and height from a picture's header, before any decoding.

    Raises: UnsupportedMedia, TooLarge (naming the size and the limit).
    """
    with opened_picture(path) as picture:
        return picture.size  # type: ignore[no-any-return]


@contextmanager
def opened_picture(path: Path) -> Iterator[Any]:
    """A picture of Pillow's, of an accepted size and not decoded yet; what goes wrong inside the block is told as here.

    Raises: UnsupportedMedia: no picture, or damaged. TooLarge (naming the size and the limit). OutOfMemory.
    """
    sniffed = sniff(path)
    if sniffed.kind != "image":
        raise UnsupportedMedia(f"The file is {sniffed.media_type}, not a picture.")
    try:
        with _opened_heic(path) if sniffed.media_type == "image/heic" else Image.open(path) as picture:
            _check_size(*picture.size)
            yield picture
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"The picture is too large: at most {MAX_PIXELS} pixels are accepted.") from error
    except UnidentifiedImageError as error:
        raise UnsupportedMedia(f"The picture cannot be read: {reason_of(error)}.") from error
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error) as error:
        raise UnsupportedMedia(f"The picture is damaged: {reason_of(error)}.") from error
    except MemoryError as error:
        raise OutOfMemory("There was not enough memory to decode the picture; send a smaller one.") from error


def _opened_heic(path: Path) -> Image.Image:
    """By libheif, which turns it upright by its own properties and has its Exif say so."""
    if (size_bytes := path.stat().st_size) > MAX_HEIC_BYTES:
        raise TooLarge(f"The HEIC picture has {size_bytes} bytes; at most {MAX_HEIC_BYTES} are accepted.")
    picture: Image.Image = pillow_heif.HeifImageFile(path)  # type: ignore[no-untyped-call]
    if not picture.info["primary"]:  # its place is taken by the next one where it cannot be opened
        picture.close()
        raise UnsupportedMedia("The picture is damaged: its primary picture cannot be opened.")
    return picture


def _check_size(width_px: int, height_px: int) -> None:
    if width_px < 1 or height_px < 1:
        raise UnsupportedMedia(f"The picture is {width_px}x{height_px}.")
    if width_px * height_px > MAX_PIXELS or max(width_px, height_px) > MAX_SIDE_PX:
        raise TooLarge(
            f"The picture is {width_px}x{height_px}; at most {MAX_PIXELS} pixels and {MAX_SIDE_PX} a side are accepted."
        )


def _picture_facts(path: Path) -> MediaFacts:
    with opened_picture(path) as picture:
        width_px, height_px = picture.size
        picture.draft(picture.mode, (max(1, width_px // 8), max(1, height_px // 8)))
        picture.load()
    return MediaFacts(width_px=width_px, height_px=height_px)


def _is_text(media_type: str) -> bool:
    return media_type.startswith("text/") or media_type in {"application/json", "application/x-subrip"}


def _text_facts(path: Path) -> MediaFacts:
    try:
        path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UnsupportedMedia(f"The text file is not UTF-8 at byte {error.start}.") from error
    return MediaFacts()


def reason_of(error: Exception) -> str:
    """The library's words without the local path."""
    text = str(getattr(error, "strerror", None) or error)
    return _QUOTED.sub("", text.replace("\n", " "))[:200].rstrip(". ")

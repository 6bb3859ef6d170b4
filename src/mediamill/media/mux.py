"""A sound track onto a video: copied where it can be, cut to the shorter of the two, exact to the picture."""

from __future__ import annotations

import heapq
import itertools
import math
import struct
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.error

from mediamill.errors import Cancelled, EngineFailed, UnsupportedMedia
from mediamill.media import audio as sound
from mediamill.media import bt709
from mediamill.media.burn import Tool, encode
from mediamill.media.encoders import choose
from mediamill.media.ffmpeg import input_args
from mediamill.media.probe import AudioTrack, Container, VideoTrack, inspect, opened, reason_of

_COPIED_FROM = frozenset({"mov", "matroska", "flv"})
"""Demuxers that give H.264 and AAC the way MP4 wants them, with true timestamps."""
_MP4_OPTIONS = {"movflags": "+faststart", "movie_timescale": "90000", "use_editlist": "1"}
_SAME_INSTANT_S = 0.0005
_TOLERANCE_S = 0.05
_LENGTH_TOLERANCE_S = 0.1


@dataclass(frozen=True)
class Muxed:
    """What was made: lengths in seconds, and whether each stream was copied."""

    duration_s: float
    video_s: float
    audio_s: float
    video_copied: bool
    audio_copied: bool


def copies_video(source: Container) -> bool:
    """H.264, 8-bit 4:2:0, limited range, from a container with true timestamps."""
    track = source.video[0]
    return source.sniffed.demuxer in _COPIED_FROM and track.codec == "h264" and track.pixel_format == "yuv420p"


def copies_audio(source: Container) -> bool:
    """AAC in the form MP4 wants."""
    return source.sniffed.demuxer in _COPIED_FROM and source.audio[0].codec == "aac"


def add_audio(
    video: tuple[Path, Container], audio: tuple[Path, Container], out: Path, *, tool: Tool
) -> Generator[float, None, Muxed]:
    """Write an MP4 with the pictures of one file and the sound of another, as long as the shorter; yields seconds done.

    The video's own sound is left out. Yields only while video has to be encoded.

    Raises: UnsupportedMedia, EngineFailed, Cancelled.
    """
    video_path, pictures = video
    audio_path, sounds = audio
    audio_s = sound.sounding_s(sounds)
    duration_s = min(pictures.video[0].duration_s, audio_s)
    if duration_s <= 0:
        raise UnsupportedMedia("One of the two files has no length.")
    copied = copies_video(pictures)
    if not copied:
        video_path = yield from _encoded(video_path, pictures, out.parent / "encoded.mp4", duration_s, tool)
        pictures = inspect(video_path)
    made = Muxed(duration_s, video[1].video[0].duration_s, audio_s, copied, copies_audio(sounds))
    try:
        _mux((video_path, pictures), (audio_path, sounds), out, made, tool.cancelled or threading.Event())
    except (av.error.FFmpegError, OSError) as error:
        raise EngineFailed(f"The streams cannot be put together: {reason_of(error)}.") from error
    end_presentation(out, duration_s)
    _check(inspect(out), made)
    return made


def _encoded(path: Path, source: Container, out: Path, duration_s: float, tool: Tool) -> Generator[float, None, Path]:
    """The pictures as H.264 in bt709, no longer than needed."""
    track = source.video[0]
    filters = bt709.filters(track, out.parent)
    args = [*input_args(path, source.sniffed), "-map", f"0:{track.index}", "-vf", filters, "-t", f"{duration_s:.6f}"]
    yield from encode(args, out, source, tool=tool, choice=choose(tool.encoder))
    return out


def _mux(
    video: tuple[Path, Container], audio: tuple[Path, Container], out: Path, made: Muxed, cancelled: threading.Event
) -> None:
    """Write both streams, interleaved by time."""
    (video_path, pictures), (audio_path, sounds) = video, audio
    with (
        opened(video_path, pictures.sniffed.demuxer) as picture_file,
        opened(audio_path, sounds.sniffed.demuxer) as sound_file,
        av.open(str(out), "w", format="mp4", options=_MP4_OPTIONS) as target,
    ):
        source = _stream(picture_file, pictures.video[0])
        stream = target.add_stream_from_template(source)
        shown = _pictures(video_path, pictures, picture_file, source, made.duration_s)
        heard, sound_stream = _sounds(sound_file, (audio_path, sounds), target, made)
        tracks = (((p, stream) for p in shown), ((p, sound_stream) for p in heard))
        for packet, track in heapq.merge(*tracks, key=lambda pair: pair[0].dts * pair[0].time_base):
            if cancelled.is_set():
                raise Cancelled
            packet.stream = track
            target.mux_one(packet)


def _stream(container: Any, track: VideoTrack | AudioTrack) -> Any:
    return next(s for s in container.streams if s.index == track.index)


def _pictures(path: Path, source: Container, container: Any, stream: Any, duration_s: float) -> Iterator[Any]:
    """Packets in decoding order up to the last one shown before the end, moved so that the first picture is at 0.

    Some of them may be for later pictures that earlier ones refer to; `end_presentation` hides those.
    """
    shown_at = _picture_times(path, source)
    first = min(shown_at)
    end = math.ceil((duration_s - _SAME_INSTANT_S) / stream.time_base) + first
    count = max(n for n, pts in enumerate(shown_at, 1) if pts < end)
    decoded_at = decoding_times(shown_at)
    for n, packet in enumerate(itertools.islice(_shown(container.demux(stream)), count)):
        packet.pts -= first
        packet.dts = decoded_at[n] - first
        yield packet


def _picture_times(path: Path, source: Container) -> list[int]:
    """When each packet's picture is shown, in decoding order."""
    with opened(path, source.sniffed.demuxer) as container:
        return [packet.pts for packet in _shown(container.demux(_stream(container, source.video[0])))]


def decoding_times(shown_at: Sequence[int]) -> list[int]:
    """Rising decoding times, none after its picture is shown; Matroska stores none, and MP4 wants them.

    They are the display times in order, delayed by as many pictures as the stream reorders.
    """
    ordered = sorted(shown_at)
    rank = {pts: n for n, pts in enumerate(ordered)}
    delay = max(n - rank[pts] for n, pts in enumerate(shown_at))
    step = (ordered[-1] - ordered[0]) // max(1, len(ordered) - 1) or 1
    early = [ordered[0] - step * (delay - n) for n in range(delay)]
    return [*early, *ordered[: len(ordered) - delay]]


def _shown(packets: Iterator[Any]) -> Iterator[Any]:
    return (p for p in packets if p.size and p.pts is not None)


def _sounds(container: Any, audio: tuple[Path, Container], target: Any, made: Muxed) -> tuple[Iterator[Any], Any]:
    """The sound's packets and the stream they go to."""
    path, source = audio
    track = source.audio[0]
    if made.audio_copied:
        template = _stream(container, track)
        return _copied_sound(container, template, track, made.duration_s), target.add_stream_from_template(template)
    stream = target.add_stream("aac", rate=sound.aac_rate_hz(track.rate_hz))
    stream.bit_rate = sound.BITS_PER_S
    stream.codec_context.layout = "mono" if track.channels == 1 else "stereo"
    stream.codec_context.open()
    return sound.aac_packets(path, source, stream, duration_s=made.duration_s), stream


def _copied_sound(container: Any, stream: Any, track: AudioTrack, duration_s: float) -> Iterator[Any]:
    shift = round(max(0.0, track.start_s) / stream.time_base)
    end = duration_s / stream.time_base
    for packet in _shown(container.demux(stream)):
        if packet.pts - shift >= end:
            return
        packet.pts -= shift
        packet.dts = packet.pts
        yield packet


def _check(found: Container, made: Muxed) -> None:
    """Both streams are there, as long as promised and as each other.

    Raises: EngineFailed.
    """
    if len(found.video) != 1 or len(found.audio) != 1:
        raise EngineFailed(f"The result has {len(found.video)} video and {len(found.audio)} audio streams.")
    picture_s, sound_s = found.video[0].duration_s, found.audio[0].duration_s
    one_picture_s = float(1 / found.video[0].fps)
    if abs(picture_s - sound_s) > max(_TOLERANCE_S, one_picture_s) + _SAME_INSTANT_S:
        raise EngineFailed(f"The result's pictures last {picture_s:.3f} s, its sound {sound_s:.3f} s.")
    if abs(max(picture_s, sound_s) - made.duration_s) > max(_LENGTH_TOLERANCE_S, one_picture_s):
        raise EngineFailed(f"The result lasts {max(picture_s, sound_s):.3f} s instead of {made.duration_s:.3f} s.")


def end_presentation(path: Path, duration_s: float) -> None:
    """Let every track of an MP4 of ours end at that time at the latest, by its edit list.

    Stream copies end on block and reference boundaries: up to three pictures and one AAC block too late. An edit list
    hides the rest from every player, to the tick of the movie's timescale, without touching a byte of the streams.
    """
    with path.open("r+b") as file:
        moov_at, moov = _moov(file)
        header = _box(moov, 8, b"mvhd")
        (timescale,) = struct.unpack_from(">I", moov, header + 20)
        end = round(duration_s * timescale)
        longest = 0
        for track in _boxes(moov, 8, b"trak"):
            place = _box(moov, _box(moov, track + 8, b"edts") + 8, b"elst")
            (entries,) = struct.unpack_from(">I", moov, place + 12)
            last = place + 16 + 12 * (entries - 1)
            before = sum(struct.unpack_from(">I", moov, place + 16 + 12 * i)[0] for i in range(entries - 1))
            (length,) = struct.unpack_from(">I", moov, last)
            length = min(length, max(1, end - before))
            struct.pack_into(">I", moov, last, length)
            struct.pack_into(">I", moov, _box(moov, track + 8, b"tkhd") + 28, before + length)
            longest = max(longest, before + length)
        struct.pack_into(">I", moov, header + 24, longest)
        file.seek(moov_at)
        file.write(moov)


def _moov(file: BinaryIO) -> tuple[int, bytearray]:
    at = 0
    while head := file.read(16):
        size, kind = struct.unpack_from(">I4s", head)
        if size == 1:
            (size,) = struct.unpack_from(">Q", head, 8)
        if kind == b"moov":
            file.seek(at)
            return at, bytearray(file.read(size))
        at += size
        file.seek(at)
    raise EngineFailed("The result has no index.")


def _boxes(data: bytearray, at: int, kind: bytes) -> Iterator[int]:
    """Offsets of the boxes of a kind among the siblings that begin at `at`."""
    parent_end = len(data)
    while at + 8 <= parent_end:
        size, found = struct.unpack_from(">I4s", data, at)
        if size < 8:  # noqa: PLR2004 - a box is at least its header
            return
        if found == kind:
            yield at
        at += size


def _box(data: bytearray, at: int, kind: bytes) -> int:
    """The first box of a kind among siblings (or what follows their parent: ours are well formed)."""
    found = next(_boxes(data, at, kind), None)
    if found is None:
        raise EngineFailed(f"The result has no {kind.decode()} box.")
    return found

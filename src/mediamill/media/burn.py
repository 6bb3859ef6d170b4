"""Subtitles into a video: drawn into the picture (burn), or as a track beside it (soft)."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mediamill.errors import EngineFailed, UnsupportedMedia
from mediamill.media import bt709, captions, ffmpeg, fonts
from mediamill.media.captions import Captions
from mediamill.media.encoders import EncoderChoice, Quality, choose, software, stood_in
from mediamill.media.ffmpeg import Limits
from mediamill.media.karaoke import SubtitleStyle
from mediamill.media.probe import Container

AUDIO_IN_MP4 = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus"})
"""Sound that players expect in MP4: copied; anything else becomes AAC."""
VIDEO_IN_MP4 = frozenset({"h264", "hevc", "av1", "mpeg4", "vp9"})
_AAC = ("-c:a", "aac", "-b:a", "192k")
_UNDRAWN = "failed to find any fallback"
_FONTS_CONF = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir prefix="cwd">fonts</dir><cachedir prefix="cwd">cache</cachedir></fontconfig>
"""


@dataclass(frozen=True)
class Tool:
    """How FFmpeg is to be run: settings of the worker, and the event that stops it."""

    ffmpeg: str = ""
    encoder: str = "auto"
    fonts_dir: Path | None = None
    cancelled: threading.Event | None = None
    on_fallback: Callable[[str], None] = lambda _sentence: None
    """Called with a sentence when software stands in for a hardware encoder."""


def burn(
    video: Path,
    source: Container,
    subtitles: Captions,
    out: Path,
    *,
    tool: Tool,
    quality: Quality,
    style: SubtitleStyle | None,
) -> Generator[float, None, None]:
    """Draw the cues into the picture, yielding seconds done; sound is copied, the frame rate kept, the picture upright.

    Raises: UnsupportedMedia: a character that no font has, by name, before anything is drawn. InvalidRequest: a font
        family in the style that is not here. EngineFailed.
    """
    track = source.video[0]
    width_px, height_px = track.width_px // 2 * 2, track.height_px // 2 * 2
    ass = captions.to_ass(subtitles, width_px=width_px, height_px=height_px, style=style)
    wished = style or subtitles.style
    faces, missing = fonts.assign(captions.spoken(ass), tool.fonts_dir, wished.font if wished else None)
    if missing:
        raise UnsupportedMedia(
            f"No font has a glyph for {fonts.named(missing)}. Put one that has into the folder MEDIAMILL_FONTS_DIR."
        )
    folder = out.parent
    _lay_out_fonts(folder, {face.path for face in faces.values()})
    (folder / "captions.ass").write_text(captions.with_fonts(ass, faces), "utf-8")
    drawn = "subtitles=f=captions.ass:fontsdir=fonts" if subtitles.cues else ""
    filters = bt709.filters(track, folder, drawn)
    args = [*ffmpeg.input_args(video, source.sniffed), "-map", "0:v:0", *_sound_args(source), "-vf", filters]
    messages = yield from encode(args, out, source, tool=tool, choice=choose(tool.encoder, quality=quality))
    if _UNDRAWN in messages:
        raise EngineFailed("A character was not drawn: libass found no font for it.", log_tail=messages[-4000:])


def encode(
    args: Sequence[str], out: Path, source: Container, *, tool: Tool, choice: EncoderChoice
) -> Generator[float, None, str]:
    """Run FFmpeg over one video to an MP4, with software where the hardware encoder does not open."""
    steady = source.sniffed.demuxer == "avi"  # it stores no times, so those of reordered pictures are made up
    tail = ["-fps_mode", "cfr" if steady else "vfr", "-movflags", "+faststart", "-f", "mp4", out.name]
    limits = limits_for(source, hardware=choice.hardware)
    timescale = ["-enc_time_base:v", "demux"] if source.sniffed.demuxer == "mov" else []
    try:
        return (
            yield from ffmpeg.run(
                [*args, *ffmpeg.encoder_args(choice), *timescale, *tail],
                folder=out.parent,
                setting=tool.ffmpeg,
                limits=limits,
                cancelled=tool.cancelled,
            )
        )
    except EngineFailed:
        if not choice.hardware:
            raise
    calm = software("h264", "balanced")
    tool.on_fallback(stood_in(choice, calm))
    return (yield from encode(args, out, source, tool=replace(tool, encoder="libx264"), choice=calm))


def soft(video: Path, source: Container, subtitles: Captions, out: Path, *, tool: Tool) -> Generator[float, None, None]:
    """Put the cues beside the picture as a text track that players show on request; nothing is encoded again.

    Raises: UnsupportedMedia: the video's codec does not belong into MP4. EngineFailed.
    """
    track = source.video[0]
    if track.codec not in VIDEO_IN_MP4:
        raise UnsupportedMedia(
            f"A text track needs a video that fits into MP4 ({', '.join(sorted(VIDEO_IN_MP4))}), not {track.codec}; "
            "use mode 'burn'."
        )
    (out.parent / "captions.srt").write_text(captions.to_srt(subtitles.cues), "utf-8")
    text = [*ffmpeg.text_input_args("captions.srt", "srt")] if subtitles.cues else []
    args = [
        *ffmpeg.input_args(video, source.sniffed),
        *text,
        *("-map", "0:v:0", "-c:v", "copy"),
        *_sound_args(source),
        *(("-map", "1:s:0", "-c:s", "mov_text", "-disposition:s:0", "default") if text else ()),
        *("-movflags", "+faststart", "-f", "mp4", out.name),
    ]
    yield from ffmpeg.run(
        args, folder=out.parent, setting=tool.ffmpeg, limits=limits_for(source), cancelled=tool.cancelled
    )


def _sound_args(source: Container) -> list[str]:
    if not source.audio:
        return []
    copied = source.audio[0].codec in AUDIO_IN_MP4
    return ["-map", f"0:{source.audio[0].index}", *(("-c:a", "copy") if copied else _AAC)]


def limits_for(source: Container, *, hardware: bool = False) -> Limits:
    """Time and output that a run over this file may take: generous, and bounded by what the file is."""
    track = source.video[0]
    megapixels = track.frames * track.width_px * track.height_px / 1e6
    usual = Limits()
    return replace(
        usual,
        wall_s=max(600.0, megapixels * 0.5),
        output_bytes=max(1024**3, min(usual.output_bytes, int(megapixels * 1e6))),
        memory_bytes=0 if hardware else usual.memory_bytes,
    )


def _lay_out_fonts(folder: Path, paths: set[Path]) -> None:
    """The job's own fonts folder, and a fontconfig file that knows of no other: nothing of the machine is scanned."""
    own = folder / "fonts"
    own.mkdir(exist_ok=True)
    for number, path in enumerate(sorted(paths)):
        place = own / f"{number}{path.suffix.lower()}"
        try:
            place.symlink_to(path.resolve())
        except OSError:
            shutil.copyfile(path, place)
    (folder / "fonts.conf").write_text(_FONTS_CONF, "utf-8")

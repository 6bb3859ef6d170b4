"""`caption`: subtitles into a video."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mediamill.catalog import (
    Entry,
    KeyFolder,
    Request,
    SubtitlesUrl,
    VideoName,
    VideoUrl,
    folder_prefix,
    folder_warnings,
    register,
)
from mediamill.media.karaoke import SubtitleStyle


class CaptionRequest(Request):
    """What can be asked of `caption`."""

    url_video: VideoUrl = Field(description="The video: MP4, MOV, Matroska, WebM, AVI, MPEG or FLV.")
    url_srt: SubtitlesUrl = Field(
        description="SRT in any common encoding, or an ASS file, of which text and word times are used; at most 4 MiB."
    )
    path: KeyFolder | None = Field(
        default=None, description="Folder (key prefix) for the result; unset: outputs/{job id}/."
    )
    output_filename: VideoName = Field(default="captioned.mp4", description="Name of the result.")
    mode: Literal["burn", "soft"] = Field(
        default="burn", description="burn: drawn into the picture. soft: a text track beside it, nothing re-encoded."
    )
    quality: Literal["fast", "balanced", "best"] = Field(
        default="balanced", description="Of the encoder, when the text is drawn into the picture."
    )
    style: SubtitleStyle | None = Field(
        default=None, description="Look of burned-in text: a style's name or an object; unset: plain subtitles."
    )


register(
    Entry(
        name="caption",
        summary="Subtitles drawn into a video, or beside it as a track",
        request=CaptionRequest,
        engine="ffmpeg",
        output_kind="video",
        run_timeout_s=4 * 3600.0,
        key_prefix=folder_prefix,
        warn=folder_warnings,
        examples=(
            {
                "url_video": "https://example.com/video.mp4",
                "url_srt": "https://example.com/subtitles.srt",
                "path": "Project Name/Video Title/videos/",
                "output_filename": "video_legendado.mp4",
            },
        ),
    )
)

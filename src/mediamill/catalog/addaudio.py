"""`addaudio`: a sound track onto a video."""

from __future__ import annotations

from pydantic import Field

from mediamill.catalog import (
    AudioUrl,
    Entry,
    KeyFolder,
    Request,
    VideoName,
    VideoUrl,
    folder_prefix,
    folder_warnings,
    register,
)


class AddAudioRequest(Request):
    """What can be asked of `addaudio`."""

    url_video: VideoUrl = Field(description="The pictures; a sound of its own is replaced.")
    url_audio: AudioUrl = Field(description="The sound: MP3, AAC, M4A, WAV, FLAC, Ogg, AIFF, or a video with sound.")
    path: KeyFolder | None = Field(
        default=None, description="Folder (key prefix) for the result; unset: outputs/{job id}/."
    )
    output_filename: VideoName = Field(
        default="with_audio.mp4", description="Name of the result, which is as long as the shorter of the two."
    )


register(
    Entry(
        name="addaudio",
        summary="A sound track onto a video, as long as the shorter of the two",
        request=AddAudioRequest,
        engine="ffmpeg",
        output_kind="video",
        run_timeout_s=4 * 3600.0,
        key_prefix=folder_prefix,
        warn=folder_warnings,
        examples=(
            {
                "url_video": "https://example.com/video.mp4",
                "url_audio": "https://example.com/audio.mp3",
                "path": "Project Name/Video Title/videos/",
                "output_filename": "video_com_audio.mp4",
            },
        ),
    )
)

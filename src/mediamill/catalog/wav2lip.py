"""`wav2lip`: lip-sync of a video. Documented; its jobs are answered with NotImplementedYet unless they go elsewhere."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mediamill.catalog import AudioUrl, Entry, Request, VideoUrl, place_of, register
from mediamill.config import Settings
from mediamill.errors import NotImplementedYet


class Wav2LipRequest(Request):
    """One video whose lips follow the audio. Pads are pixels around the face."""

    video_url: VideoUrl
    audio_url: AudioUrl
    pad_top: int = Field(0, ge=0, le=50)
    pad_bottom: int = Field(10, ge=0, le=50)
    pad_left: int = Field(0, ge=0, le=50)
    pad_right: int = Field(0, ge=0, le=50)


def _allow(_request: Any, settings: Settings) -> None:
    if place_of(ENTRY, settings) == "local":
        raise NotImplementedYet(
            "wav2lip does not exist here yet; RUNPOD_WAV2LIP_ENDPOINT_ID and RUNPOD_API_KEY send it to RunPod."
        )


ENTRY = register(
    Entry(
        name="wav2lip",
        summary="Lip-sync of a video to speech with Wav2Lip (not there yet).",
        request=Wav2LipRequest,
        engine="diffusers",
        output_kind="video",
        pool="gpu",
        allow=_allow,
    )
)

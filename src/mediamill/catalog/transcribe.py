"""`transcribe`: speech in any audio or video file to subtitles, karaoke subtitles and a word list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from mediamill.catalog import Entry, KeyFolder, Request, Source, folder_prefix, folder_warnings, register
from mediamill.media.karaoke import SubtitleStyle

WhisperModelName = Literal["tiny", "base", "small", "medium", "large-v3", "turbo"]

REPOS: Mapping[str, str] = {
    "tiny": "Systran/faster-whisper-tiny",
    "base": "Systran/faster-whisper-base",
    "small": "Systran/faster-whisper-small",
    "medium": "Systran/faster-whisper-medium",
    "large-v3": "Systran/faster-whisper-large-v3",
    "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
}
"""Where the weights of each name come from unless a setting says otherwise."""

_CODES = (
    "af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr "
    "ht hu hy id is it ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc "
    "pa pl ps pt ro ru sa sd si sk sl sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo zh "
    "yue"
)
LANGUAGES: frozenset[str] = frozenset(_CODES.split())
"""What the models know; `yue` only large-v3 and turbo."""

MAX_MEDIA_BYTES = 4 * 1024**3


class TranscribeRequest(Request):
    """What can be asked of `transcribe`."""

    url_audio: Annotated[str, Source("any", max_bytes=MAX_MEDIA_BYTES)] = Field(
        description="Audio or video file with speech; any container, at most 4 GiB and 12 hours."
    )
    path: KeyFolder | None = Field(
        default=None, description="Folder (key prefix) for the results; unset: outputs/{job id}/."
    )
    model: WhisperModelName = Field(default="turbo", description="Size of the Whisper model.")
    language: str | None = Field(
        default=None, description="Language spoken, as ISO 639-1 code (pt, en, pt-BR); unset: detected."
    )
    task: Literal["transcribe", "translate"] = Field(
        default="transcribe", description="transcribe: text in the language spoken; translate: in English."
    )
    vad: bool = Field(default=True, description="Leave out what is not speech; prevents invented text in silence.")
    word_timestamps: bool = Field(default=True, description="Time every word; without it words.json is empty.")
    decoding: Literal["sequential", "parallel"] = Field(
        default="sequential",
        description="parallel: the recording is cut at pauses and the parts are decoded on all cores at once; faster, "
        "and the text of one part does not inform the next.",
    )
    beam_size: int = Field(default=5, ge=1, le=10, description="Hypotheses kept while decoding; 1 is fastest.")
    style: SubtitleStyle = Field(
        default_factory=SubtitleStyle, description="Look of karaoke.ass: a style's name or an object."
    )

    @field_validator("language", mode="before")
    @classmethod
    def _language_code(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        code = value.strip().lower().replace("_", "-").split("-")[0]
        if code in {"", "auto"}:
            return None
        if code not in LANGUAGES:
            raise ValueError(
                f"must be one of the language codes {', '.join(sorted(LANGUAGES))}, or absent to detect it"
            )
        return code


def _warnings(request: TranscribeRequest) -> Sequence[str]:
    untimed = "word_timestamps is false: words.json is empty and karaoke.ass is timed by line."
    return (*folder_warnings(request), *(() if request.word_timestamps else (untimed,)))


register(
    Entry(
        name="transcribe",
        summary="Speech to segments.srt, karaoke.ass and words.json",
        request=TranscribeRequest,
        engine="whisper",
        output_kind="json",
        run_timeout_s=6 * 3600.0,
        key_prefix=folder_prefix,
        warn=_warnings,
        examples=(
            {"url_audio": "https://example.com/talk.mp3", "path": "Project/Video/captions/", "language": "pt"},
            {"url_audio": "https://example.com/talk.mp4", "model": "small", "style": "highlight"},
        ),
        licence="MIT (Whisper weights)",
    )
)

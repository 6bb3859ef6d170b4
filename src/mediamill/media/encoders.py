"""Which video encoder to use: chosen by trying it, not by its name in a list.

FFmpeg lists h264_nvenc on machines without any GPU; the only honest test is to encode a picture with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import numpy as np

Quality = Literal["fast", "balanced", "best"]
Codec = Literal["h264", "av1"]

_TRIAL_SIDE_PX = 256
"""NVENC refuses much smaller pictures."""


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder with its options, as FFmpeg names both. `threads` is fixed: bytes differ with their number."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    reuses_frames: bool = False
    """It has copied a picture before encode() returns, so that its buffer may be filled again at once."""

    @property
    def hardware(self) -> bool:
        """Whether it may fail to open for want of a session, memory or driver."""
        return self.name.endswith("_nvenc")


_STEADY = (
    "scenecut=0:b-adapt=0:b-pyramid=normal:bframes=5:direct=temporal:weightp=0:partitions=none:chroma-me=0:mbtree=0:"
    "ipratio=2:pbratio=1.6:aq-mode=2"
)
"""For a slow zoom of a still, whose every picture follows from its neighbours: five B-pictures between references,
decided beforehand, and none of the looking ahead that is a third of x264's work at these presets. In its place stand
fixed steps of quality: I-pictures 6 finer, because the whole clip is predicted from them, B-pictures 4 coarser."""


_TREE = "mbtree=1:rc-lookahead=10"
"""With the one costly thing worth its time, superfast is as good as veryfast at the same size, for a quarter less CPU."""


def _x264(preset: str, crf: str, params: str = "", *, threads: int = 1) -> EncoderChoice:
    options = {"preset": preset, "crf": crf} | ({"x264-params": params} if params else {})
    return EncoderChoice("libx264", options, threads, reuses_frames=True)


STILL_X264: Mapping[Quality, EncoderChoice] = {
    "fast": _x264("superfast", "27", f"{_STEADY}:subme=0"),
    "balanced": _x264("superfast", "25.5", _STEADY),
    "best": _x264("veryfast", "21"),
}
VIDEO_X264: Mapping[Quality, EncoderChoice] = {
    "fast": _x264("superfast", "24", _TREE, threads=4),
    "balanced": _x264("superfast", "22", _TREE, threads=4),
    "best": _x264("medium", "18", threads=4),
}
"""For video of any kind; `STILL_X264` is tuned to the smooth zoom of a still and does badly elsewhere."""

_NVENC: Mapping[Quality, tuple[str, str]] = {"fast": ("p2", "25"), "balanced": ("p4", "23"), "best": ("p6", "20")}
_SVT: Mapping[Quality, tuple[str, str]] = {"fast": ("10", "38"), "balanced": ("8", "35"), "best": ("6", "30")}


def nvenc(codec: Codec, quality: Quality) -> EncoderChoice:
    """NVENC at constant quality; CQ 23 VBR, preset p4 is what the documented service used."""
    preset, cq = _NVENC[quality]
    return EncoderChoice(f"{codec}_nvenc", {"preset": preset, "rc": "vbr", "cq": cq, "b": "0"})


def software(codec: Codec, quality: Quality, *, still: bool = False) -> EncoderChoice:
    """The encoder that works on every machine."""
    if codec == "av1":
        preset, crf = _SVT[quality]
        return EncoderChoice("libsvtav1", {"preset": preset, "crf": crf, "svtav1-params": "lp=1"})
    return (STILL_X264 if still else VIDEO_X264)[quality]


def choose(setting: str, *, codec: Codec = "h264", quality: Quality = "balanced", still: bool = False) -> EncoderChoice:
    """The encoder for a setting: `auto` (hardware when a trial works), `libx264`, or `h264_nvenc`."""
    if setting == "h264_nvenc" or (setting == "auto" and works(f"{codec}_nvenc")):
        return nvenc(codec, quality)
    return software(codec, quality, still=still)


def stood_in(failed: EncoderChoice, used: EncoderChoice) -> str:
    """The warning of a job whose hardware encoder did not do it."""
    return f"The encoder {failed.name} did not work on this worker; {used.name} was used instead."


@cache
def works(name: str) -> bool:
    """Whether this encoder can encode a picture here; tried once for each process."""
    try:
        with tempfile.TemporaryDirectory() as folder, av.open(str(Path(folder) / "trial.mp4"), "w") as container:
            stream: Any = container.add_stream(name, rate=24)
            stream.width = stream.height = _TRIAL_SIDE_PX
            stream.pix_fmt = "yuv420p"
            picture = np.full((_TRIAL_SIDE_PX, _TRIAL_SIDE_PX, 3), 90, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            packets = [*stream.encode(frame), *stream.encode(None)]
            container.mux(packets)
            return bool(packets)
    except (av.error.FFmpegError, OSError, ValueError, RuntimeError):
        return False

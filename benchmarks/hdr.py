"""What tone mapping costs: 1080p HDR to bt709 by ours, by the matrix alone, and by FFmpeg's own tone mapping.

`python benchmarks/hdr.py [--frames 120] [--rounds 3]`. CPU milliseconds a picture, medians of interleaved rounds, with
and without the encoder; and what reference white (203 cd/m2) and an orange as bright as HLG gets become in RGB.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import tempfile
from pathlib import Path

import av
import numpy as np

from mediamill.media import bt709
from mediamill.media.encoders import software
from mediamill.media.ffmpeg import binary, encoder_args
from mediamill.media.probe import inspect

_FFMPEG = [str(binary()), "-nostdin", "-y", "-loglevel", "error"]
_HLG_TAGS = "setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc=arib-std-b67:range=tv"
_WHITE, _ORANGE = (0.75, 0.75, 0.75), (1.0, 0.8, 0.4)
"""HLG code values: reference white of BT.2408, and a bright saturated thing."""


def run(*args: str | Path) -> float:
    """CPU seconds that FFmpeg took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*_FFMPEG, *map(str, args)], check=True, stdin=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_input(path: Path, frames: int) -> None:
    """Panning texture over all of the colour cube, as 10-bit HLG."""
    rng = np.random.default_rng(1)
    texture = rng.integers(0, 65_536, (1080 // 8, 300 + frames, 3), np.uint16).repeat(8, axis=0).repeat(8, axis=1)
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        for n in range(frames):
            file.write(np.ascontiguousarray(texture[:, 2 * n : 2 * n + 1920]).tobytes())
    shape = ("-f", "rawvideo", "-pix_fmt", "rgb48le", "-s", "1920x1080", "-r", "24", "-i", raw)
    convert = f"scale=out_color_matrix=bt2020:out_range=tv,format=yuv420p10le,{_HLG_TAGS}"
    run(*shape, "-vf", convert, "-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none", path)
    raw.unlink()


def shown(filters: str, folder: Path) -> list[list[int]]:
    """The RGB that reference white and the orange become."""
    pixels = np.zeros((64, 256, 3), np.uint16)
    pixels[:, :128], pixels[:, 128:] = np.array(_WHITE) * 65_535, np.array(_ORANGE) * 65_535
    (folder / "p.raw").write_bytes(pixels.tobytes())
    shape = ("-f", "rawvideo", "-pix_fmt", "rgb48le", "-s", "256x64", "-i", folder / "p.raw")
    whole = f"scale=out_color_matrix=bt2020:out_range=tv,format=yuv420p10le,{_HLG_TAGS},{filters}"
    run(*shape, "-vf", whole, "-c:v", "ffv1", folder / "p.mkv")
    with av.open(str(folder / "p.mkv")) as container:
        rgb = next(container.decode(video=0)).reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
    return [rgb[32, 64].tolist(), rgb[32, 192].tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mediamill-bench-") as name:
        folder = Path(name)
        clip = folder / "in.mp4"
        make_input(clip, args.frames)
        ours = bt709.filters(inspect(clip).video[0], folder).replace("file=", f"file={folder}/")
        exact = "flags=bicubic+accurate_rnd"
        matrix = f"scale=in_color_matrix=bt2020:in_range=tv:out_color_matrix=bt709:out_range=tv:{exact},format=yuv420p"
        filters = "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,tonemap=hable,zscale=t=bt709:m=bt709:r=tv"
        candidates = {"decoding alone": "null", "matrix alone": matrix, "ours": ours}
        candidates["zscale and tonemap"] = f"{filters},format=yuv420p"
        spent: dict[tuple[str, bool], list[float]] = {}
        for _ in range(args.rounds):
            for title, chain in candidates.items():
                for encoded in (False, True) if title != "decoding alone" else (False,):
                    encoder = encoder_args(software("h264", "balanced")) if encoded else ["-c:v", "wrapped_avframe"]
                    took = run("-i", clip, "-vf", chain, *encoder, "-f", "null", "-")
                    spent.setdefault((title, encoded), []).append(took / args.frames * 1000)
        print(
            f"{args.frames} pictures of 1920x1080, 10-bit HLG; CPU ms a picture\n{'':22}{'alone':>8}{'with x264':>12}{'ratio':>8}"
        )
        floor = statistics.median(spent["matrix alone", True])
        for title, chain in candidates.items():
            alone = statistics.median(spent[title, False])
            if title == "decoding alone":
                print(f"{title:22}{alone:8.1f}")
                continue
            whole = statistics.median(spent[title, True])
            white, orange = shown(chain, folder)
            print(f"{title:22}{alone:8.1f}{whole:12.1f}{whole / floor:8.2f}  white {white} orange {orange}")


if __name__ == "__main__":
    main()

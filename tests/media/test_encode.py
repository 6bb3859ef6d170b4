import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from mediamill.errors import EngineFailed, UnsupportedMedia
from mediamill.media.encode import Sound, VideoWriter, frames_to_video
from mediamill.media.encoders import EncoderChoice, choose, software, works
from mediamill.media.probe import inspect
from tests.media_samples import pictures_of, quarters, sine, sound_of, top_boxes

_BARS = [
    (204, 204, 204),
    (204, 204, 0),
    (0, 204, 204),
    (0, 204, 0),
    (204, 0, 204),
    (204, 0, 0),
    (0, 0, 204),
    (16, 16, 16),
]


def test_saturated_colours_come_back_as_a_player_shows_them(tmp_path):
    bars = np.repeat(np.repeat(np.array([_BARS], np.uint8), 64, axis=0), 32, axis=1)
    facts = frames_to_video([bars] * 5, tmp_path / "a.mp4", fps=25)
    assert (facts.width_px, facts.height_px, facts.frames, facts.fps) == (256, 64, 5, 25)
    tags = inspect(tmp_path / "a.mp4").video[0].colour
    assert (tags.matrix, tags.primaries, tags.transfer, tags.range) == (1, 1, 1, 1)
    shown = pictures_of(tmp_path / "a.mp4")[2]
    for i, colour in enumerate(_BARS):
        assert np.abs(shown[10:54, i * 32 + 8 : i * 32 + 24].astype(int) - colour).max() <= 4, colour


def test_pictures_keep_their_order_and_the_index_comes_first(tmp_path):
    shades = [np.full((32, 48, 3), 20 + 9 * n, np.uint8) for n in range(24)]
    facts = frames_to_video(iter(shades), tmp_path / "a.mp4", fps=Fraction(30000, 1001))
    assert facts.frames == 24
    assert facts.duration_s == pytest.approx(24 * 1001 / 30000, abs=1e-4)
    found = [round(float(p.mean())) for p in pictures_of(tmp_path / "a.mp4")]
    assert all(abs(a - b) <= 2 for a, b in zip(found, range(20, 236, 9), strict=True))
    boxes = top_boxes(tmp_path / "a.mp4")
    assert boxes.index("moov") < boxes.index("mdat")


@pytest.mark.parametrize(
    ("sound", "loud_until_s"),
    [
        (sine(3.0, rate_hz=48_000), 1.0),
        (sine(0.4, rate_hz=44_100), 0.4),
        (Sound((sine(1.0).samples * 32_767).astype(np.int16), 44_100), 1.0),
        (Sound(np.stack([sine(1.0).samples] * 2, axis=1), 44_100), 1.0),
    ],
    ids=["longer", "shorter", "int16", "stereo"],
)
def test_sound_is_cut_or_padded_to_the_pictures(tmp_path, sound, loud_until_s):
    facts = frames_to_video([quarters(64, 36)] * 24, tmp_path / "a.mp4", fps=24, sound=sound)
    assert facts.audio_codec == "aac"
    track = inspect(tmp_path / "a.mp4").audio[0]
    assert track.duration_s == pytest.approx(1.0, abs=0.03)
    samples, rate_hz = sound_of(tmp_path / "a.mp4")
    before = samples[rate_hz // 20 : int((loud_until_s - 0.05) * rate_hz)]
    assert np.sqrt(np.mean(before**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
    assert np.abs(samples[int((loud_until_s + 0.05) * rate_hz) :]).max(initial=0) < 0.02


def test_the_same_pictures_give_the_same_bytes(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        frames_to_video([quarters(64, 36)] * 8, tmp_path / name, fps=24)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(
    ("pictures", "says"),
    [
        ([], "no pictures"),
        ([quarters(63, 36)], "63x36.*even"),
        ([quarters(64, 36), quarters(64, 38)], "Picture 2"),
    ],
)
def test_pictures_that_make_no_video_are_refused(tmp_path, pictures, says):
    with pytest.raises(UnsupportedMedia, match=says):
        frames_to_video(pictures, tmp_path / "a.mp4", fps=24)


def test_an_encoder_is_known_by_trying_it():
    assert works("libx264")
    assert works("libsvtav1")
    assert not works("no_such_encoder")


def test_the_setting_decides_and_auto_falls_back_to_software():
    assert choose("libx264").name == "libx264"
    assert choose("h264_nvenc").name == "h264_nvenc"
    assert choose("auto").name == ("h264_nvenc" if works("h264_nvenc") else "libx264")
    assert choose("libx264", codec="av1").name == "libsvtav1"
    stills = [software("h264", quality, still=True) for quality in ("fast", "balanced", "best")]
    assert [choice.threads for choice in stills] == [1, 1, 1], "clips run side by side, a core each"
    assert len({str(choice.options) for choice in stills}) == 3


def test_an_encoder_that_does_not_start_says_so(tmp_path):
    broken = EncoderChoice("libx264", {"preset": "no-such-preset"})
    with pytest.raises(EngineFailed, match="libx264"):
        VideoWriter(tmp_path / "a.mp4", width_px=64, height_px=36, fps=Fraction(24), encoder=broken)


def test_a_disk_that_fills_up_at_the_very_end_is_the_encoders_failure(tmp_path):
    """With a limit on file sizes, in a child process: the index is written when the file is closed."""
    program = (
        "import pathlib, resource, signal, sys\n"
        "import numpy as np\n"
        "from mediamill.errors import EngineFailed\n"
        "from mediamill.media.encode import frames_to_video\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
        "try:\n"
        "    frames_to_video([np.zeros((64, 64, 3), np.uint8)] * 2, pathlib.Path(sys.argv[1]), fps=24)\n"
        "except EngineFailed as error:\n"
        "    print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.mp4")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("The video cannot be finished: File too large"), ran.stdout + ran.stderr

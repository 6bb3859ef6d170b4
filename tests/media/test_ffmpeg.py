import os
import stat
import threading
from dataclasses import replace

import psutil
import pytest

from mediamill.errors import Cancelled, DeadlineExceeded, EngineFailed, Misconfigured
from mediamill.media import ffmpeg
from mediamill.media.ffmpeg import Limits
from mediamill.media.sniff import Sniffed
from tests.media_samples import video
from tests.service import alive, eventually

_ENDLESS = ["-re", "-f", "lavfi", "-i", "testsrc2=s=64x36:r=10", "-f", "null", "-"]
_MOV = Sniffed("video/mp4", "video", "mov")


def left_over():
    return [p for p in psutil.Process().children(recursive=True) if "ffmpeg" in p.name()]


def finished(steps):
    """The seconds yielded, and what the generator returned."""
    made = []
    while True:
        try:
            made.append(next(steps))
        except StopIteration as end:
            return made, end.value


def test_it_reports_seconds_made_and_its_messages(tmp_path):
    clip = video(tmp_path / "a.mp4", frames=48)
    steps = ffmpeg.run([*ffmpeg.input_args(clip, _MOV), "-c", "copy", "-f", "mp4", "b.mp4"], folder=tmp_path)
    made, messages = finished(steps)
    assert made == sorted(made)
    assert made[-1] == pytest.approx(2.0, abs=0.2)
    assert "Stream #0:0" in messages
    assert (tmp_path / "b.mp4").stat().st_size > 1000
    assert left_over() == []


def test_the_last_report_is_not_lost_when_it_ends_while_nobody_looks(tmp_path):
    one_second = ["-re", "-f", "lavfi", "-i", "testsrc2=s=64x36:r=10", "-t", "1", "-f", "null", "-"]
    steps = ffmpeg.run(one_second, folder=tmp_path)
    first = next(steps)
    eventually(lambda: not alive(left_over()))
    made, _ = finished(steps)
    assert [first, *made] == sorted({first, *made})
    assert [first, *made][-1] == pytest.approx(1.0, abs=0.11)


def test_a_cancel_kills_it(tmp_path):
    cancelled = threading.Event()
    steps = ffmpeg.run(_ENDLESS, folder=tmp_path, cancelled=cancelled)
    next(steps)
    assert len(left_over()) == 1
    assert os.getpgid(left_over()[0].pid) == left_over()[0].pid
    cancelled.set()
    with pytest.raises(Cancelled):
        finished(steps)
    assert left_over() == []


def test_closing_the_generator_kills_it(tmp_path):
    steps = ffmpeg.run(_ENDLESS, folder=tmp_path)
    next(steps)
    steps.close()
    assert left_over() == []


@pytest.mark.parametrize(
    ("args", "limits", "error", "says"),
    [
        (_ENDLESS, Limits(wall_s=0.5), DeadlineExceeded, "longer than 0.5 s"),
        (
            ["-f", "lavfi", "-i", "testsrc2=s=64x36", "-vf", "realtime=speed=0.0001", "-f", "null", "-"],
            Limits(stall_s=0.5),
            DeadlineExceeded,
            "no progress",
        ),
        (
            ["-f", "lavfi", "-i", "testsrc2=s=640x360", "-t", "60", "-f", "rawvideo", "big"],
            Limits(output_bytes=100_000),
            EngineFailed,
            "larger",
        ),
        (["-f", "lavfi", "-i", "no_such_source", "-f", "null", "-"], Limits(), EngineFailed, "log"),
    ],
    ids=["wall", "stall", "size", "error"],
)
def test_limits_end_it(tmp_path, args, limits, error, says):
    with pytest.raises(error, match=says) as caught:
        finished(ffmpeg.run(args, folder=tmp_path, limits=limits))
    assert left_over() == []
    if isinstance(caught.value, EngineFailed):
        assert 0 < len(caught.value.log_tail.splitlines()) <= 40
        assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.mp4", "#EXTM3U\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n"),
        ("concat.mp4", "ffconcat version 1.0\nfile {secret}\n"),
    ],
)
@pytest.mark.parametrize("demuxer", ["mov", "hls", "concat"])
def test_a_playlist_never_opens_another_file(tmp_path, name, content, demuxer):
    secret = video(tmp_path / "secret.mp4")
    (tmp_path / name).write_text(content.format(secret=secret))
    args = [*ffmpeg.input_args(tmp_path / name, replace(_MOV, demuxer=demuxer)), "-f", "null", "-"]
    with pytest.raises(EngineFailed) as caught:
        finished(ffmpeg.run(args, folder=tmp_path))
    assert "secret.mp4': Invalid" not in caught.value.log_tail
    assert "Video: h264" not in caught.value.log_tail


def test_its_environment_holds_no_secrets_and_its_home_is_the_job(tmp_path, monkeypatch):
    monkeypatch.setenv("S3_SECRET_KEY", "hush")
    shown = tmp_path / "fake-ffmpeg"
    shown.write_text("#!/bin/sh\nenv >&2\nulimit -c >&2\npwd >&2\n")
    shown.chmod(shown.stat().st_mode | stat.S_IXUSR)
    job = tmp_path / "job"
    job.mkdir()
    _, messages = finished(ffmpeg.run([], folder=job, setting=str(shown)))
    assert "hush" not in messages
    assert f"HOME={job}" in messages
    assert messages.splitlines()[-2:] == ["0", str(job)]


def test_a_hostile_log_is_bounded(tmp_path):
    noisy = tmp_path / "noisy"
    noisy.write_text("#!/bin/sh\nhead -c 3000000 /dev/zero | tr '\\0' x >&2\nexit 3\n")
    noisy.chmod(0o700)
    with pytest.raises(EngineFailed) as caught:
        finished(ffmpeg.run([], folder=tmp_path, setting=noisy))
    assert len(caught.value.log_tail) < 50_000


def test_a_configured_binary_must_be_one(tmp_path):
    (tmp_path / "plain").write_text("x")
    for wrong in (tmp_path / "plain", tmp_path / "missing"):
        with pytest.raises(Misconfigured, match="MEDIAMILL_FFMPEG"):
            ffmpeg.binary(wrong)
    assert ffmpeg.binary(None) == ffmpeg.binary("")

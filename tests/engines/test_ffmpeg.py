"""The engine as the child process sees it: work in, events out."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from mediamill.catalog import input_refs
from mediamill.catalog import load as catalog
from mediamill.engines import ffmpeg
from mediamill.errors import Cancelled, EngineFailed, InputUnreachable, InvalidRequest, TooLarge, UnsupportedMedia
from mediamill.media.encoders import works
from mediamill.media.probe import inspect, probe
from mediamill.model import EngineContext, InputFile, JobError, OutputData, OutputFile, Phase, Progress, Work
from tests.hdr_samples import hdr_video, hlg, light_of_sdr, patches_of
from tests.media_samples import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    packets_of,
    pictures_of,
    png_bomb,
    sine,
    still,
    top_boxes,
    video,
    wav,
)
from tests.media_samples import ffmpeg as run_ffmpeg


def perform(
    folder: Path, model: str, params: dict, files: dict[str, Path], *, errors=None, settings=None, cancelled=None
):
    """Every event of one piece of work."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    request = catalog()[model].request.model_validate(params)
    inputs = {
        ref.field: InputFile(ref.field, files[ref.field], "x/x", files[ref.field].stat().st_size, "")
        for ref in input_refs(request)
        if ref.field in files
    }
    work = Work("job", 1, model, request.model_dump(mode="json"), inputs, errors or {})
    ctx = EngineContext(scratch, cancelled or threading.Event(), {"ENCODER": "libx264", **(settings or {})})
    return list(ffmpeg.create({}).run(work, ctx))


def files_of(events):
    return {e.name: e.path for e in events if isinstance(e, OutputFile)}


def output_of(events):
    return {k: v for e in events if isinstance(e, OutputData) for k, v in e.values.items()}


def images(*durations):
    return {"images": [{"id": f"s{i}", "image_url": "http://x/", "duracao": d} for i, d in enumerate(durations)]}


def test_stills_become_clips_that_zoom_into_the_centre(tmp_path):
    files = {
        "images.0.image_url": still(tmp_path / "a.jpg", quality=95),
        "images.1.image_url": still(tmp_path / "b.png", 300, 300),
    }
    events = perform(tmp_path, "img2vid", images(0.5, 0.25), files)
    made = files_of(events)
    assert set(made) == {"video_1.mp4", "video_2.mp4"}
    assert output_of(events) == {
        "videos": [{"id": "s0", "filename": "video_1.mp4"}, {"id": "s1", "filename": "video_2.mp4"}],
        "errors": [],
        "total": 2,
        "processed": 2,
        "warnings": [],
    }
    for name, frames in (("video_1.mp4", 12), ("video_2.mp4", 6)):
        facts = probe(made[name], media_type="video/mp4")
        assert (facts.width_px, facts.height_px, facts.fps, facts.frames) == (1920, 1080, 24, frames)
        assert facts.duration_s == pytest.approx(frames / 24)
        tags = inspect(made[name]).video[0].colour
        assert (tags.matrix, tags.primaries, tags.transfer, tags.range) == (1, 1, 1, 1)
        assert top_boxes(made[name]).index("moov") < top_boxes(made[name]).index("mdat")
    pictures = pictures_of(made["video_1.mp4"])
    for picture in (pictures[0], pictures[-1]):
        for (y, x), colour in (((270, 480), RED), ((270, 1440), GREEN), ((810, 480), BLUE), ((810, 1440), WHITE)):
            assert np.abs(picture[y - 40 : y + 40, x - 40 : x + 40].mean(axis=(0, 1)) - colour).max() < 6
    edge = [int(np.argmax(p[200, :, 1] > 95)) for p in pictures]
    assert max(edge) - min(edge) <= 2  # the middle stands still


def test_the_last_picture_shows_the_window_of_the_zoom(tmp_path):
    """A line a tenth from the left moves outwards by the zoom; from the top left corner it stays in proportion."""
    line = np.zeros((1080, 1920, 3), np.uint8)
    line[:, 384:392] = 255
    from PIL import Image

    Image.fromarray(line).save(tmp_path / "line.png")
    for anchor, wanted in (("center", lambda z: 960 + (388 - 960) * z), ("top-left", lambda z: 388 * z)):
        events = perform(
            tmp_path, "img2vid", {**images(0.5), "anchor": anchor}, {"images.0.image_url": tmp_path / "line.png"}
        )
        for n, picture in (
            (0, pictures_of(files_of(events)["video_1.mp4"])[0]),
            (11, pictures_of(files_of(events)["video_1.mp4"])[-1]),
        ):
            row = picture[540, :, 0].astype(float)
            assert float(row @ (np.arange(1920) + 0.5) / row.sum()) == pytest.approx(
                wanted(1 + 0.324 * n / 12), abs=0.6
            )


@pytest.mark.parametrize(("quality", "codec"), [("fast", "h264"), ("best", "h264"), ("balanced", "av1")])
def test_every_quality_and_codec_makes_exact_clips(tmp_path, quality, codec):
    events = perform(
        tmp_path,
        "img2vid",
        {**images(0.25), "quality": quality, "codec": codec},
        {"images.0.image_url": still(tmp_path / "a.jpg")},
    )
    facts = probe(files_of(events)["video_1.mp4"])
    assert (facts.video_codec, facts.frames, facts.width_px) == (codec, 6, 1920)


STOOD_IN = "The encoder h264_nvenc did not work on this worker; libx264 was used instead."


@pytest.mark.skipif(works("h264_nvenc"), reason="this machine's NVENC works")
def test_hardware_that_does_not_open_is_replaced_for_the_job_with_a_warning(tmp_path):
    picture, mute = still(tmp_path / "a.jpg"), video(tmp_path / "v.mp4", frames=6)
    run_ffmpeg("-i", mute, "-c:v", "mpeg4", tmp_path / "old.mp4")
    files = {
        "url_video": tmp_path / "old.mp4",
        "url_audio": wav(tmp_path / "t.wav", sine(0.25)),
        "url_srt": srt(tmp_path),
        **{f"images.{i}.image_url": picture for i in range(2)},
    }
    sources = {"url_video": "x", "url_audio": "y", "url_srt": "z"}
    asked = {
        "img2vid": images(0.1, 0.1),
        "caption": {k: v for k, v in sources.items() if k != "url_audio"},
        "addaudio": {k: v for k, v in sources.items() if k != "url_srt"},
    }
    for model, params in asked.items():
        events = perform(tmp_path, model, params, files, settings={"ENCODER": "h264_nvenc"})
        assert all(probe(path).video_codec == "h264" for path in files_of(events).values()), model
        assert output_of(events)["warnings"].count(STOOD_IN) == 1, model


def test_progress_is_true_and_rises_over_all_stills(tmp_path):
    picture = still(tmp_path / "a.jpg")
    events = perform(tmp_path, "img2vid", images(1.5, 0.1, 0.1), {f"images.{i}.image_url": picture for i in range(3)})
    fractions = [e.fraction for e in events if isinstance(e, Progress)]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert sum(0.1 < f < 0.9 for f in fractions) >= 2
    assert {e.phase for e in events if isinstance(e, Progress)} <= {Phase.ENCODING, None}


def test_a_still_that_cannot_be_used_loses_no_other_and_numbers_keep_their_places(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(still(tmp_path / "a.jpg").read_bytes()[:900])
    files = {
        "images.0.image_url": tmp_path / "cut.jpg",
        "images.2.image_url": tmp_path / "a.jpg",
        "images.3.image_url": png_bomb(tmp_path / "bomb.png"),
    }
    gone = {"images.1.image_url": JobError("input_unreachable", "images.1.image_url: 404")}
    events = perform(tmp_path, "img2vid", {**images(0.1, 0.1, 0.1, 0.1), "start_index": 17}, files, errors=gone)
    assert set(files_of(events)) == {"video_20.mp4"}
    output = output_of(events)
    assert output["videos"] == [{"id": "s2", "filename": "video_20.mp4"}]
    assert [(e["id"], e["code"]) for e in output["errors"]] == [
        ("s0", "unsupported_media"),
        ("s1", "input_unreachable"),
        ("s3", "too_large"),
    ]
    assert (output["total"], output["processed"]) == (4, 1)


def test_when_no_still_can_be_used_the_job_fails_with_the_reason(tmp_path):
    (tmp_path / "page.jpg").write_text("<html></html>")
    with pytest.raises(UnsupportedMedia, match=r"None of the 2 images.*'s0'.*HTML"):
        perform(tmp_path, "img2vid", images(1, 1), {f"images.{i}.image_url": tmp_path / "page.jpg" for i in range(2)})
    gone = {"images.0.image_url": JobError("input_unreachable", "404")}
    with pytest.raises(InputUnreachable, match="'s0': 404"):
        perform(tmp_path, "img2vid", images(1), {}, errors=gone)
    with pytest.raises(UnsupportedMedia, match="too long"):
        perform(tmp_path, "img2vid", images(1e9), {"images.0.image_url": still(tmp_path / "a.jpg")})


def test_a_cancel_ends_all_stills_at_their_next_picture(tmp_path):
    cancelled = threading.Event()
    picture = still(tmp_path / "a.jpg")
    threading.Timer(0.7, cancelled.set).start()
    with pytest.raises(Cancelled):
        perform(
            tmp_path,
            "img2vid",
            images(300, 300, 300),
            {f"images.{i}.image_url": picture for i in range(3)},
            cancelled=cancelled,
        )
    assert not [t for t in threading.enumerate() if t.name.startswith("still")]


def test_closing_the_work_ends_its_threads(tmp_path):
    request = catalog()["img2vid"].request.model_validate(images(300))
    file = InputFile("images.0.image_url", still(tmp_path / "a.jpg"), "image/jpeg", 1, "")
    work = Work("job", 1, "img2vid", request.model_dump(mode="json"), {file.field: file})
    events = ffmpeg.create({}).run(work, EngineContext(tmp_path, threading.Event(), {"ENCODER": "libx264"}))
    next(events)
    next(events)
    events.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("still")]


def test_stills_at_once_are_bounded_by_the_setting_and_the_cores():
    assert ffmpeg.stills_at_once({"BATCH_SIZE": "1"}) == 1
    assert ffmpeg.stills_at_once({"BATCH_SIZE": "500"}) == len(os.sched_getaffinity(0))


SRT = "1\n00:00:00,200 --> 00:00:00,800\nOlá\n\n2\n00:00:09,000 --> 00:00:09,500\nlate\n"


@pytest.fixture
def clip(tmp_path):
    return video(tmp_path / "v.mp4", frames=24, sound=sine(1.0))


def srt(tmp_path, text=SRT):
    (tmp_path / "s.srt").write_text(text, "utf-8")
    return tmp_path / "s.srt"


@pytest.mark.parametrize("mode", ["burn", "soft"])
def test_a_video_is_captioned_under_the_name_that_was_asked_for(tmp_path, clip, mode):
    params = {"url_video": "x", "url_srt": "y", "output_filename": "com legenda.mp4", "mode": mode}
    events = perform(tmp_path, "caption", params, {"url_video": clip, "url_srt": srt(tmp_path)})
    made = files_of(events)["com legenda.mp4"]
    assert probe(made).frames == 24
    assert inspect(made).subtitles == (mode == "soft")
    output = output_of(events)
    assert (output["mode"], output["cues"], output["encoding"]) == (mode, 2, "utf-8")
    assert output["warnings"] == ["url_srt: 1 subtitles begin after the end of the video (1.00 s)."]
    same = np.abs(pictures_of(clip)[12].astype(int) - pictures_of(made)[12]).max() < 60
    assert same == (mode == "soft")


def test_subtitles_without_text_leave_the_video_as_it_is_with_a_warning(tmp_path, clip):
    events = perform(
        tmp_path, "caption", {"url_video": "x", "url_srt": "y"}, {"url_video": clip, "url_srt": srt(tmp_path, "\n")}
    )
    made = files_of(events)["captioned.mp4"]
    assert packets_of(made, "video") == packets_of(clip, "video")
    assert "no subtitles" in output_of(events)["warnings"][0]


def test_sound_is_added_and_both_lengths_are_told(tmp_path, clip):
    tone = wav(tmp_path / "t.wav", sine(0.75, hz=700))
    events = perform(tmp_path, "addaudio", {"url_video": "x", "url_audio": "y"}, {"url_video": clip, "url_audio": tone})
    facts = probe(files_of(events)["with_audio.mp4"])
    assert (facts.frames, facts.audio_codec) == (18, "aac")
    assert output_of(events) == {
        "duration_s": 0.75,
        "video_duration_s": 1.0,
        "audio_duration_s": 0.75,
        "video_copied": True,
        "audio_copied": False,
        "warnings": [],
    }


@pytest.fixture
def hdr_clip(tmp_path):
    light = light_of_sdr(np.array([(104, 104, 104), (205, 164, 140)]))
    return hdr_video(tmp_path / "hdr.mp4", hlg(light), "hlg", frames=24)


@pytest.mark.parametrize(
    ("model", "second", "params", "warned"),
    [
        ("caption", "url_srt", {"mode": "burn"}, True),
        ("caption", "url_srt", {"mode": "soft"}, False),
        ("addaudio", "url_audio", {}, True),
    ],
)
def test_hdr_is_tone_mapped_and_that_is_said_where_pictures_are_encoded(
    tmp_path, hdr_clip, model, second, params, warned
):
    files = {"url_srt": srt(tmp_path), "url_audio": wav(tmp_path / "t.wav", sine(1.0))}
    events = perform(
        tmp_path, model, {"url_video": "x", second: "y", **params}, {"url_video": hdr_clip, second: files[second]}
    )
    (made,) = files_of(events).values()
    sentence = "url_video: HDR (HLG) was tone-mapped to SDR (BT.709)."
    assert (sentence in output_of(events)["warnings"]) == warned
    assert probe(made).hdr == (None if warned else "hlg")
    assert (packets_of(made, "video") == packets_of(hdr_clip, "video")) != warned
    if warned:
        assert patches_of(made, 2, 12) == pytest.approx(np.array([(104,) * 3, (205, 164, 140)]), abs=3)


def _broken(tmp_path, clip):
    tone = wav(tmp_path / "t.wav", sine(0.5))
    run_ffmpeg("-i", clip, "-an", "-c", "copy", tmp_path / "mute.mp4")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n")
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:9000])
    (tmp_path / "bad.srt").write_text("1\n00:00:xx,000 --> 00:00:01,000\nx\n")
    (tmp_path / "luck.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\n\U0001f9ff\n", "utf-8")
    (tmp_path / "big.srt").write_bytes(b"\n" * (5 * 1024**2))
    return {
        "tone": tone,
        "mute": tmp_path / "mute.mp4",
        "list": tmp_path / "list.mp4",
        "cut": tmp_path / "cut.mp4",
        "clip": clip,
        "bad": tmp_path / "bad.srt",
        "luck": tmp_path / "luck.srt",
        "big": tmp_path / "big.srt",
        "srt": srt(tmp_path),
        "picture": still(tmp_path / "p.png"),
    }


@pytest.mark.parametrize(
    ("model", "first", "second", "error", "says"),
    [
        ("addaudio", "clip", "mute", UnsupportedMedia, "^url_audio: .*no audio stream"),
        ("addaudio", "tone", "tone", UnsupportedMedia, "^url_video: .*no video stream"),
        ("addaudio", "clip", "picture", UnsupportedMedia, "^url_audio: .*picture"),
        ("addaudio", "list", "tone", UnsupportedMedia, "^url_video: .*playlist"),
        ("addaudio", "cut", "tone", UnsupportedMedia, "^url_video: "),
        ("caption", "tone", "srt", UnsupportedMedia, "^url_video: .*no video stream"),
        ("caption", "picture", "srt", UnsupportedMedia, "^url_video: .*picture"),
        ("caption", "clip", "bad", UnsupportedMedia, "^url_srt: Line"),
        ("caption", "clip", "luck", UnsupportedMedia, "^url_srt: .*NAZAR AMULET"),
        ("caption", "clip", "big", TooLarge, "^url_srt: .*bytes"),
    ],
)
def test_bad_media_is_refused_naming_the_field(tmp_path, clip, model, first, second, error, says):
    samples = _broken(tmp_path, clip)
    other = "url_audio" if model == "addaudio" else "url_srt"
    with pytest.raises(error, match=says) as caught:
        perform(tmp_path, model, {"url_video": "x", other: "y"}, {"url_video": samples[first], other: samples[second]})
    assert str(tmp_path) not in caught.value.message


def test_a_broken_ffmpeg_is_the_engines_fault(tmp_path, clip):
    with pytest.raises(EngineFailed) as caught:
        perform(
            tmp_path,
            "caption",
            {"url_video": "x", "url_srt": "y"},
            {"url_video": clip, "url_srt": srt(tmp_path)},
            settings={"FFMPEG": "/bin/false"},
        )
    assert str(tmp_path) not in caught.value.message


def test_an_operation_of_another_engine_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="'fake'"):
        perform(tmp_path, "fake", {}, {})

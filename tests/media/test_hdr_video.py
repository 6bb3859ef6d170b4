"""HDR video that has to be encoded: patches of known light, judged after decoding."""

from fractions import Fraction

import av
import numpy as np
import pytest

from mediamill.media import bt709, burn, captions, mux
from mediamill.media.burn import Tool
from mediamill.media.probe import ColourTags, VideoTrack, inspect, probe
from tests.hdr_samples import (
    ENCODERS,
    WHITE_NITS,
    as_phones_write,
    delta_e,
    hdr_video,
    hue_deg,
    light_of_sdr,
    patches_of,
)
from tests.media_samples import packets_of, sine, wav

_TOOL = Tool(encoder="libx264")
_SDR = np.array(
    [
        (0, 0, 0),
        (104, 104, 104),  # what an 18 % grey is in SDR
        (205, 164, 140),
        (110, 75, 60),  # two skins
        (215, 20, 20),
        (20, 190, 30),
        (30, 30, 210),
        (200, 190, 20),
    ]
)
_WITHIN = (0.8, 0.8, 1.5, 1.5, 2.0, 2.0, 2.0, 2.0)
"""Most CIE94 that each may be away: 8 bits, 4:2:0 and x264 take their part; neutral and skin are what eyes judge by."""
_MASTERED = ":master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(40000000,50)"
_HIGHLIGHTS = np.array([[WHITE_NITS] * 3, [400.0] * 3, [1000.0] * 3])


def cues(folder):
    (folder / "in.srt").write_text("1\n00:00:00,000 --> 00:00:05,000\nHi\n", "utf-8")
    return captions.read(folder / "in.srt")


def burned(clip, folder):
    folder.mkdir()
    out = folder / "out.mp4"
    steps = burn.burn(clip, inspect(clip), cues(folder), out, tool=_TOOL, quality="balanced", style=None)
    list(steps)
    return out


@pytest.mark.parametrize(("transfer", "x265"), [("pq", ":max-cll=1000,400"), ("hlg", "")])
def test_captioned_hdr_looks_like_the_sdr_that_it_stands_for(tmp_path, transfer, x265):
    light = np.vstack([light_of_sdr(_SDR), _HIGHLIGHTS])
    clip = hdr_video(tmp_path / "in.mp4", ENCODERS[transfer][0](light), transfer, x265=x265)
    assert probe(clip).hdr == transfer
    out = burned(clip, tmp_path / "job")
    found = patches_of(out, len(light), picture=3)
    assert np.all(delta_e(_SDR, found[: len(_SDR)]) <= _WITHIN), delta_e(_SDR, found[: len(_SDR)])
    white, bright, brightest = found[len(_SDR) :]
    assert np.all((white > 228) & (white < 245)), white
    assert np.all((bright > white + 5) & (bright < brightest - 5)), bright
    assert np.all(brightest > 252), brightest
    track = inspect(out).video[0]
    assert (track.colour.matrix, track.colour.primaries, track.colour.transfer, track.colour.range) == (1, 1, 1, 1)
    assert (track.pixel_format, track.frames, probe(out).hdr) == ("yuv420p", 4, None)


def test_bright_colours_keep_their_hue_and_are_not_cut_off(tmp_path):
    colours = np.array([(200, 90, 20), (60, 120, 210), (180, 40, 60)])
    light = np.vstack([light_of_sdr(colours) * times for times in (1, 3, 5)])
    clip = hdr_video(tmp_path / "in.mp4", ENCODERS["pq"][0](light), "pq", x265=":max-cll=1000,400")
    found = patches_of(burned(clip, tmp_path / "job"), len(light), picture=3).reshape(3, 3, 3)
    for n, colour in enumerate(colours):
        assert all(abs(hue_deg(found[step, n]) - hue_deg(colour)) < 8 for step in range(3)), found[:, n]
        assert found[0, n].sum() < found[1, n].sum() < found[2, n].sum()


@pytest.mark.parametrize(
    ("x265", "peak_nits"),
    [
        (":max-cll=600,200", 600),
        (_MASTERED, 4000),
        ("", 0),
    ],
)
def test_the_brightest_light_that_a_file_tells_of_is_what_becomes_white(tmp_path, x265, peak_nits):
    light = np.array([[600.0] * 3, [10.0] * 3])
    clip = hdr_video(tmp_path / "in.mp4", ENCODERS["pq"][0](light), "pq", x265=x265)
    assert inspect(clip).video[0].colour.peak_nits == peak_nits
    bright = patches_of(burned(clip, tmp_path / "job"), 2, picture=3)[0]
    assert np.all(bright > 252) == (peak_nits == 600), bright


@pytest.mark.parametrize(("transfer", "x265"), [("pq", f":max-cll=1000,400{_MASTERED}"), ("hlg", "")])
def test_what_was_said_about_hdr_is_not_said_of_sdr(tmp_path, transfer, x265):
    light = light_of_sdr(_SDR)
    clip = as_phones_write(hdr_video(tmp_path / "in.mp4", ENCODERS[transfer][0](light), transfer, x265=x265))
    out = burned(clip, tmp_path / "job")
    with av.open(str(out)) as container:
        kinds = {data.type.name for data in next(container.decode(video=0)).side_data}
    assert kinds <= {"SEI_UNREGISTERED"}
    assert not [box for box in (b"mdcv", b"clli", b"amve", b"dvvC") if box in out.read_bytes()]
    assert np.all(delta_e(_SDR, patches_of(out, len(_SDR), 3)) <= _WITHIN)


def test_hdr_that_gets_sound_is_tone_mapped_too(tmp_path):
    clip = hdr_video(tmp_path / "in.mp4", ENCODERS["hlg"][0](light_of_sdr(_SDR)), "hlg", frames=12)
    sound = wav(tmp_path / "t.wav", sine(0.5))
    (tmp_path / "job").mkdir()
    out = tmp_path / "job" / "out.mp4"
    list(mux.add_audio((clip, inspect(clip)), (sound, inspect(sound)), out, tool=_TOOL))
    assert np.all(delta_e(_SDR, patches_of(out, len(_SDR), picture=6)) <= _WITHIN)


def test_a_text_track_leaves_the_hdr_pictures_as_they_are(tmp_path):
    clip = hdr_video(tmp_path / "in.mp4", ENCODERS["hlg"][0](light_of_sdr(_SDR)), "hlg")
    (tmp_path / "job").mkdir()
    out = tmp_path / "job" / "out.mp4"
    list(burn.soft(clip, inspect(clip), cues(tmp_path / "job"), out, tool=_TOOL))
    assert packets_of(out, "video") == packets_of(clip, "video")
    assert probe(out).hdr == "hlg"


_TAGS = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
_FINAL = "out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd,format=yuv420p"


@pytest.mark.parametrize(
    ("colour", "pixel_format", "converted"),
    [
        (ColourTags(1, 1, 1, 1), "yuv420p", ""),
        (ColourTags(2, 2, 2, 0), "yuv420p", ""),
        (ColourTags(1, 1, 1, 1), "yuv420p10le", f"scale=in_color_matrix=bt709:in_range=tv:{_FINAL},"),
        (ColourTags(5, 5, 6, 2), "yuv420p", f"scale=in_color_matrix=bt470bg:in_range=pc:{_FINAL},"),
        (ColourTags(9, 9, 14, 1), "yuv420p10le", f"scale=in_color_matrix=bt2020:in_range=tv:{_FINAL},"),
        (ColourTags(0, 1, 13, 2), "gbrp", f"scale={_FINAL},"),
    ],
)
def test_sdr_is_converted_by_its_matrix_alone_or_not_at_all(tmp_path, colour, pixel_format, converted):
    track = VideoTrack(0, "h264", 1280, 720, pixel_format, 1, 1.0, Fraction(24), 0, colour)
    assert bt709.filters(track, tmp_path, "drawn") == f"{converted}drawn,{_TAGS}"
    assert not list(tmp_path.iterdir())

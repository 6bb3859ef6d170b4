import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediamill.media import planes
from mediamill.media.ken_burns import Axis, axis, frame_count, lead_of, window_at, zoom_at


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [
        (6.48, 156),
        (5.0, 120),
        (1 / 24, 1),
        (0.001, 1),
        (0.0625, 2),
        (0.1, 2),
        (2.5 / 24, 3),
        (600, 14_400),
        (0.020833, 1),
    ],
)
def test_a_clip_has_its_seconds_times_24_pictures_half_rounded_up(seconds, frames):
    assert frame_count(seconds) == frames


def test_the_zoom_runs_from_1_to_just_below_1_324_in_equal_steps():
    zooms = [zoom_at(n, 96) for n in range(96)]
    assert zooms[0] == 1.0
    assert zooms[-1] == pytest.approx(1.324 - 0.324 / 96)
    assert np.allclose(np.diff(zooms), 0.324 / 96)


@given(frames=st.integers(1, 15_000), data=st.data())
def test_every_window_is_inside_the_still_and_its_anchor_stands_still(frames, data):
    n = data.draw(st.integers(0, frames - 1))
    centred, cornered = window_at(n, frames), window_at(n, frames, "top-left")
    assert centred.left + centred.size / 2 == pytest.approx(0.5)
    assert centred.top + centred.size / 2 == pytest.approx(0.5)
    assert (cornered.left, cornered.top) == (0.0, 0.0)
    assert centred.size == cornered.size == pytest.approx(1 / zoom_at(n, frames))
    assert 0 <= centred.left <= 1 - centred.size


def test_samples_lie_at_pixel_centres_and_left_sited_chroma_a_quarter_before():
    plain = axis(0.0, 1.0, source_px=200, output_px=100)
    chroma = axis(0.0, 1.0, source_px=200, output_px=100, siting_px=-0.25)
    assert plain.start + 0.5 * plain.step == 1.0
    assert chroma.start + 0.5 * chroma.step == 0.5


@given(start=st.floats(0, 400), step=st.floats(1.0, 1.4))
def test_a_lead_brings_the_start_to_a_whole_pixel(start, step):
    lead = lead_of(Axis(start, step), 0.01)
    if lead is not None:
        begin = start - lead * step
        assert abs(begin - math.floor(begin + 0.5)) <= 0.01


@pytest.fixture(scope="module")
def smooth() -> planes.StillPlanes:
    """A picture whose brightness is a smooth wave, so that a shift shows in every value."""
    y, x = np.mgrid[0 : planes.mip_size(180), 0 : planes.mip_size(320)]
    wave = 128 + 50 * np.sin(x / 9.0) + 40 * np.cos(y / 7.0)
    return planes.from_rgb(np.repeat(wave[..., None], 3, axis=2).astype(np.uint8))


@pytest.mark.parametrize("kernel", ["linear", "cubic"])
def test_the_fast_way_of_sampling_equals_the_general_one(smooth, kernel):
    fast, exact = np.empty((180, 320), np.uint8), np.empty((180, 320), np.uint8)
    taken = 0
    for n in range(0, 96, 5):
        window = window_at(n, 96)
        across = axis(window.left, window.size, source_px=smooth.y.width_px, output_px=320)
        down = axis(window.top, window.size, source_px=smooth.y.height_px, output_px=180)
        if planes._resize(smooth.y, across, down, fast, kernel):
            taken += 1
            planes._warp(smooth.y, across, down, exact, kernel)
            assert np.abs(fast.astype(int) - exact).max() <= 1, n
    assert taken > 12  # of 20


def test_motion_is_steady_to_a_fiftieth_of_a_pixel(smooth):
    """The wave's phase in the sampled pictures follows the zoom: no whole-pixel steps."""
    out = np.empty((180, 320), np.uint8), np.empty((90, 160), np.uint8), np.empty((90, 160), np.uint8)
    errors = []
    for n in range(96):
        window = window_at(n, 96)
        planes.sample(smooth, window, out)
        row = out[0].astype(float).mean(axis=0)
        source = (window.left + (np.arange(320) + 0.5) / 320 * window.size) * smooth.y.width_px - 0.5
        wanted, slope = np.sin(source / 9.0), np.cos(source / 9.0) * (window.size * smooth.y.width_px / 320) / 9.0
        row = (row - row.mean()) / row.std() * wanted.std()
        errors.append(float(slope @ (row - wanted + wanted.mean()) / (slope @ slope)))
    assert float(np.sqrt(np.mean(np.diff(errors) ** 2))) < 0.02


def test_planes_are_bt709_limited_range():
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    still = planes.from_rgb(np.repeat(np.repeat(colours, 8, axis=0), 8, axis=1))
    y, u, v = (
        p.padded[p.pad_px + 1, p.pad_px + step // 2 :: step] for p, step in ((still.y, 8), (still.u, 4), (still.v, 4))
    )
    assert np.abs(y.astype(int) - [16, 235, 63, 173, 32]).max() <= 1
    assert np.abs(u.astype(int) - [128, 128, 102, 42, 240]).max() <= 1
    assert np.abs(v.astype(int) - [128, 128, 240, 26, 118]).max() <= 1

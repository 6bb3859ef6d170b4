"""The rule by which HDR becomes SDR, against the figures of the standards."""

import numpy as np
import pytest

from mediamill.media import tone
from mediamill.media.tone import BT709, BT2020, DISPLAY_P3, HLG, PQ, Colour
from tests.hdr_samples import ENCODERS, delta_e, hue_deg, light_of_sdr

_PQ_1000 = Colour(BT2020, PQ, 1000)
_HLG = Colour(BT2020, HLG)


def grey(code, colour):
    return float(tone.to_sdr(np.full(3, code), colour, "bt1886")[0])


@pytest.mark.parametrize(
    ("code", "transfer", "nits"),
    [  # ITU-R BT.2408, table 1, and the ends of ITU-R BT.2100
        (0.75, HLG, 203),
        (0.58, PQ, 203),
        (0.38, HLG, 26),
        (0.38, PQ, 26),
        (1.0, HLG, 1000),
        (1.0, PQ, 10_000),
        (0.0, PQ, 0),
        (0.0, HLG, 0),
    ],
)
def test_a_code_stands_for_the_light_that_the_standards_say(code, transfer, nits):
    light = tone.light_of(np.full((1, 3), code), transfer) * 203
    assert light == pytest.approx(nits, rel=0.02)


@pytest.mark.parametrize(
    ("colour", "code", "low", "high"),
    [
        (_HLG, 0.75, 0.91, 0.95),
        (_PQ_1000, 0.58, 0.91, 0.95),
        (_HLG, 1.0, 0.999, 1.0),
        (_PQ_1000, 0.7518, 0.999, 1.0),
        (Colour(BT2020, PQ), 0.58, 0.89, 0.93),
        (Colour(BT2020, PQ), 1.0, 0.999, 1.0),
        (Colour(BT2020, PQ, 203), 0.58, 0.99, 1.0),
        (_HLG, 0.38, 0.41, 0.44),
        (_PQ_1000, 0.38, 0.41, 0.44),
    ],
)
def test_white_comes_close_to_sdr_white_and_grey_stays_where_sdr_has_it(colour, code, low, high):
    assert low <= grey(code, colour) <= high


@pytest.mark.parametrize("colour", [_HLG, _PQ_1000, Colour(BT2020, PQ), Colour(BT2020, PQ, 400)])
def test_more_light_is_never_shown_darker_and_the_curve_has_no_kink(colour):
    light = np.linspace(0, min(colour.peak, 5), 4000)
    shown = tone.rolled_off(light, colour.peak)
    slopes = np.diff(shown) / np.diff(light)
    assert slopes.min() > 0
    assert np.abs(np.diff(slopes)).max() < 0.05
    assert np.array_equal(shown[light < 0.69], light[light < 0.69])


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_sdr_that_was_put_into_hdr_comes_back_as_it_was(transfer):
    values = np.random.default_rng(4).integers(0, 210, (500, 3))
    codes = ENCODERS[transfer][0](light_of_sdr(values))
    back = tone.to_sdr(codes, Colour(BT2020, tone.PQ if transfer == "pq" else tone.HLG, 1000), "bt1886") * 255
    assert delta_e(values, back).max() < 0.1


@pytest.mark.parametrize("sdr", [(200, 90, 20), (60, 120, 210), (180, 40, 60), (70, 170, 60)])
def test_a_colour_that_gets_ever_brighter_keeps_its_hue(sdr):
    once = light_of_sdr(np.array([sdr]))
    for times in (2, 4, 6):
        shown = tone.to_sdr(ENCODERS["pq"][0](once * times), _PQ_1000, "bt1886")[0] * 255
        assert shown.max() <= 255
        assert abs(hue_deg(shown) - hue_deg(sdr)) < 8, times


@pytest.mark.parametrize("code", [(0.5, 0.1, 0.1), (0.1, 0.5, 0.1), (0.1, 0.1, 0.5), (0.0, 0.5, 0.5)])
def test_a_colour_outside_of_sdr_comes_to_its_edge_with_its_luminance(code):
    codes = np.array([code])
    light = tone.light_of(codes, PQ)
    luminance = float(light[0] @ [0.2627, 0.6780, 0.0593])
    shown = tone.to_sdr(codes, _PQ_1000, "bt1886")[0]
    assert shown.min() == pytest.approx(0, abs=1e-3)
    assert float(shown**2.4 @ [0.2126, 0.7152, 0.0722]) == pytest.approx(luminance, rel=0.01)


def test_what_is_srgb_stays_and_display_p3_becomes_it():
    codes = np.random.default_rng(1).random((50, 3))
    assert tone.to_sdr(codes, Colour(BT709, 13), "srgb") == pytest.approx(codes, abs=1e-3)
    red = tone.to_sdr(np.array([[200, 60, 60]]) / 255, Colour(DISPLAY_P3, 13), "srgb") * 255
    assert red[0] == pytest.approx((217.5, 41.7, 52.3), abs=0.5)  # by the matrix of CSS Color 4


def test_the_table_is_right_between_its_steps():
    """Where colours are: within a quarter of the code range from grey."""
    rng = np.random.default_rng(2)
    codes = np.clip(rng.uniform(0.05, 0.75, (3000, 1)) + rng.uniform(-0.12, 0.12, (3000, 3)), 0, 1)
    for colour in (_HLG, _PQ_1000):
        size = tone.TABLE_SIZE
        grid = tone.table(colour, "bt1886").reshape(size, size, size, 3)
        at = codes * (size - 1)
        low = np.minimum(at.astype(int), size - 2)
        part = at - low
        found = np.zeros_like(codes)
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, part, 1 - part), axis=1)
            red, green, blue = (low + corner).T
            found += weight[:, None] * grid[blue, green, red]
        wrong = delta_e(tone.to_sdr(codes, colour, "bt1886") * 255, found * 255)
        assert wrong.mean() < 0.3
        assert np.percentile(wrong, 99) < 1.5

"""Sizes, and the picture that a generation begins with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mediamill.engines.diffusers.geometry import centre_crop, covering, frames_up, grid_up
from mediamill.errors import UnsupportedMedia
from mediamill.model import InputFile
from tests.heif_samples import irot, photo


@pytest.mark.parametrize(("value", "multiple", "up"), [(64, 16, 64), (65, 16, 80), (1, 32, 32), (512, 32, 512)])
def test_sizes_go_up_to_the_grid(value: int, multiple: int, up: int) -> None:
    assert grid_up(value, multiple) == up


@pytest.mark.parametrize(("asked", "made"), [(1, 1), (2, 9), (9, 9), (10, 17), (24, 25), (120, 121), (257, 257)])
def test_frame_counts_go_up_to_eight_k_plus_one(asked: int, made: int) -> None:
    assert frames_up(asked, 8) == made


def test_a_crop_keeps_the_middle() -> None:
    frame = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    assert np.array_equal(centre_crop(frame, width_px=4, height_px=4), frame[1:5, 2:6])
    assert np.array_equal(centre_crop(frame, width_px=7, height_px=5), frame[0:5, 0:7])


def test_a_phone_s_photo_begins_a_generation_upright(tmp_path: Path) -> None:
    """HEIC, stored on its side: red above, blue below; and one that is cut, whose field is named."""
    shown = np.zeros((96, 64, 3), np.uint8)
    shown[:48], shown[48:] = (200, 30, 30), (30, 30, 200)
    path = photo(tmp_path / "a.heic", np.ascontiguousarray(np.rot90(shown, 3)), irot(1))
    picture = InputFile("image_url", path, "image/heic", path.stat().st_size, "")
    pixels = np.asarray(covering(picture, width_px=32, height_px=48)).astype(int)
    assert np.abs(pixels[12, 16] - (200, 30, 30)).max() < 4
    assert np.abs(pixels[36, 16] - (30, 30, 200)).max() < 4
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UnsupportedMedia, match=r"^image_url: The picture is damaged: Invalid input"):
        covering(picture, width_px=32, height_px=48)

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from mediamill.errors import TooLarge, UnsupportedMedia
from mediamill.media.images import cover, cover_box
from tests.media_samples import BLUE, GREEN, RED, WHITE, png_bomb, quarters, still


def corners(pixels):
    h, w = pixels.shape[:2]
    return [
        pixels[y, x].astype(int)
        for y, x in ((h // 4, w // 4), (h // 4, 3 * w // 4), (3 * h // 4, w // 4), (3 * h // 4, 3 * w // 4))
    ]


def assert_quarters(pixels, colours=(RED, GREEN, BLUE, WHITE), within=8):
    for found, wanted in zip(corners(pixels), colours, strict=True):
        assert np.abs(found - wanted).max() <= within, (found, wanted)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tiff", "a.gif", "a.avif"])
def test_every_accepted_format_keeps_its_colours(tmp_path, name):
    assert_quarters(
        cover(still(tmp_path / name, quality=92) if name[-3:] in {"jpg", "ebp"} else still(tmp_path / name), 320, 180),
        within=14,
    )


_TURNS = {
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: lambda p: np.swapaxes(p, 0, 1),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: np.rot90(np.swapaxes(p, 0, 1), 2),
    8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_is_upright_whatever_way_the_camera_was_held(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(_TURNS[orientation](quarters(640, 360)))
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = cover(tmp_path / "a.jpg", 320, 180)
    assert pixels.shape == (180, 320, 3)
    assert_quarters(pixels)


def _modes():
    rgb = Image.fromarray(quarters(64, 36))
    grey = np.full((36, 64), 30_000, np.uint16)
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.where(np.arange(64)[None, :].repeat(36, 0) < 32, 255, 0).astype(np.uint8)))
    palette = rgb.quantize(8)
    palette.info["transparency"] = palette.getpixel((60, 4))
    black = (0, 0, 0)
    return [
        ("grey.png", rgb.convert("L"), [(85,) * 3, (108,) * 3, (63,) * 3, (235,) * 3], 4),
        ("one-bit.png", Image.new("1", (64, 36), 1), [(255,) * 3] * 4, 0),
        ("16-bit.png", Image.fromarray(grey), [(117,) * 3] * 4, 1),
        ("16-bit.tiff", Image.fromarray(grey), [(117,) * 3] * 4, 1),
        ("float.tiff", Image.fromarray(np.full((36, 64), 0.5, np.float32)), [(128,) * 3] * 4, 1),
        ("alpha.png", alpha, [RED, black, BLUE, black], 2),
        ("palette.png", palette, [RED, black, BLUE, WHITE], 3),
        ("cmyk.jpg", rgb.convert("CMYK"), [RED, GREEN, BLUE, WHITE], 12),
    ]


@pytest.mark.parametrize(
    ("name", "picture", "colours", "within"), _modes(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_kind_of_pixel_becomes_rgb_and_transparency_black(tmp_path, name, picture, colours, within):
    picture.save(tmp_path / name)
    assert_quarters(cover(tmp_path / name, 64, 36), colours, within)


def test_an_embedded_colour_profile_is_honoured(tmp_path):
    """A profile with swapped red and green must swap them back."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    Image.fromarray(quarters(64, 36)).save(tmp_path / "s.png", icc_profile=lab.tobytes())
    assert_quarters(cover(tmp_path / "s.png", 64, 36), within=1)
    Image.fromarray(quarters(64, 36)).save(tmp_path / "b.png", icc_profile=b"not a profile")
    assert_quarters(cover(tmp_path / "b.png", 64, 36), within=1)


@pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 400), (1000, 100), (64, 36), (33, 77)])
def test_other_aspects_are_cropped_at_the_centre_never_stretched(tmp_path, width, height):
    """A centred disc stays a disc."""
    y, x = np.mgrid[0:height, 0:width]
    radius = min(width, height) * 0.2
    disc = np.hypot(x - (width - 1) / 2, y - (height - 1) / 2) <= radius
    Image.fromarray(np.where(disc[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2)).save(tmp_path / "d.png")
    lit = cover(tmp_path / "d.png", 320, 180)[..., 0] > 128
    wide, high = np.ptp(np.flatnonzero(lit.any(0))) + 1, np.ptp(np.flatnonzero(lit.any(1))) + 1
    scale = max(320 / width, 180 / height)
    for found, edge in ((wide, 320), (high, 180)):
        assert abs(found - min(edge, 2 * radius * scale)) <= scale * 1.5 + 1


def test_the_box_to_cover_with_is_the_largest_centred_one():
    assert cover_box(400, 300, aspect=16 / 9) == (0.0, 37.5, 400.0, 262.5)
    assert cover_box(400, 100, aspect=1) == (150.0, 0.0, 250.0, 100.0)


def test_an_avif_whose_first_brand_is_that_of_any_codec_is_read(tmp_path):
    """Its first twelve bytes are those of some HEIC files."""
    written = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(written, "AVIF", quality=95)
    (tmp_path / "a").write_bytes(written.getvalue().replace(b"ftypavif", b"ftypmif1"))
    assert cover(tmp_path / "a", 32, 32).mean((0, 1)) == pytest.approx((200, 30, 30), abs=3)


def _noise_jpeg():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (200, 200, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (_noise_jpeg()[:6000], "truncated|Truncated"),
        (_noise_jpeg()[:100], "picture"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"#EXTM3U\n#EXTINF:1\na.ts\n", "playlist"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "picture"),
        (b"hello, world", "not a picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "damaged"),
    ],
)
def test_what_is_no_whole_picture_is_refused_with_what_it_is(tmp_path, content, says):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnsupportedMedia, match=says) as caught:
        cover(tmp_path / "a.jpg", 320, 180)
    assert str(tmp_path) not in caught.value.message


def test_a_bomb_is_refused_by_its_header_before_decoding(tmp_path):
    bomb = png_bomb(tmp_path / "bomb.png")
    assert bomb.stat().st_size < 500_000
    with pytest.raises(TooLarge, match="50000000 pixels"):
        cover(bomb, 320, 180)
    with pytest.raises(TooLarge, match="pixels"):
        cover(png_bomb(tmp_path / "less.png", 7500), 320, 180)

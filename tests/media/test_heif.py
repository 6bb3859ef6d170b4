import struct

import numpy as np
import pytest

from mediamill.errors import TooLarge, UnsupportedMedia
from mediamill.media.images import cover
from mediamill.media.probe import MAX_HEIC_BYTES, check_picture_size, opened_picture, probe
from tests import heif_samples as samples
from tests.heif_samples import Heic, clap, grid, imir, irot, nclx, photo, single, with_alpha, with_exif_orientation
from tests.media_samples import BLUE, GREEN, RED, WHITE, quarters


def corners(pixels):
    h, w = pixels.shape[:2]
    places = ((h // 4, w // 4), (h // 4, 3 * w // 4), (3 * h // 4, w // 4), (3 * h // 4, 3 * w // 4))
    return [pixels[y, x].astype(int) for y, x in places]


def assert_quarters(pixels, colours=(RED, GREEN, BLUE, WHITE), within=5):
    for found, wanted in zip(corners(pixels), colours, strict=True):
        assert np.abs(found - wanted).max() <= within, (found, wanted)


def decoded(path):
    with opened_picture(path) as picture:
        return np.asarray(picture)


def written(path, heic):
    path.write_bytes(heic.written())
    return path


def test_tiles_come_together_where_they_belong(tmp_path):
    """Each tile has a colour of its own; the last row and column are cut."""
    colours = [(10 + 12 * n, 240 - 11 * n, 40 + 9 * n) for n in range(12)]
    whole = np.repeat(np.repeat(np.array(colours, np.uint8).reshape(3, 4, 3), 64, 0), 64, 1)
    path = photo(tmp_path / "a.heic", np.ascontiguousarray(whole[:150, :231]))
    assert check_picture_size(path) == (231, 150)
    found = decoded(path)
    assert found.shape == (150, 231, 3)
    for n, colour in enumerate(colours):
        top, left = n // 4 * 64, n % 4 * 64
        tile = found[top + 2 : top + 62, left + 2 : left + 62]
        assert np.abs(tile.mean((0, 1)) - colour).max() < 3
        assert tile.std((0, 1)).max() < 3


def cropped(heic, pixels):
    """In one piece as encoders write it: of even size, and what stands out cut off by a property."""
    height, width = pixels.shape[:2]
    right, below = -(width % 2), -(height % 2)
    return single(heic, samples.padded(pixels, 2), clap(width, height, right, below))


_SIZES = [(single, 64, 64), (cropped, 65, 63), (cropped, 33, 77), (grid, 1, 1), (grid, 65, 63), (grid, 101, 77)]


@pytest.mark.parametrize(("build", "width", "height"), _SIZES)
def test_any_size_is_read_to_its_edges(tmp_path, build, width, height):
    """The lightness grows to the right and the redness downwards, so that a shift by a pixel shows."""
    across = np.linspace(40, 200, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 40, height)[:, None].repeat(width, 1)
    pixels = np.stack([across + down, across, across], -1).round().astype(np.uint8)
    heic = Heic()
    heic.primary = build(heic, pixels)
    found = decoded(written(tmp_path / "a.heic", heic))
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).max() <= 9
    assert np.abs(found.mean((0, 1)) - pixels.mean((0, 1))).max() < 1.5


_TURNS = [
    ((), lambda p: p),
    ((irot(1),), np.rot90),
    ((irot(2),), lambda p: np.rot90(p, 2)),
    ((irot(3),), lambda p: np.rot90(p, 3)),
    ((imir(left_right=True),), np.fliplr),
    ((imir(left_right=False),), np.flipud),
    ((irot(1), imir(left_right=True)), lambda p: np.fliplr(np.rot90(p))),
    ((imir(left_right=True), irot(1)), lambda p: np.rot90(np.fliplr(p))),
    ((clap(80, 60, 48, -36),), lambda p: p[0:60, 48:128]),
    ((clap(80, 60, 48, -36), irot(3)), lambda p: np.rot90(p[0:60, 48:128], 3)),
    ((irot(3), clap(60, 80, 36, 48)), lambda p: np.rot90(p, 3)[48:128, 36:96]),
]


@pytest.mark.parametrize(("turns", "wanted"), _TURNS)
def test_the_picture_is_turned_as_its_properties_say(tmp_path, turns, wanted):
    stored = quarters(128, 96)
    stored[:20, :50] = (250, 240, 20)
    path = photo(tmp_path / "a.heic", stored, *turns)
    shown = wanted(stored)
    assert check_picture_size(path) == (shown.shape[1], shown.shape[0])
    found = decoded(path)
    assert found.shape == shown.shape
    assert np.abs(found.astype(int) - shown).mean() < 4


def test_orientation_counts_once(tmp_path):
    """Phones say it twice, by `irot` and in Exif; HEIF says that the former is it."""
    heic = Heic()
    heic.primary = grid(heic, np.ascontiguousarray(np.rot90(quarters(96, 128))), irot(3))
    with_exif_orientation(heic, 6)
    pixels = cover(written(tmp_path / "a.heic", heic), 96, 128)
    assert_quarters(pixels)


def test_the_facts_are_those_of_the_picture_shown(tmp_path):
    facts = probe(photo(tmp_path / "a.heic", quarters(128, 80), irot(1)), media_type="image/heic")
    assert (facts.width_px, facts.height_px) == (80, 128)


@pytest.mark.parametrize(
    ("pixel_format", "tags", "said"),
    [
        ("yuvj420p", {}, ()),
        ("yuv420p", {"color_range": 1}, ()),
        ("yuv420p", {"color_range": 1}, (nclx(1, 13, 5, full_range=False),)),
        ("yuv420p", {"color_range": 1, "matrix": 1}, (nclx(1, 13, 1, full_range=False),)),
        ("yuvj420p", {"matrix": 1}, (nclx(1, 13, 1),)),
        ("yuv420p10le", {}, ()),
        ("yuv422p10le", {}, (nclx(1, 13, 5),)),
        ("yuv444p", {}, ()),
        ("yuv420p12le", {"color_range": 1}, ()),
        ("yuvj420p", {}, (nclx(2, 2, 2),)),
    ],
)
def test_colours_are_right_whatever_they_are_coded_as(tmp_path, pixel_format, tags, said):
    path = photo(tmp_path / "a.heic", quarters(128, 128), *said, pixel_format=pixel_format, **tags)
    assert_quarters(decoded(path), within=3)


def test_a_grey_picture_is_grey(tmp_path):
    heic = Heic()
    heic.primary = single(heic, np.full((64, 64), 90, np.uint8), pixel_format="gray")
    assert cover(written(tmp_path / "a.heic", heic), 64, 64).mean((0, 1)) == pytest.approx((90, 90, 90), abs=1)


@pytest.mark.parametrize("premultiplied", [False, True])
def test_transparency_is_laid_over_black(tmp_path, premultiplied):
    """The left half is opaque, the right one half transparent."""
    colour = np.full((64, 128, 3), (200, 100, 50), np.uint8)
    if premultiplied:
        colour[:, 64:] //= 2
    alpha = np.full((64, 128), 255, np.uint8)
    alpha[:, 64:] = 128
    heic = Heic()
    heic.primary = grid(heic, colour)
    with_alpha(heic, alpha, premultiplied=premultiplied)
    pixels = cover(written(tmp_path / "a.heic", heic), 128, 64).astype(int)
    assert pixels[32, 20] == pytest.approx((200, 100, 50), abs=3)
    assert pixels[32, 108] == pytest.approx((100, 50, 25), abs=3)


def test_transparency_of_another_size_is_stretched(tmp_path):
    alpha = np.zeros((32, 64), np.uint8)
    alpha[:, :32] = 255
    heic = Heic()
    heic.primary = grid(heic, np.full((64, 128, 3), 200, np.uint8))
    with_alpha(heic, alpha)
    pixels = cover(written(tmp_path / "a.heic", heic), 128, 64).astype(int)
    assert pixels[32, 20].mean() == pytest.approx(200, abs=3)
    assert pixels[32, 108].mean() == pytest.approx(0, abs=3)


def test_a_picture_in_pieces_of_a_file_is_read(tmp_path):
    """Some writers spread the bytes of one picture over the file."""
    heic = Heic()
    heic.primary = single(heic, quarters(128, 64))
    content = heic.written()
    size = len(heic.items[0].data)
    place = struct.pack(">HHHHII", 1, 0, 0, 1, len(content) - size, size)
    assert content.count(place) == 1
    # one extent more makes the index 8 bytes longer, and what comes after it 8 bytes later
    start = len(content) - size + 8
    parts = struct.pack(">HHHHIIII", 1, 0, 0, 2, start, 100, start + 100, size - 100)
    content = content.replace(place, parts)
    for kind in (b"iloc", b"meta"):
        at = content.index(kind) - 4
        longer = struct.unpack_from(">I", content, at)[0] + 8
        content = content[:at] + struct.pack(">I", longer) + content[at + 4 :]
    (tmp_path / "a.heic").write_bytes(content)
    assert_quarters(decoded(tmp_path / "a.heic"))


# what is refused


def _photo():
    heic = Heic()
    heic.primary = grid(heic, quarters(128, 128))
    return heic


def _refused(path, content, error=UnsupportedMedia):
    path.write_bytes(content)
    with pytest.raises(error) as refused:
        cover(path, 64, 36)
    assert str(path.parent) not in refused.value.message
    return refused.value.message


@pytest.mark.parametrize("kept", [0.1, 0.3, 0.5])
def test_a_cut_index_is_damaged(tmp_path, kept):
    """What is cut behind its index is refused before: tests/inputs/test_accept.py."""
    content = _photo().written()
    assert "damaged" in _refused(tmp_path / "a.heic", content[: int(len(content) * kept)])


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, None])
def test_a_broken_picture_of_one_piece_is_damaged(tmp_path, data):
    heic = Heic()
    heic.primary = single(heic, quarters(64, 64))
    whole = heic.items[0].data
    broken = samples.changed(heic, 1, data=whole[: len(whole) // 2] if data is None else data)
    assert "damaged" in _refused(tmp_path / "a.heic", broken.written())


def test_a_broken_tile_leaves_the_others_as_they_are(tmp_path):
    """As with a JPEG, whose rest is grey."""
    broken = samples.changed(_photo(), 1, data=b"\xff" * 100)
    found = decoded(written(tmp_path / "a.heic", broken))
    for place, wanted in list(zip(corners(found), (RED, GREEN, BLUE, WHITE), strict=True))[1:]:
        assert np.abs(place - wanted).max() <= 5


def _grid_of(rows, columns, width, height, *, wide=False):
    form = ">BBBBII" if wide else ">BBBBHH"
    return struct.pack(form, 0, int(wide), rows - 1, columns - 1, width, height)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (16_385, 8), (10_000, 5_001)])
def test_a_picture_that_is_too_large_is_refused_before_any_of_it_is_decoded(tmp_path, width, height):
    heic = _photo()
    said = {"data": _grid_of(2, 2, width, height, wide=True), "properties": [samples.ispe(width, height)]}
    path = tmp_path / "a.heic"
    path.write_bytes(samples.changed(heic, heic.primary, **said).written())
    with pytest.raises(TooLarge, match=f"{width}x{height}"):
        check_picture_size(path)


def test_transparency_that_is_too_large_is_refused(tmp_path):
    heic = _photo()
    with_alpha(heic, np.zeros((64, 64), np.uint8))
    alpha = heic.items[-1]
    alpha.properties = [samples.ispe(60_000, 60_000) if b"ispe" in p else p for p in alpha.properties]
    assert "60000x60000" in _refused(tmp_path / "a.heic", heic.written())


def test_a_file_that_is_larger_than_its_pixels_could_be_is_not_read(tmp_path):
    path = written(tmp_path / "a.heic", _photo())
    with path.open("r+b") as file:
        file.truncate(MAX_HEIC_BYTES + 1)
    with pytest.raises(TooLarge, match=f"has {MAX_HEIC_BYTES + 1} bytes"):
        check_picture_size(path)


def test_a_picture_that_is_larger_than_it_says_is_not_decoded(tmp_path):
    heic = Heic()
    heic.primary = single(heic, np.zeros((2048, 2048, 3), np.uint8))
    only = heic.items[0]
    only.properties = [samples.ispe(64, 64) if b"ispe" in p else p for p in only.properties]
    assert "2048x2048 exceeds" in _refused(tmp_path / "a.heic", heic.written())


def test_a_picture_that_is_smaller_than_it_says_is_damaged(tmp_path):
    heic = Heic()
    heic.primary = single(heic, np.zeros((64, 64, 3), np.uint8))
    only = heic.items[0]
    only.properties = [samples.ispe(640, 640) if b"ispe" in p else p for p in only.properties]
    assert "does not have the size" in _refused(tmp_path / "a.heic", heic.written())


def _with_tiles(tiles, data, width, height):
    heic = _photo()
    heic.references = [(b"dimg", heic.primary, tiles)]
    return samples.changed(heic, heic.primary, data=data, properties=[samples.ispe(width, height)])


def _in_pieces_of_nothing():
    """Seven items of 65,535 pieces each, whose places and sizes are fields of no bytes."""
    count = 7
    places = b"".join(struct.pack(">HHHH", n, 0, 0, 65_535) for n in range(count))
    content = _photo().written()
    at = content.index(b"iloc") - 4
    (size,) = struct.unpack_from(">I", content, at)
    said = samples.full(b"iloc", 1, 0, bytes(2), struct.pack(">H", count), places)
    return content[:at] + said + samples.box(b"free", bytes(size - len(said) - 8)) + content[at + size :]


def _without(kind):
    content = _photo().written()
    return content.replace(kind, b"free")


def _item_of(kind):
    heic = _photo()
    return samples.changed(heic, heic.primary, kind=kind).written()


def _grid_that_says(width, height):
    heic = _photo()
    said = _grid_of(2, 2, width, height, wide=True)
    return samples.changed(heic, heic.primary, data=said, properties=[samples.ispe(width, height)])


@pytest.mark.parametrize(
    "content",
    [
        _with_tiles([1, 2, 3], _grid_of(2, 2, 128, 128), 128, 128),
        _with_tiles([1, 2, 3, 99], _grid_of(2, 2, 128, 128), 128, 128),
        _with_tiles([1, 2, 3, 4], _grid_of(2, 2, 128, 128), 100, 100),
        _with_tiles([1, 2, 3, 4], _grid_of(2, 2, 300, 300), 300, 300),
        _with_tiles([1] * 3000, _grid_of(50, 60, 3840, 3200), 3840, 3200),
        _with_tiles([1] * 9, _grid_of(100, 100, 6400, 6400), 6400, 6400),
        _with_tiles([5], _grid_of(1, 1, 256, 256), 256, 256),
        _grid_that_says(0, 100),
        _grid_that_says(2**32 - 1, 2**32 - 1),
        _in_pieces_of_nothing(),
        *(_without(kind) for kind in (b"pitm", b"iprp", b"ipma", b"ispe", b"hvcC", b"meta")),
        samples.box(b"ftyp", b"heic") + samples.box(b"free") * 2000,
        samples.box(b"ftyp", b"heic", bytes(4)) + samples.box(b"meta", bytes(5_000_000)),
        _item_of(b"iovl"),
        _item_of(b"av01"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, content):
    """Never is another picture of the file taken for the one that cannot be read."""
    assert "damaged" in _refused(tmp_path / "a.heic", content if isinstance(content, bytes) else content.written())


def test_no_change_of_a_byte_makes_anything_but_a_picture_or_a_refusal(tmp_path):
    """The index byte by byte; whatever a file says, what comes out is bounded and the error is ours."""
    heic = Heic()
    heic.primary = grid(heic, quarters(64, 64), irot(1), nclx(1, 13, 5))
    content = heic.written()
    path = tmp_path / "a.heic"
    outcomes = set()
    for at in range(12, len(content) - len(heic.items[0].data)):
        value = (0, 255, content[at] ^ 1)[at % 3]
        path.write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
        try:
            outcomes.add(cover(path, 32, 18).shape)
        except (UnsupportedMedia, TooLarge):
            outcomes.add("refused")
    assert outcomes == {(18, 32, 3), "refused"}

"""Pictures that are not sRGB: profiles and code points as phones, cameras and printers write them."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mediamill.media.images import cover
from tests.hdr_samples import ENCODERS, PATCH_PX, WHITE_NITS, light_of_sdr, means
from tests.heif_samples import icc, nclx, photo
from tests.media_samples import ffmpeg

_P3 = (200, 60, 60)
_AS_SRGB = (217.5, 41.7, 52.3)
"""The same colour by the matrix of CSS Color 4 for Display P3."""
_COLORANTS = {b"rXYZ": (0.5151, 0.2412, -0.0011), b"gXYZ": (0.2919, 0.6922, 0.0419), b"bXYZ": (0.1572, 0.0666, 0.7841)}
"""Display P3, adapted to the D50 of profiles."""


def profile(cicp=None, curve=None):
    """A Display P3 profile with the curve of sRGB; with code points where they are given."""

    def fixed(*values):
        return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))

    para = b"para" + struct.pack(">IHH", 0, 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    text = b"Display P3"
    tags = {
        b"desc": b"desc" + struct.pack(">II", 0, len(text) + 1) + text + bytes(1 + 4 + 4 + 2 + 1 + 67),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249),
        **{name: b"XYZ " + bytes(4) + fixed(*xyz) for name, xyz in _COLORANTS.items()},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve or para),
        **({b"cicp": b"cicp" + bytes(4) + bytes(cicp)} if cicp else {}),
    }
    table, data = struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12x4s28x3i48x",
        128 + len(table + data),
        b"none",
        0x02400000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        b"acsp",
        63190,
        65536,
        54061,
    )
    return head + table + data


def flat(colour=_P3, mode="RGB"):
    return Image.new(mode, (96, 64), colour)


def png_with(path, kind, body):
    """The PNG with one more chunk right behind its header."""
    content = path.read_bytes()
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(content[:33] + chunk + content[33:])


def cicp(primaries, transfer):
    info = PngInfo()
    info.add(b"cICP", bytes([primaries, transfer, 0, 1]))
    return info


def sixteen_bits(path):
    cv2.imwrite(str(path), np.full((64, 96, 3), [v * 257 for v in reversed(_P3)], np.uint16))
    png_with(path, b"iCCP", b"p\0\0" + zlib.compress(profile()))


def palette(path):
    flat().quantize(4).save(path, icc_profile=profile())


def avif_by_code_points(path):
    flat().save(path.with_suffix(".png"))
    tagged = "scale=out_color_matrix=bt709:out_range=pc,format=yuv444p10le,setparams=color_primaries=smpte432:color_trc=iec61966-2-1"
    ffmpeg(
        "-i",
        path.with_suffix(".png"),
        "-vf",
        tagged,
        "-c:v",
        "libaom-av1",
        "-crf",
        "4",
        "-still-picture",
        "1",
        "-frames:v",
        "1",
        path,
    )


_WRITERS = {
    "a.jpg": lambda path: flat().save(path, quality=98, icc_profile=profile()),
    "a.png": lambda path: flat().save(path, icc_profile=profile()),
    "transparent.png": lambda path: flat((*_P3, 255), "RGBA").save(path, icc_profile=profile()),
    "palette.png": palette,
    "sixteen.png": sixteen_bits,
    "points.png": lambda path: flat().save(path, pnginfo=cicp(12, 13)),
    "points-first.png": lambda path: flat().save(path, icc_profile=b"nonsense", pnginfo=cicp(12, 13)),
    "a.webp": lambda path: flat().save(path, lossless=True, icc_profile=profile()),
    "a.tiff": lambda path: flat().save(path, icc_profile=profile()),
    "a.avif": lambda path: flat().save(path, quality=98, subsampling="4:4:4", icc_profile=profile()),
    "points.avif": avif_by_code_points,
    "a.heic": lambda path: photo(path, np.asarray(flat()), icc(profile())),
    "tiles.heic": lambda path: photo(path, np.asarray(flat()), tile_properties=[icc(profile())]),
    "points.heic": lambda path: photo(path, np.asarray(flat()), nclx(12, 13, 6)),
    "both.heic": lambda path: photo(path, np.asarray(flat()), nclx(1, 13, 6), icc(profile())),
}


@pytest.mark.parametrize("name", _WRITERS)
def test_display_p3_becomes_srgb_in_every_format(tmp_path, name):
    _WRITERS[name](tmp_path / name)
    pixels = cover(tmp_path / name, 48, 32)
    assert pixels[16, 24] == pytest.approx(_AS_SRGB, abs=3)


def test_a_wide_gamut_photo_is_turned_upright_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (64, 96), (255, 255, 255))
    picture.paste(_P3, (0, 0, 64, 48))
    picture.save(tmp_path / "a.jpg", quality=98, icc_profile=profile(), exif=exif)
    pixels = cover(tmp_path / "a.jpg", 48, 32)
    assert pixels[16, 40] == pytest.approx(_AS_SRGB, abs=3)
    assert pixels[16, 8] == pytest.approx((255, 255, 255), abs=1)


def test_transparency_outlives_the_profile(tmp_path):
    flat((*_P3, 0), "RGBA").save(tmp_path / "a.png", icc_profile=profile())
    assert cover(tmp_path / "a.png", 48, 32).max() == 0


def hdr_codes(transfer):
    light = np.vstack([light_of_sdr(np.array([(104, 104, 104), (205, 164, 140), (200, 90, 20)])), [[WHITE_NITS] * 3]])
    codes = np.rint(ENCODERS[transfer][0](light) * 255).astype(np.uint8)
    return np.repeat(np.repeat(codes[None], PATCH_PX, 0), PATCH_PX, 1)


def hdr_png(path, transfer):
    Image.fromarray(hdr_codes(transfer)).save(path, pnginfo=cicp(9, 16 if transfer == "pq" else 18))


def hdr_by_profile(path, transfer):
    points = (9, 16 if transfer == "pq" else 18, 0, 1)
    Image.fromarray(hdr_codes(transfer)).save(path, icc_profile=profile(points))


def hdr_avif(path, transfer):
    Image.fromarray(hdr_codes(transfer)).save(path.with_suffix(".png"))
    tagged = (
        "scale=out_color_matrix=bt2020:out_range=pc,format=yuv444p10le,setparams=colorspace=bt2020nc:"
        f"color_primaries=bt2020:color_trc={ENCODERS[transfer][1]}"
    )
    ffmpeg(
        "-i",
        path.with_suffix(".png"),
        "-vf",
        tagged,
        "-c:v",
        "libaom-av1",
        "-crf",
        "4",
        "-still-picture",
        "1",
        "-frames:v",
        "1",
        path,
    )


def hdr_heic(path, transfer):
    points = nclx(9, 16 if transfer == "pq" else 18, 9)
    photo(path, hdr_codes(transfer), points, pixel_format="yuv444p10le", matrix=9)


_HDR = [("a.png", hdr_png, 5), ("p.png", hdr_by_profile, 5), ("a.avif", hdr_avif, 14), ("a.heic", hdr_heic, 10)]


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
@pytest.mark.parametrize(("name", "write", "within"), _HDR)
def test_an_hdr_picture_is_tone_mapped(tmp_path, name, write, within, transfer):
    """Pictures are decoded to 8 bits, of which one in PQ is four or five of SDR; AVIF adds its own rounding."""
    write(tmp_path / name, transfer)
    pixels = cover(tmp_path / name, 4 * PATCH_PX, PATCH_PX)
    found = means(pixels, 4)
    light = (np.array([(104, 104, 104), (205, 164, 140), (200, 90, 20)]) / 255) ** 2.4
    srgb = (1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert found[:3] == pytest.approx(srgb, abs=within)
    assert found[3] == pytest.approx((233,) * 3, abs=within + 3)

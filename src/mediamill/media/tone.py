"""HDR and wide gamut to SDR: the light that a code value stands for, and a table from code values to SDR ones.

A table costs a few milliseconds to make and is looked up by FFmpeg and Pillow at the speed of a matrix, so the rule can
be what the standards say and not what a filter happens to offer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mediamill.media.facts import Hdr

Values = npt.NDArray[np.float64]
"""(..., 3) red, green, blue."""
Display = Literal["bt1886", "srgb"]
"""What the SDR values are made for: video (ITU-R BT.1886) or pictures (IEC 61966-2-1)."""
Matrix = npt.NDArray[np.float64]

PQ = 16
HLG = 18
BT709 = 1
BT2020 = 9
DISPLAY_P3 = 12
"""Transfer characteristics and colour primaries by their numbers in ITU-T H.273."""
HDR_NAMES: dict[int, Hdr] = {PQ: "pq", HLG: "hlg"}
PQ_PEAK_NITS = 10_000.0
"""What the highest PQ code stands for: ITU-R BT.2100, table 4."""
TABLE_SIZE = 49
"""Steps along each of red, green and blue. Between them an HDR colour is off by a Delta E of 0.2 on average, 1.4 at most
for 99 in 100; 33 steps double that, 65 halve it and take three times as long to write and read."""

_WHITE_NITS = 203.0
"""HDR reference white, which SDR shows as its white: ITU-R BT.2408, table 1."""
_HLG_PEAK_NITS = 1000.0
"""The display on which HLG's system gamma is 1.2: ITU-R BT.2100, table 5."""
_HLG_GAMMA = 1.2
_HLG_A, _HLG_B, _HLG_C = 0.17883277, 0.28466892, 0.55991073
_PQ_M1, _PQ_M2 = 2610 / 16384, 2523 / 4096 * 128
_PQ_C1, _PQ_C2, _PQ_C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_BT1886_GAMMA = 2.4
_KNEE = 0.7
"""Light up to here (1: reference white) is shown as it is: 142 cd/m2, HLG 69 %, PQ 54 %. Most of a picture is below."""
_D65 = (0.3127, 0.3290)
_CHROMATICITIES = {
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),  # ITU-R BT.709; sRGB has the same
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # ITU-R BT.2020 and BT.2100
    DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # SMPTE EG 432-1
}


@dataclass(frozen=True)
class Colour:
    """How RGB code values (0 to 1, full range) are meant: ITU-T H.273 numbers, and the highest light in them.

    Primaries that are not known here are taken for BT.2020 with an HDR transfer, else for BT.709; a transfer that is not
    HDR for sRGB. `peak_nits` matters to PQ alone; 0: not said.
    """

    primaries: int
    transfer: int
    peak_nits: float = 0.0

    @property
    def is_hdr(self) -> bool:
        """Whether it says brighter things than white."""
        return self.transfer in HDR_NAMES

    @property
    def is_srgb(self) -> bool:
        """Whether there is nothing to convert."""
        return not self.is_hdr and self.primaries not in {BT2020, DISPLAY_P3}

    @property
    def peak(self) -> float:
        """The brightest there is, in reference whites."""
        if self.transfer == PQ:
            stated = self.peak_nits if 0 < self.peak_nits < PQ_PEAK_NITS else PQ_PEAK_NITS
            return stated / _WHITE_NITS
        return _HLG_PEAK_NITS / _WHITE_NITS if self.transfer == HLG else 1.0


def to_sdr(codes: Values, colour: Colour, display: Display) -> Values:
    """SDR code values (0 to 1) with BT.709 primaries for code values of that colour.

    Nothing is clipped by channel: a colour outside BT.709 is mixed with the grey of its own luminance until it is inside,
    and a bright one is dimmed as a whole, so that neither changes its hue.
    """
    light = light_of(codes, colour.transfer)
    known = colour.primaries if colour.primaries in _CHROMATICITIES else BT2020 if colour.is_hdr else BT709
    inside = _desaturated(light @ _conversion(known).T)
    brightest = inside.max(axis=-1, keepdims=True)
    shown = inside * (rolled_off(brightest, colour.peak) / np.maximum(brightest, 1e-12))
    return _ENCODERS[display](np.clip(shown, 0.0, 1.0))


def light_of(codes: Values, transfer: int) -> Values:
    """Displayed light in reference whites: PQ and HLG by ITU-R BT.2100, table 4 and 5; anything else as sRGB."""
    if transfer == PQ:
        root = codes ** (1 / _PQ_M2)
        nits = PQ_PEAK_NITS * (np.maximum(root - _PQ_C1, 0) / (_PQ_C2 - _PQ_C3 * root)) ** (1 / _PQ_M1)
        return nits / _WHITE_NITS
    if transfer == HLG:
        scene = np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - _HLG_C) / _HLG_A) + _HLG_B) / 12)  # noqa: PLR2004
        luminance = (scene @ _luminance(BT2020))[..., None]
        return scene * luminance ** (_HLG_GAMMA - 1) * (_HLG_PEAK_NITS / _WHITE_NITS)
    return np.where(codes <= 0.04045, codes / 12.92, ((codes + 0.055) / 1.055) ** 2.4)  # noqa: PLR2004 - IEC 61966-2-1


def rolled_off(light: Values, peak: float) -> Values:
    """Light as SDR can show it: unchanged up to the knee, then by its logarithm, until `peak` is 1.

    Linear, then logarithmic is the form of ITU-R BT.2446, method C; the two meet here with one slope. With a peak of 1000
    cd/m2 reference white comes to 0.82, which is 92 % of the signal.
    """
    if peak <= 1:
        return np.minimum(light, 1.0)
    steepness = _steepness(peak)
    over = np.clip(light, _KNEE, peak) - _KNEE
    return np.where(light <= _KNEE, light, _KNEE + np.log1p(steepness * over) / steepness)


def _steepness(peak: float) -> float:
    """The `a` for which log(1 + a * x) / a, which leaves the knee with slope 1, reaches 1 at the peak; by bisection."""
    low, high = 1e-9, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        reached = np.log1p(middle * (peak - _KNEE)) / middle
        low, high = (middle, high) if reached > 1 - _KNEE else (low, middle)
    return high


def _desaturated(light: Values) -> Values:
    """BT.709 light without negative values: mixed with as much grey of its own luminance as that takes."""
    luminance = np.maximum((light @ _luminance(BT709))[..., None], 0.0)
    lowest = light.min(axis=-1, keepdims=True)
    kept = np.where(lowest < 0, luminance / np.maximum(luminance - lowest, 1e-12), 1.0)
    return luminance + (light - luminance) * kept


@cache
def _to_xyz(primaries: int) -> Matrix:
    """RGB light to CIE XYZ, white D65: SMPTE RP 177."""
    xyz = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in _CHROMATICITIES[primaries]]).T
    x, y = _D65
    white = np.array([x / y, 1.0, (1 - x - y) / y])
    return np.asarray(xyz * np.linalg.solve(xyz, white))


def _conversion(primaries: int) -> Matrix:
    return np.asarray(np.linalg.solve(_to_xyz(BT709), _to_xyz(primaries)))


def _luminance(primaries: int) -> Matrix:
    """What red, green and blue add to the luminance."""
    return np.asarray(_to_xyz(primaries)[1])


_ENCODERS: dict[Display, Callable[[Values], Values]] = {
    "bt1886": lambda light: light ** (1 / _BT1886_GAMMA),
    "srgb": lambda light: np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055),  # noqa: PLR2004
}


@lru_cache(maxsize=4)
def table(colour: Colour, display: Display, size: int = TABLE_SIZE) -> npt.NDArray[np.float32]:
    """`to_sdr` on a grid, (size ** 3, 3): red changes fastest, then green."""
    steps = np.linspace(0.0, 1.0, size)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    codes = np.stack([red, green, blue], axis=-1).reshape(-1, 3)
    return to_sdr(codes, colour, display).astype(np.float32)


def cube(colour: Colour, display: Display) -> str:
    """The table as a .cube file."""
    rows: Any = table(colour, display).tolist()
    lines = ["%.5f %.5f %.5f" % tuple(row) for row in rows]  # noqa: UP031 - half the time of an f-string
    return "\n".join([f"LUT_3D_SIZE {TABLE_SIZE}", *lines, ""])

"""What the img2vid benchmark measures with: test pictures, float Lanczos truth, PSNR, SSIM, judder."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from mediamill.media.images import cover_box
from mediamill.media.ken_burns import window_at

Luma = npt.NDArray[np.float32]
WINDOW_PX = 160


def make_picture(path: Path, width_px: int, height_px: int, seed: int) -> Path:
    """A photograph's statistics: a 1/f cloud, overlapping textured discs, a lens's blur, sensor noise, sharp text."""
    rng = np.random.default_rng(seed)
    shape = (3, height_px, width_px // 2 + 1)
    spectrum = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    radius = np.hypot(np.fft.fftfreq(height_px)[:, None], np.fft.rfftfreq(width_px)[None, :])
    radius[0, 0] = 1.0
    cloud = np.fft.irfft2(spectrum / radius, s=(height_px, width_px))
    cloud = np.moveaxis(cloud / cloud.std(axis=(1, 2), keepdims=True), 0, 2).astype(np.float32)
    picture = np.ascontiguousarray(120 + 34 * cloud)
    for _ in range(260):
        x, y = int(rng.integers(0, width_px)), int(rng.integers(0, height_px))
        size = int(min(height_px * 0.22, height_px * 0.012 / max(0.03, rng.random())))
        colour, texture = rng.uniform(20, 235, 3).astype(np.float32), np.float32(rng.uniform(4, 18))
        box = (slice(max(0, y - size), y + size + 1), slice(max(0, x - size), x + size + 1))
        mask = np.zeros(picture[box].shape[:2], np.float32)
        cv2.circle(mask, (x - box[1].start, y - box[0].start), size, 1.0, -1)
        leaf = colour + texture * cloud[box][..., ::-1]
        picture[box] += mask[..., None] * (leaf - picture[box])
    picture = cv2.GaussianBlur(picture, (0, 0), 0.7)
    picture += rng.normal(0, 2.0, picture.shape).astype(np.float32)
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for i in range(6):
        draw.text(
            (width_px * 0.1, height_px * (0.1 + 0.14 * i)),
            "The quick brown fox, 0123456789",
            (245, 245, 235),
            font_size=height_px // (18 + 6 * i),
        )
    image.save(path, quality=92, subsampling="4:2:0")
    return path


def source_luma(path: Path) -> Luma:
    """The picture's bt709 limited-range luma, unrounded."""
    rgb = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
    return (16 + (219 / 255) * (rgb @ np.array([0.2126, 0.7152, 0.0722], np.float32))).astype(np.float32)


def truth(luma: Luma, n: int, frames: int, size: tuple[int, int] = (1920, 1080)) -> Luma:
    """Picture n by float, scale-aware Lanczos-3 with a fractional source box: what the clip ought to show."""
    height_px, width_px = luma.shape
    left, top, right, bottom = cover_box(width_px, height_px, aspect=size[0] / size[1])
    window = window_at(n, frames)
    wide, high = right - left, bottom - top
    box = (
        left + window.left * wide,
        top + window.top * high,
        left + (window.left + window.size) * wide,
        top + (window.top + window.size) * high,
    )
    return np.asarray(Image.fromarray(luma).resize(size, Image.Resampling.LANCZOS, box=box))


def psnr_db(a: Luma, b: Luma) -> float:
    """Peak signal to noise, peak 255."""
    return float(10 * np.log10(255.0**2 / max(1e-12, float(np.mean((a - b) ** 2)))))


def ssim(a: Luma, b: Luma) -> float:
    """Mean structural similarity, Gaussian window of 11, sigma 1.5."""

    def blur(x: Luma) -> Luma:
        return cv2.GaussianBlur(x, (11, 11), 1.5)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(np.mean(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def displacement_px(picture: Luma, reference: Luma) -> npt.NDArray[np.float64]:
    """Shift of 12 windows of a picture against the reference: (12, 2), x and y, by least squares on gradients."""
    height_px, width_px = reference.shape
    found = []
    for row in range(3):
        for column in range(4):
            x = int((column + 0.5) * width_px / 4 - WINDOW_PX / 2)
            y = int((row + 0.5) * height_px / 3 - WINDOW_PX / 2)
            found.append(
                _shift(
                    *(
                        cv2.GaussianBlur(p[y : y + WINDOW_PX, x : x + WINDOW_PX], (5, 5), 1.0)
                        for p in (picture, reference)
                    )
                )
            )
    return np.array(found)


def _shift(a: Luma, b: Luma) -> npt.NDArray[np.float64]:
    mean = (a + b) / 2
    gx = (mean[1:-1, 2:] - mean[1:-1, :-2]).ravel().astype(np.float64) / 2
    gy = (mean[2:, 1:-1] - mean[:-2, 1:-1]).ravel().astype(np.float64) / 2
    difference = (b - a)[1:-1, 1:-1].ravel().astype(np.float64)
    normal = np.array([[gx @ gx, gx @ gy], [gx @ gy, gy @ gy]])
    return np.linalg.solve(normal, np.array([gx @ difference, gy @ difference]))


def judder_px(displacements: list[npt.NDArray[np.float64]]) -> float:
    """RMS of the change of displacement from one picture to the next."""
    steps = np.diff(np.array(displacements), axis=0)
    return float(np.sqrt(np.mean(np.sum(steps**2, axis=2))))

"""From latents to frames: long clips in overlapping stretches, so that the encoder works while the decoder does."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mediamill.engines.diffusers.geometry import Frame, centre_crop
from mediamill.errors import EngineFailed

T = TypeVar("T")

NOT_FINITE = "The model produced values that are not numbers (NaN); nothing was delivered. Try another DTYPE."


def check_finite(values: Any) -> None:
    """Raises EngineFailed when a tensor holds NaN or infinity.

    Either shows in the least or the greatest value: one pass without a copy, a tenth of asking each value on a CPU.
    """
    import torch

    least, greatest = torch.aminmax(values)
    if not bool(torch.isfinite(least) & torch.isfinite(greatest)):
        raise EngineFailed(NOT_FINITE)


def stretches(count: int, *, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Half-open ranges of at most `tile` latents that cover `count`, each overlapping the one before by `overlap`.

    A count that fits one tile is one range: its frames are those of an undivided decode.
    """
    if count <= tile:
        return [(0, count)]
    step = tile - overlap
    starts = range(0, count - overlap, step)
    return [(start, min(start + tile, count)) for start in starts]


def in_stretches(
    decode: Callable[[Any], Any], latents: Any, *, tile: int, overlap: int, frames_per_latent: int
) -> Iterator[Any]:
    """Decoded frames (1, 3, n, H, W) in order, as soon as no later stretch can change them.

    A stretch of latents [a, b) decodes to the frames frames_per_latent * a .. frames_per_latent * (b - 1), both
    included; where two stretches overlap they are blended linearly.

    Args:
        decode: Latents (1, C, f, h, w) to frames (1, 3, frames_per_latent * (f - 1) + 1, H, W).
        latents: (1, C, F, h, w).
        tile: Latent frames decoded at once.
        overlap: Latent frames that two neighbours share; at least 2.
        frames_per_latent: Temporal compression of the autoencoder.
    """
    ranges = stretches(latents.shape[2], tile=tile, overlap=overlap)
    held: Any = None
    for number, (start, stop) in enumerate(ranges):
        decoded = decode(latents[:, :, start:stop])
        if held is not None:
            decoded = _blended(held, decoded)
        if number + 1 == len(ranges):
            yield decoded
            return
        ready = frames_per_latent * (ranges[number + 1][0] - start)
        held = decoded[:, :, ready:]
        yield decoded[:, :, :ready]


def _blended(before: Any, after: Any) -> Any:
    """`after`, its beginning faded in over `before`'s frames of the same moments."""
    import torch

    shared = before.shape[2]
    weight = torch.linspace(0, 1, shared + 2, device=after.device, dtype=after.dtype)[1:-1].view(1, 1, -1, 1, 1)
    mixed = before * (1 - weight) + after[:, :, :shared] * weight
    return torch.cat([mixed, after[:, :, shared:]], dim=2)


def to_frames(parts: Iterator[Any], *, count: int, width_px: int, height_px: int) -> Iterator[Frame]:
    """Exactly `count` frames of the exact size from decoder output in -1..1, rounded as diffusers rounds.

    Pictures are converted one at a time: a whole part in float32 would be several times as large as what it came from.

    Raises: EngineFailed at the first part that is not finite.
    """
    left = count
    for part in parts:
        check_finite(part)
        for picture in part[0].movedim(1, 0)[:left]:
            pixels = picture.float().mul(0.5).add_(0.5).clamp_(0, 1).mul_(255).round_().byte()
            frame = pixels.movedim(0, -1).contiguous().cpu().numpy()
            yield centre_crop(frame, width_px=width_px, height_px=height_px)
        left -= min(left, part.shape[2])
        if left == 0:
            return


class Ahead(Iterator[T]):
    """Runs an iterator in a thread, up to `depth` items ahead. `close` stops it and waits for its thread."""

    def __init__(self, source: Iterator[T], *, depth: int) -> None:
        """Starts at once."""
        self._items: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), daemon=True)
        self._thread.start()

    def _run(self, source: Iterator[T]) -> None:
        import torch

        try:
            with torch.no_grad():  # a thread begins with gradients on
                for item in source:
                    if not self._put(("item", item)):
                        return
            self._put(("end", None))
        except BaseException as error:  # noqa: BLE001 - it is raised again where the items are taken
            self._put(("error", error))

    def _put(self, message: tuple[str, Any]) -> bool:
        while not self._closed.is_set():
            try:
                self._items.put(message, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __next__(self) -> T:
        """The next item; raises what the source raised."""
        kind, value = self._items.get()
        if kind == "item":
            item: T = value
            return item
        if kind == "error":
            raise value
        raise StopIteration

    @property
    def running(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop after the item under way."""
        self._closed.set()
        self._thread.join()

"""How large a picture may be, still or moving."""

from __future__ import annotations

from mediamill.errors import TooLarge, UnsupportedMedia

MAX_PIXELS = 50_000_000
"""Most pixels of one picture; a decoder needs about 4 bytes for each."""
MAX_SIDE_PX = 16_384


def check_size(width_px: int, height_px: int) -> None:
    """Refuse what has no pixels or too many.

    Raises: UnsupportedMedia, TooLarge (naming the size and the limit).
    """
    if width_px < 1 or height_px < 1:
        raise UnsupportedMedia(f"The picture is {width_px}x{height_px}.")
    if width_px * height_px > MAX_PIXELS or max(width_px, height_px) > MAX_SIDE_PX:
        raise TooLarge(
            f"The picture is {width_px}x{height_px}; at most {MAX_PIXELS} pixels and {MAX_SIDE_PX} a side are accepted."
        )

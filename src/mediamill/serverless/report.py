"""What works in this container: FFmpeg, the encoder, the storage."""

from __future__ import annotations

import asyncio
import subprocess

from mediamill import __version__
from mediamill.config import Settings
from mediamill.errors import Misconfigured
from mediamill.media.encoders import choose
from mediamill.media.ffmpeg import binary
from mediamill.model import Json
from mediamill.serverless.slot import BUCKET_VARIABLES, opened_storage


async def report(settings: Settings) -> dict[str, Json]:
    """By running FFmpeg, encoding a picture, and writing, reading and deleting an object.

    Raises: Misconfigured: FFmpeg does not run; StorageError.
    """
    return {
        "version": __version__,
        "ffmpeg": await asyncio.to_thread(_ffmpeg, settings),
        "encoder": (await asyncio.to_thread(choose, settings.encoder)).name,
        "storage": await _storage(settings),
    }


def _ffmpeg(settings: Settings) -> str:
    path = binary(settings.ffmpeg)
    try:
        said = subprocess.run([path, "-version"], check=True, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Misconfigured(f"FFmpeg at {str(path)!r} does not run: {error}.") from error
    return said.splitlines()[0].partition(" Copyright")[0]


async def _storage(settings: Settings) -> str:
    if settings.storage_mode == "memory":
        return f"none: results come back inside the reply; for URLs set {BUCKET_VARIABLES}"
    async with opened_storage(settings) as storage:
        await storage.check()
    return f"{settings.storage_mode}: wrote, read and deleted an object"

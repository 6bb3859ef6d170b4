"""What `mediamill doctor` looks at. Each check answers with facts, or with what is wrong and how to mend it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from mediamill import catalog
from mediamill.config import FAMILIES, Loaded, Settings, variable_part
from mediamill.errors import MediamillError
from mediamill.variables import NAME

OLDEST_POSTGRESQL = 14
_CUDA = "import torch; print(torch.cuda.device_count(), torch.version.cuda)"
_START_TIMEOUT_S = 60.0
_ENDPOINT_TIMEOUT_S = 5.0
_SAMPLES = {
    "Latin": "Ação",
    "Greek": "Γειά",
    "Cyrillic": "Привет",
    "Chinese": "你好",
    "Japanese": "日本",
    "Korean": "안녕",
}


@dataclass(frozen=True)
class Finding:
    """`mend` is None when all is well, else one sentence on what to do."""

    about: str
    fact: str
    mend: str | None = None


async def findings(loaded: Loaded) -> AsyncIterator[Finding]:
    """Every check in turn, the cheap ones first."""
    settings = loaded.settings
    for each in (*unknown(loaded), exposure(settings), disk(settings)):
        yield each
    yield await database(settings)
    yield await storage(settings)
    async for each in elsewhere(settings):
        yield each
    for check in (ffmpeg, encoders, fonts, gpu):
        yield await asyncio.to_thread(check, settings)


def unknown(loaded: Loaded) -> Iterator[Finding]:
    """Variables that mean nothing here, also those about no catalog entry."""
    for sentence in loaded.unknown:
        yield Finding("settings", sentence, "Correct or remove it.")
    known = {variable_part(name) for name in catalog.load()}
    wrong = False
    for field, template in FAMILIES.items():
        variables = {name: template.replace(NAME, name) for name in known | getattr(loaded.settings, field).keys()}
        for name in sorted(variables.keys() - known):
            wrong = True
            accepted = ", ".join(sorted(variables[k] for k in known))
            yield Finding("settings", f"{variables[name]} names no catalog entry", f"Accepted are: {accepted}.")
    if not (loaded.unknown or wrong):
        yield Finding("settings", f"{len(loaded.origins)} given, all known")


def exposure(settings: Settings) -> Finding:
    """Who may call."""
    from mediamill.api.auth import check_exposure

    try:
        check_exposure(settings)
    except MediamillError as error:
        return Finding("API keys", str(error), "Set X_API_KEY.")
    keys = f"{len(settings.keys)} API key(s)" if settings.keys else "no API key: this machine only"
    return Finding("API keys", f"{keys}, serving {settings.host}")


def disk(settings: Settings) -> Finding:
    """Room under the data folder."""
    folder = settings.data_dir.resolve()
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    fact = f"{free_bytes / 1024**3:.1f} GiB free for {str(settings.data_dir)!r}"
    if free_bytes < settings.reserve_bytes:
        mend = "Make room, set MEDIAMILL_DATA_DIR to another disk, or lower MEDIAMILL_DISK_RESERVE_BYTES."
        return Finding("disk", f"{fact}, less than the reserve of {settings.reserve_bytes} bytes", mend)
    return Finding("disk", fact)


async def database(settings: Settings) -> Finding:
    """The PostgreSQL of DATABASE_URL, or that the embedded one starts (a new one, in a folder that is deleted)."""
    from mediamill.serve.postgres import EmbeddedPostgres

    try:
        if settings.database_url is not None:
            return await _version(settings.database_url.get_secret_value(), "DATABASE_URL")
        with tempfile.TemporaryDirectory(prefix="mediamill-doctor-", ignore_cleanup_errors=True) as folder:
            Path(folder).chmod(0o711)  # started by root, the server runs as another user
            async with EmbeddedPostgres(Path(folder) / "postgres", start_timeout_s=_START_TIMEOUT_S) as url:
                return await _version(url, "embedded")
    except (MediamillError, ImportError) as error:
        mend = "Check address, user and password in DATABASE_URL." if settings.database_url else "Set DATABASE_URL."
        return Finding("database", str(error), mend)


async def _version(url: str, which: str) -> Finding:
    from mediamill.jobs.database import Database

    database = Database(url, application="mediamill doctor")
    try:
        async with database.connection() as connection:
            number = int(await connection.fetchval("SHOW server_version_num"))
    finally:
        await database.close()
    fact = f"{which}, PostgreSQL {number // 10000}.{number % 10000}"
    if number // 10000 < OLDEST_POSTGRESQL:
        return Finding("database", fact, f"mediamill needs PostgreSQL {OLDEST_POSTGRESQL} or newer.")
    return Finding("database", fact)


async def storage(settings: Settings) -> Finding:
    """By writing, reading and deleting an object where outputs go."""
    from mediamill.storage import mode_of, open_storage

    try:
        opened = open_storage(settings, public_url="http://127.0.0.1", secret=b"doctor")
        try:
            await opened.check()
            free_bytes = await opened.free_bytes()
        finally:
            await opened.close()
    except MediamillError as error:
        return Finding("storage", f"{mode_of(settings)}: {error}", "Correct the STORAGE_MODE, S3_* or R2_* settings.")
    room = "" if free_bytes is None else f", {free_bytes / 1024**3:.1f} GiB free"
    return Finding("storage", f"{mode_of(settings)}: wrote, read and deleted an object{room}")


async def elsewhere(settings: Settings) -> AsyncIterator[Finding]:
    """What runs on RunPod, and whether its endpoints answer."""
    from mediamill.providers import runpod

    try:
        catalog.check_routes(settings)
    except MediamillError as error:
        yield Finding("RunPod", str(error), "Set it, or correct MEDIAMILL_ROUTES.")
        return
    routed = {entry.name: catalog.endpoint_of(entry, settings) or "" for entry in catalog.routed(settings)}
    if not routed:
        yield Finding("RunPod", "no model runs there")
        return
    client = runpod.Client(settings)
    try:
        for name, endpoint in routed.items():
            try:
                told = await client.health(endpoint, timeout_s=_ENDPOINT_TIMEOUT_S)
            except MediamillError as error:
                mend = f"Correct RUNPOD_API_KEY, RUNPOD_{variable_part(name)}_ENDPOINT_ID or MEDIAMILL_ROUTES."
                yield Finding("RunPod", f"{name} runs there: {error}", mend)
            else:
                yield Finding("RunPod", f"{name} runs on endpoint {endpoint}, workers: {told.get('workers')}")
    finally:
        await client.close()


def ffmpeg(settings: Settings) -> Finding:
    """That the binary runs."""
    from mediamill.media.ffmpeg import binary

    try:
        path = binary(settings.ffmpeg)
        said = subprocess.run([path, "-version"], check=True, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError, MediamillError) as error:
        return Finding("FFmpeg", str(error), "Correct MEDIAMILL_FFMPEG, or unset it to use the one that comes along.")
    return Finding("FFmpeg", said.splitlines()[0].partition(" Copyright")[0])


def encoders(settings: Settings) -> Finding:
    """Which encoders work, by encoding a picture with each."""
    from mediamill.media.encoders import choose, works

    usable = [name for name in ("h264_nvenc", "libx264", "libsvtav1") if works(name)]
    chosen = choose(settings.encoder).name
    fact = f"{', '.join(usable) or 'none'} work; H.264 by {chosen}"
    return Finding("encoders", fact, None if chosen in usable else "Set MEDIAMILL_ENCODER=auto.")


def fonts(settings: Settings) -> Finding:
    """That the scripts promised for captions have glyphs."""
    from mediamill.media.fonts import uncovered

    missing = [script for script, text in _SAMPLES.items() if uncovered(text, settings.fonts_dir)]
    if missing:
        return Finding("fonts", f"no glyphs for {', '.join(missing)}", "Put fonts into a folder: MEDIAMILL_FONTS_DIR.")
    return Finding("fonts", f"glyphs for {', '.join(_SAMPLES)}")


def gpu(_settings: Settings) -> Finding:
    """NVIDIA devices, and whether torch sees them. None is no fault: generation is slow then."""
    from mediamill.serve.pools import gpu_count

    devices = gpu_count()
    if not devices:
        return Finding("GPU", "none: generation runs on the CPU, slowly")
    try:
        said = subprocess.run([sys.executable, "-c", _CUDA], capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError):
        return Finding("GPU", f"{devices} device(s), torch is not installed", "pip install 'mediamill[diffusers]'.")
    seen, _, cuda = said.stdout.strip().partition(" ")
    if seen == "0":
        mend = "Install a torch built for CUDA, and a driver that is new enough for it."
        return Finding("GPU", f"{devices} device(s), torch (CUDA {cuda}) sees none", mend)
    return Finding("GPU", f"{seen} device(s), CUDA {cuda}")

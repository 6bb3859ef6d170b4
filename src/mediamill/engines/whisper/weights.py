"""Where a Whisper model's files are, and how they come here. Imports no ML library: the API asks what is at hand."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from mediamill.catalog.transcribe import REPOS
from mediamill.errors import Cancelled, ModelUnavailable

_NEEDED = ("model.bin", "config.json", "tokenizer.json")
_PATTERNS = ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Location:
    """Where a model is configured to be."""

    name: str
    """As requested: tiny ... turbo."""
    source: str
    """A local folder or a repo id."""
    variable: str | None
    """The setting that says so; None: the default."""

    @property
    def is_repo(self) -> bool:
        """Whether it is the id of a repository rather than a folder here."""
        return not Path(self.source).expanduser().exists() and _REPO.fullmatch(self.source) is not None


def variable_of(name: str) -> str:
    """The setting that places one model: `MEDIAMILL_MODEL_WHISPER_LARGE_V3`."""
    return f"MEDIAMILL_MODEL_WHISPER_{name.upper().replace('-', '_')}"


def locate(name: str, settings: Mapping[str, str]) -> Location:
    """Look a model up in the settings: its own variable, its short one, the one for all models; else its repo."""
    short = variable_of(name).replace("WHISPER_", "")
    for variable in (variable_of(name), short, "MEDIAMILL_MODEL_TRANSCRIBE"):
        if settings.get(variable):
            return Location(name, settings[variable], variable)
    return Location(name, REPOS[name], None)


def at_hand(location: Location, hub_cache: Path) -> Path | None:
    """The folder with all files of the model, or None when it would have to be fetched.

    Raises: ModelUnavailable: the setting names a folder that is missing or lacks files.
    """
    if not location.is_repo:
        folder = Path(location.source).expanduser()
        missing = [n for n in _NEEDED if not (folder / n).is_file()]
        if missing:
            place = f"{location.variable}={location.source!r}"
            raise ModelUnavailable(
                f"{place} must name a folder with a CTranslate2 Whisper model; it lacks {', '.join(missing)}."
            )
        return folder
    root = hub_cache / f"models--{location.source.replace('/', '--')}"
    main = root / "refs" / "main"
    wanted = [main.read_text().strip()] if main.is_file() else []
    snapshots = root / "snapshots"
    others = sorted(p.name for p in snapshots.iterdir()) if snapshots.is_dir() else []
    for revision in dict.fromkeys([*wanted, *others]):
        folder = snapshots / revision
        if all((folder / n).is_file() for n in _NEEDED):
            return folder
    return None


class Download:
    """Fetches a model while being iterated; then `folder` is there."""

    def __init__(self, location: Location, hub_cache: Path, cancelled: threading.Event) -> None:
        """`hub_cache`: where huggingface_hub keeps repositories."""
        self._location, self._hub_cache, self._cancelled = location, hub_cache, cancelled
        self.folder: Path | None = None

    def __iter__(self) -> Iterator[tuple[float, str]]:
        """Yield the share done and a sentence, twice a second.

        Raises: ModelUnavailable saying how to get the files, Cancelled.
        """
        source = self._location.source
        pool = ThreadPoolExecutor(2, thread_name_prefix="download")
        try:
            whole = pool.submit(_whole_bytes, source)
            fetching = pool.submit(_fetch, source, self._hub_cache)
            while self.folder is None:
                yield self._news(whole)
                try:
                    self.folder = fetching.result(timeout=0.5)
                except NotYet:
                    if self._cancelled.is_set():
                        raise Cancelled from None
            yield 1.0, f"downloaded {source}: {_done_bytes(self._hub_cache, source) / 1e6:.0f} MB"
        except OSError as error:  # huggingface_hub's errors are OSErrors, whatever the cause
            raise ModelUnavailable(unavailable(self._location, error)) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _news(self, whole: Future[int]) -> tuple[float, str]:
        source, done_bytes = self._location.source, _done_bytes(self._hub_cache, self._location.source)
        whole_bytes = whole.result() if whole.done() and whole.exception() is None else 0
        if not whole_bytes:
            return 0.0, f"downloading {source}: {done_bytes / 1e6:.0f} MB"
        share = min(1.0, done_bytes / whole_bytes)
        return share, f"downloading {source}: {done_bytes / 1e6:.0f} of {whole_bytes / 1e6:.0f} MB"


def unavailable(location: Location, error: Exception | None = None) -> str:
    """One sentence: what is missing and the ways to get it."""
    reason = f" ({type(error.__cause__ or error).__name__})" if error is not None else ""
    return (
        f"The weights of model {location.name!r} ({location.source}) are not on this machine and could not be "
        f"downloaded{reason}. Run `hf download {location.source}` where there is a network, or set "
        f"{variable_of(location.name)} to a folder that holds them."
    )


def _fetch(repo: str, hub_cache: Path) -> Path:
    from faster_whisper.utils import disabled_tqdm
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repo, cache_dir=hub_cache, allow_patterns=list(_PATTERNS), tqdm_class=disabled_tqdm, etag_timeout=10
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
        raise OSError(str(error)) from error
    missing = [n for n in _NEEDED if not (Path(folder) / n).is_file()]
    if missing:
        raise OSError(f"the repository has no {', '.join(missing)}")
    return Path(folder)


def _whole_bytes(repo: str) -> int:
    """Size of the files to fetch. Raises whatever the hub's client raises."""
    from huggingface_hub import HfApi

    files = HfApi().model_info(repo, files_metadata=True, timeout=10).siblings or []
    return sum(f.size or 0 for f in files if any(fnmatch(f.rfilename, pattern) for pattern in _PATTERNS))


def _done_bytes(hub_cache: Path, repo: str) -> int:
    blobs = hub_cache / f"models--{repo.replace('/', '--')}" / "blobs"
    return sum(p.stat().st_size for p in blobs.iterdir()) if blobs.is_dir() else 0

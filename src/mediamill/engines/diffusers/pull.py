"""Download a repo's pipeline into the hub's cache, with progress; only the files a pipeline needs."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mediamill.engines.diffusers import locate
from mediamill.errors import ModelUnavailable

OnBytes = Callable[[int, int], None]
"""`on_bytes(done, total)`, called a few times a second; what it raises ends the pull."""

_POLL_S = 0.25
_SKIPPED = ("*.bin", "*.msgpack", "*.onnx", "*.onnx_data", "*.h5", "*.pb", "*.fp16.safetensors", "*.md")


def allowed(source: str) -> bool:
    """Whether a job may fetch missing weights itself: a repo id, the hub installed and not switched off."""
    if not locate.is_repo_id(source) or importlib.util.find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE


def index(source: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """What pipeline a repo holds: its model_index.json, fetched into the cache. Raises: ModelUnavailable, as `pull`."""
    with _hub_errors(source):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        logging.getLogger("huggingface_hub").handlers.clear()  # what it says is in our log, too
        path = hf_hub_download(source, "model_index.json", **_common(settings))
        found = json.loads(Path(path).read_text())
    return found if isinstance(found, dict) else {}


def _common(settings: Mapping[str, str]) -> dict[str, Any]:
    return {"cache_dir": locate.cache_folders(settings)[0], "token": settings.get("HF_TOKEN") or None}


def pull(source: str, settings: Mapping[str, str], *, on_bytes: OnBytes) -> Path:
    """Fetch the pipeline of a repo id, continuing what was begun; returns its folder.

    Raises: ModelUnavailable: no such repo, no access, no network, no room, or not a pipeline in diffusers' format.
    """
    parts = [name for name, value in index(source, settings).items() if isinstance(value, list)]
    with _hub_errors(source):
        import huggingface_hub as hub

        common = _common(settings)
        patterns = ["model_index.json", *(f"{name}/*" for name in parts)]
        total = _total_bytes(hub.HfApi(), source, patterns, common["token"])
        blobs = common["cache_dir"] / f"models--{source.replace('/', '--')}" / "blobs"
        ended = threading.Event()
        result: list[Any] = []

        def fetch() -> None:
            try:
                result.append(
                    hub.snapshot_download(source, allow_patterns=patterns, ignore_patterns=list(_SKIPPED), **common)
                )
            except BaseException as error:  # noqa: BLE001 - raised again below
                result.append(error)
            finally:
                ended.set()

        threading.Thread(target=fetch, name="pull", daemon=True).start()
        while not ended.wait(_POLL_S):
            on_bytes(min(_bytes_in(blobs), total), total)
        if isinstance(result[0], BaseException):
            raise result[0]
        on_bytes(total, total)
        return Path(result[0])


def cached(source: str, settings: Mapping[str, str]) -> list[Path]:
    """Folders of a repo in the caches."""
    name = f"models--{source.replace('/', '--')}"
    return [cache / name for cache in locate.cache_folders(settings) if (cache / name).is_dir()]


def remove(source: str, settings: Mapping[str, str]) -> None:
    """Delete a repo from every cache."""
    for home in cached(source, settings):
        shutil.rmtree(home)


def _total_bytes(api: Any, source: str, patterns: Sequence[str], token: str | None) -> int:
    from fnmatch import fnmatch

    files = api.model_info(source, files_metadata=True, token=token).siblings or []
    return sum(
        f.size or 0
        for f in files
        if any(fnmatch(f.rfilename, p) for p in patterns) and not any(fnmatch(f.rfilename, p) for p in _SKIPPED)
    )


def _bytes_in(blobs: Path) -> int:
    return sum(p.stat().st_size for p in blobs.iterdir() if p.is_file()) if blobs.is_dir() else 0


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    """The hub's errors as ours: what is wrong in one sentence, without URLs or tokens."""
    try:
        import httpx2
        from huggingface_hub import errors as hub
    except ImportError as error:
        raise ModelUnavailable("Pulling models needs more packages: install mediamill[diffusers].") from error
    try:
        yield
    except (hub.RepositoryNotFoundError, hub.GatedRepoError) as error:
        why = "is not there, or needs an account that may read it: set HF_TOKEN"
        raise ModelUnavailable(f"The repo {source} {why}.") from error
    except hub.RemoteEntryNotFoundError as error:
        raise ModelUnavailable(f"The repo {source} has no model_index.json: it is no diffusers pipeline.") from error
    except (hub.HfHubHTTPError, hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, httpx2.HTTPError) as error:
        why = f"The hub cannot be reached to fetch {source} ({type(error).__name__})"
        raise ModelUnavailable(f"{why}; a local folder can be given by MEDIAMILL_MODEL_<NAME>.") from error
    except OSError as error:
        raise ModelUnavailable(f"Fetching {source} failed: {error.strerror or type(error).__name__}.") from error

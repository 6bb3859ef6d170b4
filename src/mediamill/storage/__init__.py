"""Where bytes are kept: `open_storage` picks the backend; keys and this service's own URLs are judged here for all."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import quote, unquote, urlsplit

from mediamill import keys, plugins
from mediamill.config import Settings, StorageMode
from mediamill.errors import InvalidRequest, Misconfigured
from mediamill.model import Storage

__all__ = ["LocalUrls", "OnDisk", "checked_key", "folder_prefix", "mode_of", "open_storage"]

_UNGUESSABLE = re.compile(
    r"(outputs|uploads|previews)/[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}/."
)
_NOT_YET: frozenset[StorageMode] = frozenset({"gcs", "supabase", "stateless"})


@runtime_checkable
class OnDisk(Protocol):
    """A storage whose objects are files of this machine, so that they can be linked instead of copied."""

    def path_of(self, key: str) -> Path:
        """The object's file; it may not exist. Read only: it is replaced, never changed in place."""
        ...


def open_storage(settings: Settings, *, public_url: str, secret: bytes) -> Storage:
    """The storage in force.

    Args:
        settings: Its `storage_mode`, else what the S3 and R2 variables say, else file storage.
        public_url: Base of this service as callers see it; the API serves `/files/<key>` below it.
        secret: Signs this service's own URLs; equal in all processes.

    Raises:
        Misconfigured: a setting is missing, or the mode is not available.
    """
    mode = mode_of(settings)
    if mode in _NOT_YET:
        raise Misconfigured(f"STORAGE_MODE={mode} is not available yet; use file or s3.")
    module = plugins.load("storage", mode)
    storage: Storage = module.create(settings, public_url=public_url, secret=secret)
    return storage


def mode_of(settings: Settings) -> StorageMode:
    """The storage mode in force: as set, else s3 when any S3 or R2 place is named, else file."""
    if settings.storage_mode is not None:
        return settings.storage_mode
    named = (settings.s3_bucket, settings.s3_endpoint, settings.r2_bucket, settings.r2_endpoint, settings.r2_account_id)
    return "s3" if any(named) else "file"


def checked_key(key: str) -> str:
    """`key` itself when it is safe everywhere. Raises InvalidRequest naming it and what is wrong."""
    parts = key.split("/")
    if not key or key.startswith("/") or "" in parts:
        wrong = "is empty, absolute, or has an empty component"
    elif {".", ".."} & set(parts):
        wrong = "has a component '.' or '..'"
    elif parts[0] == keys.PRIVATE:
        wrong = f"lies in the reserved folder {keys.PRIVATE!r}"
    elif any(unicodedata.category(c) in {"Cc", "Cs"} or c == "\\" for c in key):
        wrong = "has a control character or a backslash"
    elif len(key.encode()) > keys.MAX_KEY_BYTES or any(len(p.encode()) > keys.MAX_COMPONENT_BYTES for p in parts):
        wrong = f"is longer than {keys.MAX_KEY_BYTES} bytes, or a component is longer than {keys.MAX_COMPONENT_BYTES}"
    else:
        return key
    shown = key if len(key) <= 80 else key[:77] + "..."  # noqa: PLR2004 - one short line
    raise InvalidRequest(f"The key {shown!r} {wrong}; accepted: a relative path like 'project/videos/clip.mp4'.")


def folder_prefix(prefix: str) -> str:
    """A listing prefix as a folder: "" for all, else ending with "/". "a/b" never means "a/bc"."""
    stripped = prefix.strip("/")
    return f"{checked_key(stripped)}/" if stripped else ""


@dataclass(frozen=True)
class LocalUrls:
    """URLs of objects that this service's API serves itself, at `{public_url}/files/{key}`.

    A key that nobody can guess is its own permission. Any other (a caller's `path` is guessable), and every key when
    URLs expire, carries a signature: `?s=` or `?e=<unix seconds>&s=`.
    """

    public_url: str
    secret: bytes
    ttl_s: int = 0
    clock: Callable[[], float] = time.time

    def url(self, key: str) -> str:
        """The URL of a key, percent-encoded."""
        plain = f"{self._base}{quote(checked_key(key))}"
        if self.ttl_s:
            expires = int(self.clock()) + self.ttl_s
            return f"{plain}?e={expires}&s={self._signature(key, str(expires))}"
        return plain if _UNGUESSABLE.match(key) else f"{plain}?s={self._signature(key, '')}"

    def allows(self, key: str, *, expires: str | None = None, signature: str | None = None) -> bool:
        """Whether a caller without an API key may read `key`, given the URL's `e` and `s`."""
        if signature is None:
            return not self.ttl_s and _UNGUESSABLE.match(key) is not None
        if not hmac.compare_digest(self._signature(key, expires or "").encode(), signature.encode()):
            return False
        if not expires:
            return not self.ttl_s
        return self.clock() < int(expires)

    def key_of(self, url: str) -> str | None:
        """The key when the URL is one of ours, signed or not, expired or not; else None."""
        parts = urlsplit(url)
        plain = f"{parts.scheme}://{parts.netloc}{parts.path}"
        if not plain.startswith(self._base):
            return None
        try:
            return checked_key(unquote(plain.removeprefix(self._base), errors="strict"))
        except (InvalidRequest, UnicodeDecodeError):
            return None

    @property
    def _base(self) -> str:
        return f"{self.public_url.rstrip('/')}/files/"

    def _signature(self, key: str, expires: str) -> str:
        return hmac.new(self.secret, f"{expires}\n{key}".encode(), hashlib.sha256).hexdigest()[:40]

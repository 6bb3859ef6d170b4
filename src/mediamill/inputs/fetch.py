"""One URL into one open file: capped in bytes and seconds, resumed when the connection drops."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import BinaryIO

import aiohttp
from yarl import URL

from mediamill.errors import InputUnreachable, TooLarge
from mediamill.inputs.guard import AddressRefused, UrlGuard

_log = logging.getLogger(__name__)

MAX_REDIRECTS = 5
_TRIES = 4
_CONNECT_S = 10.0
_CHUNK_BYTES = 256 * 1024
_SETTLED = timedelta(minutes=1)
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Validators:
    """What a server said about its version of a file; asks whether it is still the same."""

    etag: str | None = None
    last_modified: str | None = None

    @property
    def strong(self) -> str | None:
        """What a resumed download may rely on: a strong ETag, else the date."""
        weak = self.etag is None or self.etag.startswith("W/")
        return self.last_modified if weak else self.etag


@dataclass(frozen=True)
class Limits:
    """`stall_s`: longest silence of a server. `pause_s`: before the second try; four times as long before each next."""

    max_bytes: int
    timeout_s: float
    stall_s: float = 30.0
    pause_s: float = 0.2


@dataclass(frozen=True)
class Fetched:
    """What was written. `unchanged`: nothing was, the server still has the version that was asked about."""

    size_bytes: int
    sha256: str
    validators: Validators
    unchanged: bool = False


class _Dropped(Exception):
    """This try came to nothing; another may not. `pause_s`: what the server asked for."""

    def __init__(self, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


@dataclass
class _Download:
    """What is in the file so far."""

    file: BinaryIO
    size_bytes: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    validators: Validators = Validators()
    resumable: bool = False

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.size_bytes = 0
        self.digest = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.file.write(chunk)
        self.size_bytes += len(chunk)


async def fetch(
    guard: UrlGuard, url: str, file: BinaryIO, *, name: str, limits: Limits, known: Validators | None = None
) -> Fetched:
    """Download `url` into the empty, open `file`.

    Args:
        guard: Judges every connection and redirect.
        url: http(s); its credentials and query never reach a message.
        file: Opened for reading and writing; flushed on return, the caller's to close.
        name: The request field, for messages.
        limits: Largest size and longest time over all tries.
        known: Ask only for another version than this one.

    Raises:
        InputUnreachable: the guard refused, the server did, or it failed too often. TooLarge: above `max_bytes`.
    """
    download = _Download(file)
    where = f"{name}: {URL(url).host}"
    try:
        async with asyncio.timeout(limits.timeout_s):
            return await _until_done(guard, url, download, where=where, limits=limits, known=known)
    except TimeoutError as error:
        raise InputUnreachable(f"{where} did not deliver the file within {limits.timeout_s:g} s.") from error


async def _until_done(
    guard: UrlGuard, url: str, download: _Download, *, where: str, limits: Limits, known: Validators | None
) -> Fetched:
    reason = ""
    for pause_s in (*_pauses(limits.pause_s), None):
        try:
            return await _once(guard, url, download, where=where, limits=limits, known=known)
        except _Dropped as dropped:
            reason = str(dropped)
            if pause_s is None:
                break
            _log.info("input download interrupted", extra={"host": URL(url).host, "reason": reason})
            await asyncio.sleep(max(pause_s, dropped.pause_s or 0.0))
    raise InputUnreachable(f"{where} {reason} ({_TRIES} tries).")


def _pauses(first_s: float) -> Iterator[float]:
    for number in range(_TRIES - 1):
        yield first_s * 4**number * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load


async def _once(
    guard: UrlGuard, url: str, download: _Download, *, where: str, limits: Limits, known: Validators | None
) -> Fetched:
    """One request. Raises _Dropped where another may succeed."""
    session = await guard.session()
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=limits.stall_s)
    headers = _headers(download, known)
    try:
        async with session.get(url, headers=headers, timeout=timeout, max_redirects=MAX_REDIRECTS) as response:
            if known is not None and response.status == HTTPStatus.NOT_MODIFIED:
                return Fetched(0, "", known, unchanged=True)
            _accept(response, download, where)
            await _receive(response, download, where, limits.max_bytes)
    except aiohttp.ServerTimeoutError as error:
        raise _Dropped("stopped answering") from error
    except aiohttp.TooManyRedirects as error:
        raise InputUnreachable(f"{where} redirects more than {MAX_REDIRECTS} times.") from error
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        raise InputUnreachable(f"{where} leads to something that is not an http(s) URL.") from error
    except aiohttp.ClientConnectorCertificateError as error:
        raise InputUnreachable(f"{where} has no valid certificate.") from error
    except aiohttp.ClientError as error:
        if refusal := _refusal(error):
            host = refusal.host or getattr(error, "host", None) or URL(url).host
            led = "" if host == URL(url).host else f" leads to {host}, which"
            raise InputUnreachable(f"{where}{led} may not be used: {refusal}.") from error
        raise _Dropped(_sentence(error)) from error
    download.file.flush()
    return Fetched(download.size_bytes, download.digest.hexdigest(), download.validators)


def _headers(download: _Download, known: Validators | None) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity", "Accept": "*/*"}
    if download.size_bytes and download.resumable and download.validators.strong:
        headers |= {"Range": f"bytes={download.size_bytes}-", "If-Range": download.validators.strong}
    elif known is not None and known.etag:
        headers["If-None-Match"] = known.etag
    elif known is not None and known.last_modified:
        headers["If-Modified-Since"] = known.last_modified
    return headers


def _accept(response: aiohttp.ClientResponse, download: _Download, where: str) -> None:
    """Decide by status and headers how the body goes on: appended, or from the start."""
    if response.status in _AGAIN:
        raise _Dropped(f"answered HTTP {response.status}", _asked_pause_s(response))
    if response.status == HTTPStatus.PARTIAL_CONTENT and download.size_bytes:
        found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if found and int(found[1]) == download.size_bytes:
            return
        download.restart()
        raise _Dropped("sent another part of the file than was asked for")
    if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and download.size_bytes:
        download.restart()
        raise _Dropped("answered HTTP 416")
    if response.status != HTTPStatus.OK:
        raise InputUnreachable(f"{where} answered HTTP {response.status}.")
    download.restart()
    download.validators = _validators(response)
    plain = response.headers.get("Content-Encoding", "identity").lower() == "identity"
    download.resumable = plain and response.headers.get("Accept-Ranges", "bytes").lower() == "bytes"


def _validators(response: aiohttp.ClientResponse) -> Validators:
    """The date counts only when it is old: a file may change twice within its second."""
    etag, last_modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
    try:
        age = parsedate_to_datetime(response.headers["Date"]) - parsedate_to_datetime(last_modified or "")
    except (KeyError, ValueError, TypeError):
        return Validators(etag)
    return Validators(etag, last_modified if age >= _SETTLED else None)


async def _receive(response: aiohttp.ClientResponse, download: _Download, where: str, max_bytes: int) -> None:
    if download.size_bytes + (response.content_length or 0) > max_bytes:
        raise _too_large(where, max_bytes)
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        if download.size_bytes + len(chunk) > max_bytes:
            raise _too_large(where, max_bytes)
        download.write(chunk)


def _too_large(where: str, max_bytes: int) -> TooLarge:
    return TooLarge(f"{where} has a file of more than {max_bytes} bytes; at most that is accepted.")


def _asked_pause_s(response: aiohttp.ClientResponse) -> float | None:
    asked = response.headers.get("Retry-After", "")
    return min(float(asked), 30.0) if re.fullmatch(r"\d{1,6}", asked) else None


def _refusal(error: BaseException) -> AddressRefused | None:
    """What the guard said, wherever it stands among the causes."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, AddressRefused):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _sentence(error: aiohttp.ClientError) -> str:
    """What happened, without the client's text: that may quote the URL."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "is not a known host name"
    if isinstance(error, aiohttp.ClientSSLError):
        return "failed to set up an encrypted connection"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "cannot be connected to"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return "broke off the transfer"
    return "failed to answer"

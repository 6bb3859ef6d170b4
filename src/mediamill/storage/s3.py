"""Objects in a bucket of an S3-compatible store: S3, R2, MinIO. Always path style: `endpoint/bucket/key`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, GenericError, PreconditionError
from obstore.store import S3Store

from mediamill.config import Settings
from mediamill.errors import InvalidRequest, Misconfigured, NotFound, StorageError, StorageRefused, StorageUnavailable
from mediamill.model import StoredObject
from mediamill.storage import checked_key, folder_prefix

if TYPE_CHECKING:
    # These exist for type checkers only.
    from obstore import GetOptions, GetResult
    from obstore.store import ClientConfig, S3Credential

_PART_BYTES = 8 * 1024**2
_MOST_PARTS = 9_000
"""The store's limit is 10,000 for one object."""
_WINDOW_BYTES = 8 * 1024**2
_COPY_LIMIT_BYTES = 5 * 1024**3
"""Above this one copy request is refused by S3."""
_LONGEST_SIGNED_S = 7 * 24 * 3600
_CHECK_WITHIN_S = 30.0
_CONNECT_WITHIN = timedelta(seconds=5)
_WITHIN = timedelta(seconds=120)
"""One request with its answer: 8 MiB are sent or read in this time by the slowest line that is served.

The client would count the time of sending as silence, so requests that send have this limit alone.
"""

_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_HTTP_STATUS = re.compile(r"status code: (\d{3})")


@dataclass(frozen=True)
class Bucket:
    """Where the objects lie and how callers reach them. `public_url`: the base of public object URLs.

    `signed_s`: URLs are presigned for this long; 0: plain public ones.
    """

    endpoint: str
    region: str
    name: str
    access_key_id: str
    secret_access_key: str
    public_url: str
    signed_s: int = 0


def create(settings: Settings, *, public_url: str, secret: bytes) -> S3Storage:
    """The bucket that the S3 variables name, else the one that the R2 variables name.

    Raises:
        Misconfigured: a variable is missing or no URL; the message names it.
    """
    del public_url, secret  # callers are served by the bucket itself
    return S3Storage(bucket_of(settings))


def bucket_of(settings: Settings) -> Bucket:
    """The bucket in force. Raises Misconfigured naming each variable that is missing."""
    s = settings
    r2_endpoint = s.r2_endpoint or (f"https://{s.r2_account_id}.r2.cloudflarestorage.com" if s.r2_account_id else None)
    name = s.s3_bucket or s.r2_bucket
    key_id = s.s3_access_key_id or s.r2_access_key_id
    secret_key = s.s3_secret_access_key or s.r2_secret_access_key
    wanted = {"S3_BUCKET": name, "S3_ACCESS_KEY_ID": key_id, "S3_SECRET_ACCESS_KEY": secret_key}
    missing = [variable for variable, value in wanted.items() if not value]
    if missing or name is None or key_id is None or secret_key is None:
        raise Misconfigured(f"S3 storage needs {', '.join(missing)}; or set STORAGE_MODE=file.")
    uses_r2 = s.s3_endpoint is None and r2_endpoint is not None
    endpoint = (s.s3_endpoint or r2_endpoint or f"https://s3.{s.s3_region}.amazonaws.com").rstrip("/")
    public_url = s.s3_public_url or s.r2_public_url or f"{endpoint}/{name}"
    for variable, url in (("S3_ENDPOINT", endpoint), ("S3_PUBLIC_URL", public_url)):
        if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
            raise Misconfigured(f"{variable} is {url!r}; accepted: a URL like https://s3.example.com.")
    return Bucket(
        endpoint=endpoint,
        region="auto" if uses_r2 else s.s3_region,
        name=name,
        access_key_id=key_id.get_secret_value(),
        secret_access_key=secret_key.get_secret_value(),
        public_url=public_url.rstrip("/"),
        signed_s=s.url_ttl_s or (_LONGEST_SIGNED_S if s.s3_presign else 0),
    )


class S3Storage:
    """Storage in one bucket. A put is visible as a whole or not at all; sha256 travels as object metadata."""

    def __init__(
        self, bucket: Bucket, *, retries: int = 4, retry_timeout_s: float = 60.0, silence_s: float = 15.0
    ) -> None:
        """Nothing is sent yet; `check` tells whether it works.

        Args:
            bucket: Where.
            retries: After the first try of each request, on connection errors, 429 and 5xx.
            retry_timeout_s: No further retry starts after this time.
            silence_s: A request that sends nothing (read, look, list, delete) fails when no byte comes for so long.
        """
        self.bucket = bucket
        credential: S3Credential = {
            "access_key_id": bucket.access_key_id,
            "secret_access_key": bucket.secret_access_key,
            "token": None,
            "expires_at": None,
        }

        def client(options: ClientConfig) -> S3Store:
            return S3Store(
                bucket.name,
                endpoint=bucket.endpoint,
                region=bucket.region,
                virtual_hosted_style_request=False,
                # A provider, and signing said aloud: AWS_* variables of the environment are not ours to obey.
                credential_provider=lambda: credential,
                skip_signature=False,
                client_options={"allow_http": True, **options},
                retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=retry_timeout_s)},
            )

        limits: ClientConfig = {"connect_timeout": _CONNECT_WITHIN, "timeout": _WITHIN}
        self._sending = client(limits)
        self._asking = client({**limits, "read_timeout": timedelta(seconds=silence_s)})

    async def put(self, key: str, source: Path, *, media_type: str) -> StoredObject:
        """Upload the whole file, in parts when large; its size is read back from the store."""
        size_bytes, sha256 = await asyncio.to_thread(_measured, source)
        with self._mapped("write"):
            await obstore.put_async(
                self._sending,
                checked_key(key),
                source,
                attributes={"Content-Type": media_type, "sha256": sha256},
                chunk_size=_part_bytes(size_bytes),
                max_concurrency=4,
            )
            written = (await obstore.head_async(self._asking, key))["size"]
        if written != size_bytes:
            raise StorageUnavailable(f"{self._place} holds {written} bytes of {key!r}; {size_bytes} were sent.")
        return StoredObject(key, size_bytes, sha256, media_type)

    async def copy(self, source_key: str, key: str) -> None:
        """Copy inside the store with media type and sha256. Raises NotFound without a source."""
        with self._mapped("write", checked_key(source_key)):
            meta = await obstore.head_async(self._asking, source_key)
            if meta["size"] <= _COPY_LIMIT_BYTES:
                await obstore.copy_async(self._sending, source_key, checked_key(key))
                return
            source = await self.stat(source_key)
            await obstore.put_async(
                self._sending,
                checked_key(key),
                self.open(source_key),
                attributes={"Content-Type": source.media_type, "sha256": source.sha256},
                chunk_size=_part_bytes(meta["size"]),
                max_concurrency=4,
            )

    async def stat(self, key: str) -> StoredObject:
        """Size, media type and sha256 ("" for an object that something else wrote). Raises NotFound."""
        with self._mapped("read", checked_key(key)):
            found = await obstore.get_async(self._asking, key, options={"head": True})
        attributes = found.attributes
        media_type = attributes.get("Content-Type", "application/octet-stream")
        return StoredObject(key, found.meta["size"], attributes.get("sha256", ""), media_type)

    async def open(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Stream bytes start (inclusive) to end (exclusive). Raises NotFound at the first step.

        Read in windows, each its own request with its own retries, all of the same version of the object.
        """
        with self._mapped("read", checked_key(key)):
            meta = await obstore.head_async(self._asking, key) if end is not None and end <= start else None
        options: GetOptions = {}
        at, stop = start, end if meta is None else start
        while stop is None or at < stop:
            options["range"] = (at, at + _WINDOW_BYTES if stop is None else min(at + _WINDOW_BYTES, stop))
            with self._mapped("read", key):
                part = await self._window(key, options)
                chunk = bytes(await part.bytes_async()) if part else b""
            if part is None or not chunk:
                return
            yield chunk
            at += len(chunk)
            if version := part.meta["e_tag"]:
                options["if_match"] = version
            stop = part.meta["size"] if stop is None else min(stop, part.meta["size"])

    async def _window(self, key: str, options: GetOptions) -> GetResult | None:
        """One ranged read; None when the range begins at or behind the object's end."""
        try:
            return await obstore.get_async(self._asking, key, options=options)
        except GenericError as error:
            if _http_status(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return None
            raise

    async def delete(self, key: str) -> None:
        """Delete; a missing key is no error."""
        with contextlib.suppress(NotFound), self._mapped("delete", checked_key(key)):
            await obstore.delete_async(self._asking, key)

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, datetime]]:
        """Keys below a folder with their last modification, in key order."""
        with self._mapped("list"):
            async for page in obstore.list(self._asking, folder_prefix(prefix) or None):
                for meta in page:
                    yield meta["path"], meta["last_modified"]

    async def url(self, key: str) -> str:
        """The public URL, or a presigned one, percent-encoded."""
        if not self.bucket.signed_s:
            return f"{self.bucket.public_url}/{quote(checked_key(key))}"
        expires_in = timedelta(seconds=self.bucket.signed_s)
        with self._mapped("sign"):
            return await obstore.sign_async(self._asking, "GET", checked_key(key), expires_in)

    def key_of(self, url: str) -> str | None:
        """The key when `url` is one of this bucket's: public, path style or host style, presigned or not."""
        parts = urlsplit(url)
        plain = f"{parts.scheme}://{parts.netloc}{parts.path}"
        for base in self._bases():
            if plain.startswith(f"{base}/"):
                with contextlib.suppress(InvalidRequest, UnicodeDecodeError):
                    return checked_key(unquote(plain[len(base) + 1 :], errors="strict"))
        return None

    async def check(self) -> None:
        """Write, read and delete a small object; raises StorageError with what to mend."""
        key = f"checks/{secrets.token_hex(16)}"
        try:
            async with asyncio.timeout(_CHECK_WITHIN_S):
                with self._mapped("write"):
                    await obstore.put_async(self._sending, key, b"mediamill")
                content = b"".join([chunk async for chunk in self.open(key)])
                await self.delete(key)
        except TimeoutError as error:
            raise self._silent() from error
        if content != b"mediamill":
            raise StorageUnavailable(f"{self._place} does not give back what was written.")

    async def identity(self) -> str:
        """Equal exactly for those who use the same bucket."""
        return f"s3:{self.bucket.endpoint}/{self.bucket.name}"

    async def free_bytes(self) -> int | None:
        """None: a bucket has no such notion."""
        return None

    async def close(self) -> None:
        """Connections close with the last reference."""

    def _bases(self) -> Iterator[str]:
        bucket = self.bucket
        yield bucket.public_url
        yield f"{bucket.endpoint}/{bucket.name}"
        scheme, _, host = bucket.endpoint.partition("://")
        yield f"{scheme}://{bucket.name}.{host}"

    @property
    def _place(self) -> str:
        return f"The bucket {self.bucket.name!r} at {urlsplit(self.bucket.endpoint).netloc.rpartition('@')[2]}"

    def _silent(self) -> StorageUnavailable:
        return StorageUnavailable(f"{self._place} does not answer: check S3_ENDPOINT and the network.")

    @contextlib.contextmanager
    def _mapped(self, action: str, key: str | None = None) -> Iterator[None]:
        """Turn the client's errors into ours, without its texts; a missing object means `key` where one is given."""
        try:
            yield
        except FileNotFoundError as error:
            missing_bucket = _code(error) == "NoSuchBucket" or key is None
            raise (
                self._error(error, action) if missing_bucket else NotFound(f"There is no object {key!r}.")
            ) from error
        except (BaseError, OSError, ValueError) as error:
            raise self._error(error, action) from error

    def _error(self, error: Exception, action: str) -> StorageError:
        code, status = _code(error), _http_status(error)
        if isinstance(error, PreconditionError):
            return StorageUnavailable(f"{self._place} got another version of the object while it was read: read again.")
        if sentence := _TO_MEND.get(code):
            return StorageRefused(f"{self._place} {sentence}")
        if isinstance(error, FileNotFoundError):
            return StorageRefused(f"{self._place} {_TO_MEND['NoSuchBucket']}")
        if status in {401, 403}:
            return StorageRefused(f"{self._place} does not let this key {action}: check the key's permissions.")
        if status == HTTPStatus.INSUFFICIENT_STORAGE:
            return StorageRefused(f"{self._place} {_TO_MEND['QuotaExceeded']}")
        if status in {301, 307, 400}:
            return StorageRefused(
                f"{self._place} refused the request ({code or status}): check S3_ENDPOINT and S3_REGION."
            )
        if status:
            return StorageUnavailable(f"{self._place} failed to {action} ({code or f'HTTP {status}'}).")
        return self._silent()


_TO_MEND = {
    "NoSuchBucket": "does not exist: create it, or correct S3_BUCKET.",
    "InvalidAccessKeyId": "does not know this access key: correct S3_ACCESS_KEY_ID.",
    "SignatureDoesNotMatch": "refused the signature: correct S3_SECRET_ACCESS_KEY or S3_REGION.",
    "AuthorizationHeaderMalformed": "is in another region: correct S3_REGION.",
    "PermanentRedirect": "is in another region: correct S3_REGION and S3_ENDPOINT.",
    "RequestTimeTooSkewed": "refused the time of this machine: set its clock.",
    "QuotaExceeded": "has no room left: free some space or raise its quota.",
    "XMinioStorageFull": "has no room left: free some space or raise its quota.",
    "EntityTooLarge": "refuses an object of this size.",
}
"""What to do about an error code of the store."""


def _code(error: Exception) -> str:
    found = _CODE.search(str(error))
    return found[1] if found else ""


def _http_status(error: Exception) -> int:
    found = _HTTP_STATUS.search(str(error))
    return int(found[1]) if found else 0


def _measured(source: Path) -> tuple[int, str]:
    """Size and sha256. Read before the upload: metadata is sent first."""
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), sha256


def _part_bytes(size_bytes: int) -> int:
    return max(_PART_BYTES, -(-size_bytes // _MOST_PARTS))

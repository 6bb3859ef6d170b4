"""Who may call: API keys, the paths without one, and what keeps web pages away from a keyless API."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from mediamill.api.errors import Forbidden
from mediamill.config import Settings
from mediamill.errors import Misconfigured, Unauthorized

KEYLESS = frozenset({"/", "/health", "/ready", "/transcribe/health", "/openapi.json", "/docs"})
"""Paths that never need a key. `/files/` checks for itself: signed or unguessable keys need none."""


@dataclass(frozen=True)
class Caller:
    """Who calls. `id` is the SHA-256 of the API key, or "anonymous"; the key itself is not kept."""

    id: str
    authorized: bool
    """A valid key was given, or none is configured."""


ANONYMOUS = "anonymous"


class Gate:
    """Decides about each request before anything of it is read."""

    def __init__(self, settings: Settings) -> None:
        """Keeps the digests of the configured keys."""
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in sorted(settings.keys))
        self._origins = frozenset(settings.cors_allow_origins)
        self._open = settings.allow_anonymous
        public = urlsplit(settings.public_url or "").hostname
        self._hosts = frozenset(h.lower() for h in ("localhost", settings.host, public) if h)

    def admit(self, scope: Scope) -> Caller:
        """The caller of a request.

        Raises:
            Unauthorized: no key or a wrong one, on a path that needs one.
            Forbidden: no key is configured and the request looks like a foreign web page's.
        """
        headers = Headers(scope=scope)
        if not self._digests:
            self._refuse_pages(headers, scope)
            return Caller(ANONYMOUS, authorized=True)
        caller = self._caller(headers)
        if caller.authorized or keyless(scope):
            return caller
        given = any(name in headers for name in ("authorization", "x-api-key"))
        raise Unauthorized("The API key is not valid." if given else None)

    def _caller(self, headers: Headers) -> Caller:
        for key in given_keys(headers):
            digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
            known = [hmac.compare_digest(digest, d) for d in self._digests]  # all of them, whatever matches
            if any(known):
                return Caller(digest.hex(), authorized=True)
        return Caller(ANONYMOUS, authorized=False)

    def _refuse_pages(self, headers: Headers, scope: Scope) -> None:
        """Without keys, the browser's own headers are all that tells a web page from a program."""
        host = _host_of(headers.get("host", ""))
        if not (self._open or host in self._hosts or _is_loopback(host)):
            raise Forbidden(
                f"Without an API key this service answers only to {', '.join(sorted(self._hosts))} and loopback "
                f"addresses (got the Host {host!r}). Configure an API key, or MEDIAMILL_PUBLIC_URL."
            )
        origin = headers.get("origin")
        if origin is None or scope["method"] == "OPTIONS" or origin in self._origins:
            return
        if urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise Forbidden(
                f"Without an API key, web pages of another origin are refused (got {origin!r}); name the origin in "
                "CORS_ALLOW_ORIGINS (* does not count without a key), or configure an API key."
            )


def given_keys(headers: Mapping[str, str]) -> list[str]:
    """Every key a request carries: `Authorization: Bearer K`, a bare `Authorization: K`, `X-API-Key: K`."""
    keys = []
    authorization = headers.get("authorization", "").strip()
    scheme, _, rest = authorization.partition(" ")
    if authorization:
        keys.append(rest.strip() if scheme.lower() == "bearer" and rest else authorization)
    if "x-api-key" in headers:
        keys.append(headers["x-api-key"].strip())
    return keys


def keyless(scope: Scope) -> bool:
    """Whether this request needs no key."""
    path = scope["path"]
    preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in Headers(scope=scope)
    return preflight or path in KEYLESS or path.startswith("/files/")


def check_exposure(settings: Settings) -> None:
    """Refuse to serve a non-loopback address without any key.

    Raises: Misconfigured with the sentence to print at start.
    """
    if settings.keys or settings.allow_anonymous or settings.host == "localhost" or _is_loopback(settings.host):
        return
    raise Misconfigured(
        f"Refusing to serve {settings.host} without an API key: anybody who reaches it could use it. "
        "Set X_API_KEY (or MEDIAMILL_API_KEYS), listen on 127.0.0.1, or set MEDIAMILL_ALLOW_ANONYMOUS=1."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _host_of(header: str) -> str:
    """The host of a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""

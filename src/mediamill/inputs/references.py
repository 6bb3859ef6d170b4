"""What a request's input field may hold: an http(s) URL, `file:<key>`, a `data:` URI or bare base64."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Literal
from urllib.parse import unquote_to_bytes

from yarl import URL

from mediamill import keys
from mediamill.errors import Detail, InvalidRequest, TooLarge
from mediamill.inputs.guard import UrlGuard
from mediamill.model import Storage
from mediamill.storage import checked_key

Form = Literal["url", "stored", "inline"]

MAX_URL_CHARS = 8192
_SHORTEST_BASE64_CHARS = 64
_LOOKED_AT_CHARS = 4096
"""Enough to tell base64 from anything else; decoding looks at all of it."""
_SHOWN_CHARS = 60
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+={0,2}\s*")
_DATA = re.compile(r"data:([^,]{0,256}),", re.IGNORECASE)
_ACCEPTED = "accepted: an http(s) URL, file:<key> of an uploaded file, a data: URI or base64"


def form_of(value: str, field: str) -> Form:
    """Which of the forms a value has. Raises InvalidRequest naming the field for none of them."""
    scheme = _SCHEME.match(value)
    if scheme is None:
        if len(value) < _SHORTEST_BASE64_CHARS or not _BASE64.fullmatch(value[:_LOOKED_AT_CHARS]):
            raise _wrong(field, f"is no usable reference (got {_shown(value)}); {_ACCEPTED}")
        return "inline"
    match scheme[1].lower():
        case "http" | "https":
            return "url"
        case "file":
            return "stored"
        case "data":
            return "inline"
    raise _wrong(field, f"has the scheme {scheme[1] + ':'!r}; {_ACCEPTED}")


def key_in(value: str, field: str) -> str:
    """The storage key of a `file:` reference. Raises InvalidRequest naming the field."""
    key = value[len("file:") :]
    try:
        checked_key(key)
    except InvalidRequest as error:
        message = f"{_shown(value)} names no stored file; accepted: what POST /v1/files returned, file:uploads/..."
        raise _wrong(field, message) from error
    if key.startswith(f"{keys.ATTEMPTS}/"):
        raise _wrong(field, f"{_shown(value)} is unfinished work of a job")
    return key


def check_url(value: str, field: str, guard: UrlGuard) -> None:
    """Everything about a URL that can be judged without a name server.

    Raises: InvalidRequest naming the field: not http(s), too long, or a literal address that may not be reached.
    """
    if len(value) > MAX_URL_CHARS:
        raise _wrong(field, f"is a URL of {len(value)} characters; accepted: at most {MAX_URL_CHARS}")
    try:
        url = URL(value)
        reason = guard.objection(url)
    except ValueError:
        reason = "it is not an http(s) URL"
        url = URL()
    if reason:
        raise _wrong(field, f"{url.host or 'this URL'} may not be used: {reason}")


def check_literal(value: str, field: str, guard: UrlGuard, *, storage: Storage | None = None) -> None:
    """Judge an input reference before anything is queued, without I/O.

    Args:
        value: What the field holds.
        field: Its dotted path.
        guard: Where URLs may go.
        storage: When given, URLs of its own objects are good wherever they point.

    Raises: InvalidRequest naming the field, what is wrong, and what is accepted.
    """
    match form_of(value, field):
        case "stored":
            key_in(value, field)
        case "url" if storage is None or storage.key_of(value) is None:
            check_url(value, field, guard)


def decoded(value: str, *, field: str, max_bytes: int) -> bytes:
    """The bytes of a `data:` URI or of base64, standard or URL-safe, padded or not.

    Raises: InvalidRequest or TooLarge, naming the field.
    """
    body, is_base64 = _body_of(value, field)
    if len(body) * 3 // 4 > max_bytes * (1 if is_base64 else 3):
        raise TooLarge(f"{field}: has more than {max_bytes} bytes; at most that is accepted.")
    content = _from_base64(body, field) if is_base64 else unquote_to_bytes(body)
    if len(content) > max_bytes:
        raise TooLarge(f"{field}: has {len(content)} bytes; at most {max_bytes} are accepted.")
    return content


def _body_of(value: str, field: str) -> tuple[str, bool]:
    """What follows a `data:` header, or the whole; and whether that is base64."""
    if value[:5].lower() != "data:":
        return value, True
    header = _DATA.match(value)
    if header is None:
        raise _wrong(field, "is a data: URI without a comma; accepted: data:image/png;base64,...")
    return value[header.end() :], header[1].lower().rstrip().endswith(";base64")


def _from_base64(body: str, field: str) -> bytes:
    plain = re.sub(r"\s+", "", body).rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _wrong(field, f"is not valid base64 (got {_shown(body)})") from error


def _shown(value: str) -> str:
    return repr(value if len(value) <= _SHOWN_CHARS else value[: _SHOWN_CHARS - 3] + "...")


def _wrong(field: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}.", details=[Detail(field, message)])

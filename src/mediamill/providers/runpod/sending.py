"""What a job looks like on its way to RunPod: the catalog's fields, with inputs that a worker there can reach."""

from __future__ import annotations

import base64

from yarl import URL

from mediamill import catalog
from mediamill.catalog import Entry
from mediamill.errors import Detail, TooLarge
from mediamill.inputs.guard import UrlGuard
from mediamill.inputs.references import form_of, key_in
from mediamill.model import Json, Storage, Work

INLINE_LIMIT_BYTES = 7 * 1024**2
"""Files in one request together; RunPod takes 10 MB of JSON, and base64 adds a third."""
_LEFT_FOR_LATER_S = 3600.0
"""A result waits this long beyond the job's time for a worker of ours to come back for it."""
_SHORTEST_MS, _LONGEST_MS = 10_000, 7 * 86_400_000
_PUBLIC = UrlGuard(())


async def request_of(work: Work, storage: Storage, *, deadline_s: float) -> dict[str, Json]:
    """The body of `/run`. A caller's URL goes as it is: nothing is fetched here that is only passed on.

    Raises: TooLarge: files of this installation's own storage that fit no request and have no public URL. StorageError.
    """
    entry = catalog.get(work.model)
    request = entry.request.model_validate(work.params)
    inlined: dict[str, Json] = {}
    left_bytes = INLINE_LIMIT_BYTES
    for ref in catalog.input_refs(request):
        if form_of(ref.value, ref.field) == "stored":
            key = key_in(ref.value, ref.field)
            url = await storage.url(key)
            if _is_public(url):
                inlined[ref.field] = url
                continue
            stored = await storage.stat(key)
            left_bytes -= stored.size_bytes
            if left_bytes < 0:
                raise _does_not_fit(ref.field)
            inlined[ref.field] = await _data_uri(storage, key, stored.media_type)
    fields = {name: value for name, value in work.params.items() if value is not None}
    return {
        "input": {**catalog.with_values(fields, inlined), _named_by(entry): work.model, "job_id": work.job_id},
        "policy": {"executionTimeout": _ms(deadline_s), "ttl": _ms(deadline_s + _LEFT_FOR_LATER_S)},
    }


def _named_by(entry: Entry) -> str:
    """Workers know a model by `model`, an operation on media by `operation` (transcription has a `model` of its own)."""
    return "model" if entry.pool == "gpu" else "operation"


def _is_public(url: str) -> bool:
    """Whether somebody outside can be expected to reach it: https, and no address of a private network as written."""
    parsed = URL(url)
    return parsed.scheme == "https" and _PUBLIC.objection(parsed) is None


async def _data_uri(storage: Storage, key: str, media_type: str) -> str:
    content = b"".join([chunk async for chunk in storage.open(key)])
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _does_not_fit(field: str) -> TooLarge:
    message = (
        f"is more than fits into a request to RunPod ({INLINE_LIMIT_BYTES} bytes in all); give an https URL, or keep "
        "files in a bucket with an https URL (STORAGE_MODE=s3)"
    )
    return TooLarge(f"{field}: {message}.", details=[Detail(field, message)])


def _ms(seconds: float) -> int:
    return min(_LONGEST_MS, max(_SHORTEST_MS, round(seconds * 1000)))

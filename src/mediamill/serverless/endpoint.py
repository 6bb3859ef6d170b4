"""The text-to-video document's own URL: one blocking call, keyless, the clip as base64. No queue and no database behind."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse

from mediamill import __version__, catalog
from mediamill.config import Settings
from mediamill.contracts import text_to_video as contract
from mediamill.errors import DeadlineExceeded, Detail, InvalidRequest, MediamillError
from mediamill.model import Json
from mediamill.serverless.slot import BUCKET_VARIABLES, Done, Slot, attempted, checked

MODEL = "ltx-video"
MOST_AT_ONCE = 20
"""Prompts of one batch."""
_STATUSES: Mapping[str, int] = {
    "invalid_request": 422,
    "input_error": 422,
    "input_unreachable": 422,
    "unsupported_media": 422,
    "too_large": 413,
    "deadline_exceeded": 504,
}
"""HTTP status by error code; 500 else."""


class Endpoint:
    """Makes clips, one at a time, in a slot whose weights stay loaded."""

    def __init__(self, settings: Settings, *, limit_s: float = contract.LIMIT_S) -> None:
        """`limit_s`: longest wait of one call, its turn included. Raises Misconfigured."""
        self._slot = Slot(settings)
        self._limit_s = limit_s

    def app(self) -> FastAPI:
        """`POST /`, and `GET /health`, which says whether the weights are loaded."""
        settings = self._slot.settings
        app = FastAPI(title=MODEL, version=__version__, max_body_size=settings.max_body_bytes)
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_allow_origins) or ["*"],
            allow_methods=["*"],
            allow_headers=["*"],
        )
        schema = contract.TextToVideoRequest.model_json_schema()
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        app.add_api_route("/", self._generate, methods=["POST"], openapi_extra={"requestBody": body})
        app.add_api_route("/health", self.health, methods=["GET"])
        return app

    async def health(self) -> dict[str, Json]:
        """What would run, and whether a call would wait."""
        engine = catalog.engine_of(catalog.get(MODEL), self._slot.settings.fake_engines)
        loaded = MODEL in self._slot.held
        return {"status": "ok", "model": MODEL, "engine": engine, "loaded": loaded, "busy": self._slot.busy}

    async def answer(self, raw: Json) -> tuple[int, dict[str, Json]]:
        """Status and body of one call."""
        job_id = uuid.uuid4().hex
        try:
            return 200, await attempted(self._answer(raw, job_id), job_id=job_id)
        except MediamillError as error:
            status = _STATUSES.get(error.code, 500)
            return status, contract.error_reply(error, status)

    async def batch(self, requests: list[Json]) -> list[dict[str, Json]]:
        """The body of each, in order; one that failed has `detail` and does not lose the others.

        Raises: InvalidRequest: none, or more than `MOST_AT_ONCE`.
        """
        if not isinstance(requests, list) or not 1 <= len(requests) <= MOST_AT_ONCE:
            raise InvalidRequest(f"requests: must be a list of 1 to {MOST_AT_ONCE} requests.")
        return [(await self.answer(raw))[1] for raw in requests]

    async def close(self) -> None:
        """End the child. Safe to repeat."""
        await self._slot.close()

    async def _generate(self, request: Request) -> JSONResponse:
        """Answers when the clip is there. A caller who leaves does not stop it."""
        try:
            raw = json.loads(await request.body())
        except ValueError as error:
            status, found = 422, contract.error_reply(_not_json(str(error)), 422)
        else:
            status, found = await self.answer(raw)
        return JSONResponse(found, status_code=status)

    async def _answer(self, raw: Json, job_id: str) -> dict[str, Json]:
        if not isinstance(raw, Mapping):
            raise _not_json("the body must be an object")
        asked = contract.request(raw)
        inline = asked.response_format == "base64"
        if not inline and not self._slot.has_bucket:
            message = f"url needs a bucket: set {BUCKET_VARIABLES} where this is deployed; accepted here: base64"
            raise InvalidRequest(message, details=[Detail("response_format", message)])
        order = checked(self._slot.settings, asked.model, asked.input, job_id=job_id)
        try:
            async with asyncio.timeout(self._limit_s):
                done = await self._slot.do(order, inline=inline)
        except TimeoutError as error:
            raise DeadlineExceeded(f"it took longer than {self._limit_s:g} s") from error
        return {**contract.body(done.job, _video(done)), **_warnings(done, asked)}


def _video(done: Done) -> str:
    file = done.files[contract.clip(done.job).name]
    return file if isinstance(file, str) else base64.b64encode(file).decode()


def _warnings(done: Done, asked: contract.Asked) -> dict[str, Json]:
    """Those of the work, and what this URL does not do."""
    unheard = ("webhook_url is not called from here: this reply is the result.",) if asked.webhook_url else ()
    found: list[Any] = [*asked.warnings, *unheard, *done.job.warnings]
    return {"warnings": found} if found else {}


def _not_json(why: str) -> InvalidRequest:
    return InvalidRequest(why, details=[Detail("", f"must be a JSON object ({why})")])

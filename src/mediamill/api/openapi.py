"""The OpenAPI document: request bodies read raw are described here, and every error each route can answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from mediamill import catalog
from mediamill.api.errors import ContractRouter, ErrorShapes
from mediamill.errors import Detail, InvalidRequest, MediamillError
from mediamill.model import Json

COMMON_ERRORS = (400, 401, 403, 404, 413, 415, 422, 500, 503)
CREATING_ERRORS = (*COMMON_ERRORS, 409, 429)
BLOCKING_ERRORS = (*CREATING_ERRORS, 504)

IDEMPOTENCY_KEY: Mapping[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "description": "The same key and body within 24 h give the same reply, and nothing is made twice.",
}


def body(schema: Mapping[str, Json], examples: Mapping[str, Json]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its JSON body itself. `examples`: bodies by title."""
    named = {title: {"summary": title, "value": value} for title, value in examples.items()}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": named}}},
        "parameters": [IDEMPOTENCY_KEY],
    }


def answer(description: str, examples: Mapping[str, Json]) -> dict[str, Any]:
    """One status in `responses` of a route: what its bodies look like, by title."""
    named = {title: {"summary": title, "value": value} for title, value in examples.items()}
    return {"description": description, "content": {"application/json": {"examples": named}}}


def schema_of(model: type[BaseModel]) -> dict[str, Json]:
    """JSON schema of a request, self-contained, with its definitions put in place."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    placed: dict[str, Json] = _in_place(schema, definitions)
    return placed


def _in_place(node: Json, definitions: Mapping[str, Json]) -> Json:
    if isinstance(node, dict):
        name = str(node.get("$ref", "")).removeprefix("#/$defs/")
        if name in definitions:
            rest = {k: v for k, v in node.items() if k != "$ref"}
            return _in_place({**definitions[name], **rest}, definitions)
        return {k: _in_place(v, definitions) for k, v in node.items()}
    return [_in_place(v, definitions) for v in node] if isinstance(node, list) else node


def entry_schema(name: str) -> dict[str, Json]:
    """Request schema of a catalog entry."""
    return schema_of(catalog.get(name).request)


def errors(statuses: Sequence[int]) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: its error statuses; their bodies are filled in by the router's own shape."""
    return {status: {"description": HTTPStatus(status).phrase} for status in sorted(statuses)}


def install(app: FastAPI, shapes: ErrorShapes) -> None:
    """Make `app.openapi()` give the document with each contract's own error bodies."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _describe_errors(document, shapes)
            document["components"].setdefault("securitySchemes", {}).update(_SECURITY)
            document["security"] = [{"bearer": []}, {"apiKey": []}, {}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def _describe_errors(document: dict[str, Any], shapes: ErrorShapes) -> None:
    document.setdefault("components", {}).setdefault("schemas", {})
    for path, operations in document["paths"].items():
        router = shapes.router(path)
        for operation in operations.values():
            operation["responses"].pop("422", None) if 422 not in _declared(operation) else None  # noqa: PLR2004
            if any(p["name"] == "wait" for p in operation.get("parameters", ())):
                operation["responses"].setdefault("200", {"description": "It ended within `wait` seconds"})
            for status, response in operation["responses"].items():
                if status.isdigit() and int(status) >= HTTPStatus.BAD_REQUEST:
                    response["content"] = {router.error_media_type: _error_content(router, int(status))}


def _declared(operation: Mapping[str, Any]) -> set[int]:
    """Statuses with a description of ours: FastAPI adds a 422 of its own shape, which is never sent."""
    own = operation["responses"].items()
    return {int(s) for s, r in own if s.isdigit() and r["description"] != "Validation Error"}


def _error_content(router: ContractRouter, status: int) -> dict[str, Any]:
    details = [Detail("field", "what is accepted")]
    example = router.error_reply(InvalidRequest("One sentence that says what is wrong.", details=details), status)
    always = router.error_reply(MediamillError(), status)
    return {"schema": {"type": "object", "required": sorted(always)}, "example": dict(example)}

"""The OpenAPI document: complete, valid, and no request made from it gets a 5xx."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from mediamill.api.app import create_app
from mediamill.config import Settings
from tests.api import hands

ROOT = Path(__file__).parents[2]
EXAMPLES = 12
"""Requests made for each operation."""
SLOW = {"/v1/jobs/{job_id}/events"}
"""Streams that end when their job does."""


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


async def test_every_route_is_described_with_examples_and_its_errors(service):
    document = (await service.get("/openapi.json")).body
    assert document["openapi"].startswith("3.1")
    for path, method, operation in operations(document):
        about = f"{method} {path}"
        assert operation["summary"], about
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                (content,) = response["content"].values()
                assert content["example"], about
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is not None:
            assert content["examples"], about
            assert "$ref" not in json.dumps(content["schema"]), about
        if not {"/health", "/ready"} & {path} and not path.endswith("/health"):
            assert {"400", "401", "503"} <= set(operation["responses"]), about


async def test_every_example_of_a_request_is_accepted(service):
    document = (await service.get("/openapi.json")).body
    for path, method, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for title, example in content.get("examples", {}).items():
            answer = await service.post(path, example["value"], prefer="respond-async")
            assert (method, answer.status) in {("post", 202), ("post", 501)}, (path, title, answer)


async def test_the_page_for_people_shows_every_route_and_loads_nothing(service):
    document = (await service.get("/openapi.json")).body
    page = await service.get("/docs")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    text = page.body.decode()
    assert all(path in text for path in document["paths"])
    assert not any(outside in text for outside in ("<script", "src=", "@import", "<link"))


async def test_answers_of_generation_are_shown_in_the_document_and_on_the_page(service):
    document = (await service.get("/openapi.json")).body
    page = (await service.get("/docs")).body.decode()
    shown = {
        ("/api/v1/generate", "post", "202"): {"queued"},
        ("/api/v1/generate/bulk", "post", "202"): {"queued"},
        ("/api/v1/generate/bulk/{batch_id}", "get", "200"): {"partial_failure"},
        ("/api/v1/generate/{job_id}", "get", "200"): {"queued", "processing", "completed", "failed"},
        ("/api/v1/generate/{job_id}", "delete", "200"): {"failed"},
        ("/api/v1/text-to-video", "post", "200"): {"a clip"},
        ("/api/v1/text-to-video", "post", "202"): {"queued"},
    }
    for (path, method, status), titles in shown.items():
        examples = document["paths"][path][method]["responses"][status]["content"]["application/json"]["examples"]
        assert set(examples) == titles, path
        for title, example in examples.items():
            assert example["value"].get("status", title) == title
            assert f"Answer {status}: {title}" in page


def test_the_reference_names_every_route_and_no_other():
    reference = (ROOT / "docs/reference/http.md").read_text()
    described = set(re.findall(r"^\| `([A-Z]+) (/[^`]*)` \|", reference, re.MULTILINE))
    routes = {(method.upper(), path) for path, method, _ in operations(_document())}
    assert described == routes


def _document() -> dict[str, Any]:
    return create_app(SimpleNamespace(settings=Settings(_env_file=None))).openapi()  # type: ignore[arg-type]


@pytest.mark.timeout(300)
async def test_no_request_made_from_the_document_gets_a_5xx(start):
    async with start(max_body_bytes=100_000, fake_engines="all") as service:
        document = (await service.get("/openapi.json")).body
        for path in SLOW:
            del document["paths"][path]
        working = asyncio.ensure_future(fail_all(service))
        try:
            tried = await asyncio.to_thread(attack, document, service.base_url)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        assert tried >= len(document["paths"]) * EXAMPLES / 2


async def fail_all(service) -> None:
    """A worker is heard of, with which whatever is queued fails soon, so that nobody waits long."""
    while True:
        await service.deps.store.announce("w", pool="cpu", slots=1, version="1")
        if await service.deps.store.queue_depth(cap=1):
            await hands.fail(service.deps, "unsupported_media")
        await asyncio.sleep(0.05)


def attack(document: dict[str, Any], base_url: str) -> int:
    """Send made-up requests, valid and not, to every operation; the number sent."""
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=base_url)
    sent = 0

    def once(case: schemathesis.Case) -> None:
        nonlocal sent
        sent += 1
        response = case.call(headers={"Prefer": "respond-async"}, timeout=30)
        about = f"{case.method} {case.formatted_path} {case.query} {case.body!r:.500}"
        assert response.status_code < 500 or response.status_code == 501, f"{about} -> {response.text[:500]}"
        case.validate_response(response, checks=[status_code_conformance, response_schema_conformance])

    for found in schema.get_all_operations():
        operation = found.ok()
        strategy = operation.as_strategy()
        if operation.body or list(operation.iter_parameters()):
            strategy |= operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        given(case=strategy)(BOUNDED(lambda case: once(case)))()  # noqa: PLW0108 - settings stick to a function
    return sent


BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

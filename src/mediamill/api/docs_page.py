"""The page at `/docs`: the OpenAPI document as plain HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from mediamill.model import Json

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
summary { cursor: pointer; padding: .3rem 0; } code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; } .method { display: inline-block; width: 4.5rem; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee; } pre { background: #222; } }
"""


def page(document: Mapping[str, Any]) -> str:
    """One self-contained page of an OpenAPI document."""
    info = document["info"]
    routes = "\n".join(
        _route(path, method, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(info['title'])}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f"<p>{escape(info.get('description', ''))} The machine-readable form is <a href='openapi.json'>openapi.json</a>.</p>"
        f"{routes}</body></html>"
    )


def _route(path: str, method: str, operation: Mapping[str, Any]) -> str:
    title = f"<code class='method'>{method.upper()}</code><code>{escape(path)}</code> {escape(operation['summary'])}"
    parts = [f"<p>{escape(operation.get('description', ''))}</p>"]
    parameters = operation.get("parameters", ())
    if parameters:
        rows = "".join(
            f"<li><code>{escape(p['name'])}</code> ({p['in']}): {escape(p.get('description', ''))}</li>"
            for p in parameters
        )
        parts.append(f"<ul>{rows}</ul>")
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        parts += [_block(f"{name} ({media_type})", e["value"]) for name, e in content.get("examples", {}).items()]
        parts.append(_block(f"Schema ({media_type})", content.get("schema", {})))
    for status, answer in operation["responses"].items():
        for content in answer.get("content", {}).values():
            parts += [_block(f"Answer {status}: {name}", e["value"]) for name, e in content.get("examples", {}).items()]
    statuses = ", ".join(operation["responses"])
    parts.append(f"<p>Answers: {escape(statuses)}</p>")
    return f"<details><summary>{title}</summary>{''.join(parts)}</details>"


def _block(title: str, value: Json) -> str:
    return f"<p>{escape(title)}</p><pre>{escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>"

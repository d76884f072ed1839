"""The page of ``/docs``: the OpenAPI description as plain HTML, which loads nothing from anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = "body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}pre{background:#eee;padding:.7em;\
overflow:auto}h2{margin-top:2em}"


def page(openapi: Mapping[str, Any]) -> str:
    """The page of an OpenAPI description."""
    title = escape(openapi["info"]["title"])
    head = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    return "\n".join((head, f"<p>{escape(openapi['info']['description'])}</p>", *_body(openapi["paths"]), *_foot()))


def _body(paths: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in paths.items():
        for method, about in methods.items():
            yield f"<h2>{method.upper()} <code>{escape(path)}</code></h2><p>{escape(about.get('summary', ''))}</p>"
            content = about.get("requestBody", {}).get("content", {}).get("application/json", {})
            for name, example in content.get("examples", {}).items():
                yield f"<p>{escape(name)}</p><pre>{escape(json.dumps(example['value'], ensure_ascii=False))}</pre>"


def _foot() -> Iterator[str]:
    yield "<h2>MCP <code>/mcp</code></h2><p>The tools search and fetch, by streamable HTTP.</p>"
    yield "<p>All of it as <a href=openapi.json>OpenAPI</a>.</p>"

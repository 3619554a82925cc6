"""The description of the API as one HTML page, which needs no script and no other host."""

from __future__ import annotations

import html
import re
from typing import Any

import msgspec

__all__ = ["page_of"]

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}
h1,h2,h3{line-height:1.2}h2{margin-top:3rem;border-top:2px solid #ddd;padding-top:1rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1rem}
td,th{border-top:1px solid #ddd;padding:.3rem 1rem .3rem 0;vertical-align:top;text-align:left}
pre{background:#f6f6f6;padding:.75rem 1rem;margin:.25rem 0 .75rem;white-space:pre-wrap;overflow-wrap:anywhere}
code{font-size:.92em}nav li{list-style:none}nav ul{padding:0}summary{cursor:pointer;color:#444}
"""


def page_of(document: dict[str, Any]) -> str:
    """Every operation with its parameters, bodies and answers, and every schema; examples unfold."""
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    links = "".join(
        f'<li><a href="#{_anchor(method, path)}"><code>{method} {_text(path)}</code></a> '
        f"{_text(operation['summary'])}</li>"
        for method, path, operation in operations
    )
    schemas = document["components"]["schemas"]
    return (
        f'<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>{_text(document['info']['title'])} API</title><style>{_STYLE}</style>"
        f"<h1>{_text(document['info']['title'])}</h1><p>{_prose(document['info']['description'])} "
        f'The machine-readable form is <a href="/schema/openapi.json">openapi.json</a>.</p>'
        f"<nav><ul>{links}</ul></nav>"
        f"{''.join(_operation(*each) for each in operations)}"
        f"<h2>Schemas</h2>{''.join(_schema(name, schema) for name, schema in schemas.items())}</html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<tr><td><code>{_text(each['name'])}</code></td><td>{_type(each['schema'])}</td>"
        f"<td>{'required; ' if each['required'] else ''}{_prose(each['description'])}"
        f"{'' if each['in'] == 'query' else ' (' + each['in'] + ')'}</td></tr>"
        for each in operation.get("parameters", ())
    )
    body = "".join(
        f"<tr><td><code>{_text(media_type)}</code></td><td>{_examples(content)}</td></tr>"
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items()
    )
    answers = "".join(
        f"<tr><td>{status}</td><td>{_prose(answer['description'])}{_answer(answer)}</td></tr>"
        for status, answer in sorted(operation["responses"].items())
    )
    return (
        f'<h2 id="{_anchor(method, path)}"><code>{method} {_text(path)}</code></h2>'
        f"<p>{_prose(operation['summary'])}. {_prose(operation['description'])}</p>"
        + (f"<h3>Parameters</h3><table>{parameters}</table>" if parameters else "")
        + (f"<h3>Body</h3><table>{body}</table>" if body else "")
        + f"<h3>Answers</h3><table>{answers}</table>"
    )


def _answer(answer: dict[str, Any]) -> str:
    headers = "".join(
        f"<br><code>{_text(name)}</code>: {_prose(header.get('description', ''))}"
        for name, header in answer.get("headers", {}).items()
    )
    contents = "".join(
        f"<div><code>{_text(media_type)}</code> {_type(content['schema'])}{_examples(content)}</div>"
        for media_type, content in answer.get("content", {}).items()
    )
    return headers + contents


def _examples(content: dict[str, Any]) -> str:
    examples = {name: each["value"] for name, each in content.get("examples", {}).items()}
    if "example" in content:
        examples["example"] = content["example"]
    return "".join(
        f"<details><summary>{_text(name)}</summary><pre>{_text(_shown(value))}</pre></details>"
        for name, value in examples.items()
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{_text(key)}</code></td><td>{_type(kind)}</td>"
        f"<td>{'' if key in required else 'optional; '}{_prose(kind.get('description', ''))}</td></tr>"
        for key, kind in schema.get("properties", {}).items()
    )
    return (
        f'<h3 id="schema-{_text(name)}">{_text(name)}</h3><p>{_prose(schema.get("description", ""))}</p>'
        f"<table>{rows}</table>{_examples(schema)}"
    )


def _type(schema: dict[str, Any]) -> str:
    """A type in words, with its bounds; a schema that has a name as a link to it."""
    if "$ref" in schema:
        name = _text(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "oneOf" in schema:
        return " or ".join(_type(each) for each in schema["oneOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{_text(str(each))}</code>" for each in schema["enum"])
    kind = schema.get("type", "")
    if kind == "array":
        return f"list of {_type(schema['items'])}" if "items" in schema else "list"
    words = " or ".join(kind) if isinstance(kind, list) else kind
    bounds = [f"{word} {schema[key]:,}" for key, word in _BOUNDS.items() if key in schema]
    return _text(", ".join(filter(None, [words, schema.get("format"), *bounds])))


_BOUNDS = {"minimum": "from", "maximum": "to", "minLength": "characters from", "maxLength": "to"}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _prose(text: str) -> str:
    """A description, in which backticks are code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))


def _text(text: str) -> str:
    return html.escape(text)


def _anchor(method: str, path: str) -> str:
    return re.sub(r"[^a-z]+", "-", f"{method} {path}".lower()).strip("-")

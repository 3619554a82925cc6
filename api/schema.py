"""The description of the API: an OpenAPI document, and a page that shows it and needs no other host."""

from __future__ import annotations

import html
from typing import Any

import msgspec
from litestar import Response, get

__all__ = ["schema_handlers"]

_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
    },
}
_RECORD_PROPERTIES: dict[str, Any] = {
    "recordId": {"type": "string", "minLength": 1, "maxLength": 256},
    "time": {"type": "string", "format": "date-time"},
    "sourceId": {"type": "string", "minLength": 1, "maxLength": 256},
    "destinationId": {"type": "string", "minLength": 1, "maxLength": 256},
    "type": {"enum": ["positive", "negative"]},
    "value": {"type": ["string", "number"], "description": "0 ≤ value < 10^20, at most 9 digits after the point"},
    "unit": {"type": "string", "minLength": 1, "maxLength": 32},
    "reference": {"type": "string", "minLength": 1, "maxLength": 256},
}
_RECORD = {
    "type": "object",
    "required": list(_RECORD_PROPERTIES),
    "properties": _RECORD_PROPERTIES,
    "example": {
        "recordId": "rec-001",
        "time": "2024-03-01T12:00:00Z",
        "sourceId": "source-a",
        "destinationId": "dest-123",
        "type": "positive",
        "value": "125.5",
        "unit": "SEK",
        "reference": "invoice-9",
    },
}


def _problems(*codes: tuple[int, str]) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(status): {"description": meaning, "content": content} for status, meaning in codes}


def _parameter(name: str, kind: dict[str, Any], description: str, *, where: str = "query") -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": kind, "description": description}


def _ok(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"type": "object"}}}}


def _answer() -> dict[str, Any]:
    """An aggregation, in each of its formats."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        **_ok("groups with totals and records in JSON, else flat rows"),
        "headers": {
            "Oncelake-As-Of": {"description": "the seq that the answer stands for", "schema": {"type": "string"}},
            "Link": {"description": 'the next page, `rel="next"`', "schema": {"type": "string"}},
        },
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "application/x-ndjson": {"schema": {"type": "string"}},
            "text/csv": {"schema": {"type": "string"}},
            "application/vnd.apache.arrow.stream": binary,
            "application/vnd.apache.parquet": binary,
        },
    }


_TEXTS = {"type": "array", "items": {"type": "string"}}
_BOOLEAN = {"type": "string", "enum": ["true", "false"]}
_TIME = {"type": "string", "format": "date-time"}
_BAD_PARAMETER = (400, "a parameter is unknown or malformed (`invalid_parameter`)")

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "oncelake", "version": "0.1.0", "description": "Every record exactly once."},
    "paths": {
        "/records": {
            "post": {
                "summary": "Take one record or a batch; the answer comes after the commit is durable",
                "parameters": [
                    _parameter("atomic", _BOOLEAN, "one commit or nothing"),
                    _parameter("dryRun", _BOOLEAN, "say what would become of the records, store nothing"),
                ],
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/Record"}},
                        "application/x-ndjson": {},
                        "text/csv": {},
                        "application/vnd.apache.parquet": {},
                        "application/vnd.apache.arrow.stream": {},
                    },
                },
                "responses": {
                    "201": _ok("one record, accepted"),
                    "200": _ok("one record, a duplicate; or the answer to a batch"),
                    **_problems(
                        (400, "the body cannot be decoded; nothing was stored"),
                        (408, "the body did not arrive in time"),
                        (409, "one record, in conflict with the stored one (`conflict`)"),
                        (413, "too large"),
                        (415, "unknown format or encoding"),
                        (422, "`invalid_record`, `invalid_schema` or `atomic_refused`"),
                        (429, "too much waits; try again after `Retry-After`"),
                        (503, "the service is stopping"),
                        (507, "the disk is full; nothing was stored"),
                    ),
                },
            },
            "get": {
                "summary": "One record by an id that does not fit a path",
                "parameters": [_parameter("recordId", {"type": "string"}, "the id")],
                "responses": {"200": _ok("the record"), **_problems(_BAD_PARAMETER, (404, "no such record"))},
            },
        },
        "/records/aggregations": {
            "get": {
                "summary": "Records and totals, grouped by destination",
                "parameters": [
                    _parameter("startTime", _TIME, "inclusive"),
                    _parameter("endTime", _TIME, "exclusive"),
                    _parameter("type", {"enum": ["positive", "negative"]}, "the sign"),
                    _parameter("destinationId", _TEXTS, "repeatable"),
                    _parameter("sourceId", _TEXTS, "repeatable"),
                    _parameter("reference", _TEXTS, "repeatable"),
                    _parameter("unit", _TEXTS, "repeatable"),
                    _parameter("include", {"enum": ["records", "totals"]}, "default records"),
                    _parameter("asOf", {"type": "integer", "minimum": 0}, "answer as of this seq"),
                    _parameter("limit", {"type": "integer", "minimum": 1}, "records on a page"),
                    _parameter("cursor", {"type": "string"}, "`nextCursor` of the page before"),
                ],
                "responses": {
                    "200": _answer(),
                    **_problems(
                        _BAD_PARAMETER,
                        (406, "none of the formats that there are (`not_acceptable`)"),
                        (422, "more rows than an answer may have (`answer_too_large`)"),
                        (
                            503,
                            "`too_many_queries`, `too_many_answers`: try again after `Retry-After`; "
                            "`query_timeout`, `query_memory`: ask for less",
                        ),
                    ),
                },
            }
        },
        "/records/{recordId}": {
            "get": {
                "summary": "One record",
                "parameters": [_parameter("recordId", {"type": "string"}, "the id", where="path")],
                "responses": {"200": _ok("the record"), **_problems(_BAD_PARAMETER, (404, "no such record"))},
            }
        },
        "/health": {
            "get": {
                "summary": "The state of each component",
                "responses": {"200": _ok("all are ok"), "503": _ok("one is not"), **_problems(_BAD_PARAMETER)},
            }
        },
    },
    "components": {"schemas": {"Problem": _PROBLEM, "Record": _RECORD}},
}


def schema_handlers() -> list[Any]:
    """The document and its page."""
    document = msgspec.json.format(msgspec.json.encode(DOCUMENT), indent=1)
    page = _page().encode()

    @get("/schema/openapi.json")
    async def openapi() -> Response[bytes]:
        return Response(document, media_type="application/json")

    @get("/schema")
    async def browse() -> Response[bytes]:
        return Response(page, media_type="text/html")

    return [openapi, browse]


def _page() -> str:
    """The document as plain HTML."""
    sections = []
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            parameters = "".join(
                f"<tr><td><code>{html.escape(p['name'])}</code></td><td>{html.escape(p['description'])}</td></tr>"
                for p in operation.get("parameters", ())
            )
            answers = "".join(
                f"<tr><td>{status}</td><td>{html.escape(answer['description'])}</td></tr>"
                for status, answer in sorted(operation["responses"].items())
            )
            sections.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(operation['summary'])}</p>"
                f"<table>{parameters}</table><table>{answers}</table>"
            )
    example = html.escape(msgspec.json.format(msgspec.json.encode(_RECORD["example"]), indent=2).decode())
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>oncelake API</title><style>"
        "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;margin:.5rem 0 1rem}td{border-top:1px solid #ddd;padding:.2rem 1rem .2rem 0;"
        "vertical-align:top}pre{background:#f6f6f6;padding:1rem}</style><h1>oncelake</h1>"
        '<p>Every record exactly once. The machine-readable form is <a href="/schema/openapi.json">openapi.json</a>. '
        f"A record:</p><pre>{example}</pre>{''.join(sections)}</html>"
    )

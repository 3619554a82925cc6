"""The description of the API: an OpenAPI document, and a page that shows it and needs no other host."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, get

from api.components import CANONICAL_EXAMPLE, RECORD_EXAMPLE, SCHEMAS, SECURITY_SCHEMES, completed
from api.page import page_of
from api.parameters import Parameters

__all__ = ["DOCUMENT", "schema_handlers"]


def _problems(*codes: tuple[int, str]) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(status): {"description": meaning, "content": content} for status, meaning in codes}


def _parameter(
    name: str, kind: dict[str, Any], description: str, *, where: str = "query", required: bool = False
) -> dict[str, Any]:
    required = required or where == "path"
    return {"name": name, "in": where, "required": required, "schema": kind, "description": description}


def _ok(description: str, *names: str, **examples: Any) -> dict[str, Any]:
    """A JSON answer in one of the named schemas, with examples by their names, or with that of the one schema."""
    found: list[dict[str, Any]] = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    schema = {"oneOf": found} if len(found) > 1 else found[0]
    examples = examples or {"answer": SCHEMAS[names[0]]["example"]}
    shown = {name: {"value": value} for name, value in examples.items()}
    return {"description": description, "content": {"application/json": {"schema": schema, "examples": shown}}}


def _text_of(schema: dict[str, Any], example: str) -> dict[str, Any]:
    return {"schema": schema, "example": example}


def _answer() -> dict[str, Any]:
    """An aggregation, in each of its formats."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    row = {"seq": 1, **CANONICAL_EXAMPLE}
    of_totals = {**SCHEMAS["Aggregation"]["example"]}
    of_totals["groups"] = [{k: v for k, v in group.items() if k != "records"} for group in of_totals["groups"]]
    json_answer = _ok("", "Aggregation", records=SCHEMAS["Aggregation"]["example"], totals=of_totals)
    return {
        "description": "groups with totals and records in JSON, else flat rows",
        "headers": {
            "Oncelake-As-Of": {"description": "the seq that the answer stands for", "schema": {"type": "string"}},
            "Link": {"description": 'the next page, `rel="next"`', "schema": {"type": "string"}},
        },
        "content": {
            **json_answer["content"],
            **{
                f"application/{name}": _text_of({"type": "string"}, _line(row))
                for name in ("x-ndjson", "ndjson", "jsonl")
            },
            "text/csv": _text_of({"type": "string"}, f"{','.join(row)}\n{','.join(map(str, row.values()))}\n"),
            "application/vnd.apache.arrow.stream": binary,
            "application/vnd.apache.parquet": binary,
        },
    }


def _line(content: dict[str, Any]) -> str:
    return msgspec.json.encode(content).decode() + "\n"


_TEXTS = {"type": "array", "items": {"type": "string"}}
_BOOLEAN = {"type": "string", "enum": ["true", "false"]}
_TIME = {"type": "string", "format": "date-time"}
_SEQ = {"type": "integer", "minimum": 0, "maximum": (1 << 63) - 1}
_PROCESSED_AT = "2024-03-01T12:00:07.512034Z"
_PREVIOUS: dict[str, Any] = {"count": 0, "firstTime": None, "lastTime": None, "lastSeq": None, "totals": []}
_ACCEPTED = {"recordId": "rec-001", "status": "accepted", "seq": 1}
_DUPLICATE = {**_ACCEPTED, "status": "duplicate"}
_STORED = {"seq": 1, "processedAt": _PROCESSED_AT, **CANONICAL_EXAMPLE}
_METRICS = _text_of({}, "# TYPE oncelake_seq gauge\noncelake_seq 12.0\n")
_FAILING = {"status": "failing", "components": {"store": {"status": "ok"}, "inbox": {"status": "stopped"}}}
_NOT_FOUND = (404, "no such record (`not_found`)")
_BAD_PARAMETER = (400, "a parameter is unknown or malformed (`invalid_parameter`)")

_BODIES: dict[str, Any] = {
    "application/json": {
        "schema": {
            "oneOf": [
                {"$ref": "#/components/schemas/Record"},
                {"type": "array", "description": "records; an element that is none is rejected by itself"},
            ]
        },
        "examples": {"one": {"value": RECORD_EXAMPLE}, "batch": {"value": [RECORD_EXAMPLE]}},
    },
    **{
        name: _text_of({}, _line(RECORD_EXAMPLE))
        for name in ("application/x-ndjson", "application/ndjson", "application/jsonl")
    },
    "text/csv": _text_of({}, f"{','.join(RECORD_EXAMPLE)}\n{','.join(RECORD_EXAMPLE.values())}\n"),
    **{
        f"application/vnd.apache.{name}": {"schema": {"type": "string", "format": "binary"}}
        for name in ("parquet", "arrow.stream", "arrow.file")
    },
}


def _feed(name: str) -> dict[str, Any]:
    members = {"previous": _PREVIOUS} if name == "notifications" else {"threshold": "100"}
    line = _line({"seq": 1, "processedAt": _PROCESSED_AT, "record": CANONICAL_EXAMPLE, **members})
    return {
        "summary": f"The committed lines of {name}, to the byte",
        "parameters": [
            _parameter("after", _SEQ, "lines with a greater seq; default 0"),
            _parameter("limit", {"type": "integer", "minimum": 1, "maximum": 100_000}, "lines; default 1,000"),
            _parameter("wait", {"type": "number", "minimum": 0, "maximum": 300}, "seconds to wait for a line"),
            _parameter("Last-Event-ID", _SEQ, "where events go on", where="header"),
        ],
        "responses": {
            "200": {
                "description": "lines, none where there are none; or events with `id` seq and `data` line",
                "content": {
                    **{
                        f"application/{name}": _text_of({"type": "string"}, line)
                        for name in ("x-ndjson", "ndjson", "jsonl")
                    },
                    "text/event-stream": _text_of({"type": "string"}, f": oncelake\n\nid: 1\ndata: {line}\n"),
                },
            },
            **_problems(_BAD_PARAMETER, (406, "none of the formats that there are (`not_acceptable`)")),
        },
    }


_ROUTES: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "oncelake",
        "version": "0.1.0",
        "description": "Every record exactly once. Each answer carries `X-Request-Id`: the one sent, or a new one.",
    },
    "paths": {
        "/records": {
            "post": {
                "summary": "Take one record or a batch; the answer comes after the commit is durable",
                "parameters": [
                    _parameter("atomic", _BOOLEAN, "one commit or nothing"),
                    _parameter("dryRun", _BOOLEAN, "say what would become of the records, store nothing"),
                ],
                "description": "One object is one record, everything else is a batch. The body may be compressed: "
                "Content-Encoding gzip or zstd.",
                "requestBody": {
                    "required": True,
                    "content": _BODIES,
                },
                "responses": {
                    "201": _ok("one record, accepted", "SingleAnswer", accepted=_ACCEPTED),
                    "200": _ok(
                        "one record, a duplicate; or the answer to a batch, and to anything with dryRun",
                        "SingleAnswer",
                        "BatchAnswer",
                        duplicate=_DUPLICATE,
                        batch=SCHEMAS["BatchAnswer"]["example"],
                    ),
                    **_problems(
                        (
                            400,
                            "a parameter (`invalid_parameter`), or the body cannot be read (`undecodable`, `too_deep`)",
                        ),
                        (408, "the body did not arrive in time (`body_timeout`)"),
                        (409, "one record, in conflict with the stored one (`conflict`)"),
                        (
                            413,
                            "a limit (`too_large`, `too_large_decompressed`, `too_large_ratio`, `too_many_records`,"
                            " `too_many_rejected`, `too_large_atomic`)",
                        ),
                        (415, "unknown format or encoding (`unsupported_format`)"),
                        (422, "`invalid_record`, `invalid_schema` or `atomic_refused`"),
                        (429, "too much waits (`queue_full`): try again after the time in Retry-After"),
                        (507, "the disk is full (`disk_full`); nothing was stored"),
                    ),
                },
            },
            "get": {
                "summary": "One record by an id that does not fit a path",
                "parameters": [_parameter("recordId", {"type": "string"}, "the id", required=True)],
                "responses": {
                    "200": _ok("the record", "StoredRecord", record=_STORED),
                    **_problems(_BAD_PARAMETER, _NOT_FOUND),
                },
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
                    _parameter("limit", {"type": "integer", "minimum": 1, "maximum": 1_000_000}, "records on a page"),
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
                "responses": {
                    "200": _ok("the record", "StoredRecord", record=_STORED),
                    **_problems(_BAD_PARAMETER, _NOT_FOUND),
                },
            }
        },
        "/feeds/notifications": {"get": _feed("notifications")},
        "/feeds/alerts": {"get": _feed("alerts")},
        "/rejected": {
            "get": {
                "summary": "Dead letters, newest first",
                "description": "Those that were sent again with success are listed with `status=resolved` only; the "
                "letter that they were has `resolvedBy`.",
                "parameters": [
                    _parameter("sourceId", {"type": "string"}, "of the record, where it is JSON"),
                    _parameter("status", {"enum": ["conflict", "rejected", "resolved"]}, "conflict or rejected"),
                    _parameter("file", {"type": "string"}, "that it came in"),
                    _parameter("limit", {"type": "integer", "minimum": 1, "maximum": 1000}, "on a page, default 100"),
                    _parameter("cursor", {"type": "string"}, "`nextCursor` of the page before"),
                ],
                "responses": {"200": _ok("a page", "Rejected"), **_problems(_BAD_PARAMETER)},
            }
        },
        "/rejected/{id}/resubmit": {
            "post": {
                "summary": "The corrected record of a dead letter",
                "description": "Answered as a single record at `POST /records`; what became of the letter is kept.",
                "parameters": [_parameter("id", {"type": "string"}, "of the dead letter", where="path")],
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {"$ref": "#/components/schemas/Record"},
                            "example": RECORD_EXAMPLE,
                        }
                    },
                },
                "responses": {
                    "201": _ok("accepted", "SingleAnswer", accepted=_ACCEPTED),
                    "200": _ok("a duplicate", "SingleAnswer", duplicate=_DUPLICATE),
                    **_problems(
                        (400, "a parameter (`invalid_parameter`), or no JSON object (`undecodable`, `too_deep`)"),
                        (404, "there is no such letter (`not_found`)"),
                        (408, "the body did not arrive in time (`body_timeout`)"),
                        (409, "in conflict with the stored one (`conflict`)"),
                        (413, "a limit (`too_large`, `too_large_decompressed`, `too_large_ratio`, `too_many_records`)"),
                        (415, "unknown format or encoding (`unsupported_format`)"),
                        (422, "`invalid_record`"),
                        (429, "too much waits (`queue_full`): try again after the time in Retry-After"),
                        (507, "the disk is full (`disk_full`); nothing was stored"),
                    ),
                },
            }
        },
        "/metrics": {
            "get": {
                "summary": "What Prometheus reads",
                "responses": {
                    "200": {"description": "the text format of Prometheus", "content": {"text/plain": _METRICS}},
                    **_problems(_BAD_PARAMETER),
                },
            }
        },
        "/health": {
            "get": {
                "summary": "The state of each component",
                "responses": {
                    "200": _ok("all are ok", "Health"),
                    "503": _ok("one is not", "Health", failing=_FAILING),
                    **_problems(_BAD_PARAMETER),
                },
            }
        },
    },
    "components": {"schemas": SCHEMAS, "securitySchemes": SECURITY_SCHEMES},
}

DOCUMENT = completed(_ROUTES)


def schema_handlers() -> list[Any]:
    """The document and its page."""
    document = msgspec.json.format(msgspec.json.encode(DOCUMENT), indent=1)
    page = page_of(DOCUMENT).encode()

    @get("/schema/openapi.json")
    async def openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
        Parameters(request.scope["query_string"], ())
        return Response(document, media_type="application/json")

    @get("/schema")
    async def browse(request: Request[Any, Any, Any]) -> Response[bytes]:
        Parameters(request.scope["query_string"], ())
        return Response(page, media_type="text/html")

    return [openapi, browse]

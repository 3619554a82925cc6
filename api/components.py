"""The parts of the API's description that routes share: schemas, examples, and what every operation can answer."""

from __future__ import annotations

import re
from typing import Any

from api.access import ROUTES
from api.problem_examples import example_of

__all__ = ["CANONICAL_EXAMPLE", "RECORD_EXAMPLE", "SCHEMAS", "SECURITY_SCHEMES", "completed"]

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": 256}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SEQ: Schema = {"type": "integer", "minimum": 1}
_DECIMAL: Schema = {
    "type": "string",
    "pattern": r"^-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?$",
    "description": "an exact decimal in plain notation",
}
_TIME: Schema = {"type": "string", "format": "date-time"}

RECORD_EXAMPLE: Schema = {
    "recordId": "rec-001",
    "time": "2024-03-01T12:00:00Z",
    "sourceId": "source-a",
    "destinationId": "dest-123",
    "type": "positive",
    "value": "125.5",
    "unit": "SEK",
    "reference": "invoice-9",
}
CANONICAL_EXAMPLE: Schema = {**RECORD_EXAMPLE, "time": "2024-03-01T12:00:00.000000Z"}
_RECORD: dict[str, Schema] = {
    "recordId": _TEXT,
    "time": {**_TIME, "description": "RFC 3339 with an offset, in the years 1970 to 2200 in UTC"},
    "sourceId": _TEXT,
    "destinationId": _TEXT,
    "type": {"enum": ["positive", "negative"], "description": "the sign of the record"},
    "value": {"type": ["string", "number"], "description": "0 ≤ value < 10^20, at most 9 digits after the point"},
    "unit": {"type": "string", "minLength": 1, "maxLength": 32},
    "reference": _TEXT,
}
_CANONICAL = {**_RECORD, "value": _DECIMAL, "time": _TIME}


def _object(properties: dict[str, Schema], *, optional: tuple[str, ...] = (), **members: Any) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties, **members}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"oneOf": [schema, {"type": "null"}]}


_BATCH: dict[str, Schema] = {
    "received": _COUNT,
    "accepted": _COUNT,
    "duplicate": _COUNT,
    "conflict": _COUNT,
    "rejected": _COUNT,
    "firstSeq": _or_null(_SEQ),
    "lastSeq": _or_null(_SEQ),
    "problems": {**_list(_ref("RecordProblem")), "maxItems": 1_000},
    "problemsTruncated": {"type": "boolean"},
}
_PROBLEM: dict[str, Schema] = {
    "type": {"type": "string"},
    "title": {"type": "string"},
    "status": {"type": "integer"},
    "detail": {"type": "string", "description": "what is wrong, and how to mend it; for people, and may change"},
    "code": {"type": "string", "description": "stable; what a program decides by"},
}
_TOTAL = {"unit": _TEXT, "count": _COUNT, "positive": _DECIMAL, "negative": _DECIMAL, "net": _DECIMAL}

SCHEMAS: dict[str, Schema] = {
    "Problem": _object(
        {
            **_PROBLEM,
            "parameter": {"type": "string", "description": "of the query, that is to blame"},
            "position": {"type": "string", "description": "in the body, where it breaks"},
            "recordId": {"type": ["string", "null"]},
            "seq": {**_or_null(_SEQ), "description": "of the stored record that this one conflicts with"},
            "fields": {**_list({"type": "string"}), "description": "names that differ from the stored record"},
            "errors": {**_list(_ref("FieldError")), "description": "every rule that a record breaks"},
            "available": {**_list({"type": "string"}), "description": "media types that there are"},
            "file": {"type": "string", "description": "that is damaged"},
        },
        optional=("parameter", "position", "recordId", "seq", "fields", "errors", "available", "file"),
        description="RFC 9457; an atomic batch that was refused has the members of BatchAnswer too",
    ),
    "FieldError": _object(
        {
            "field": {"type": ["string", "null"]},
            "code": {"type": "string"},
            "message": {"type": "string"},
        }
    ),
    "Record": _object(_RECORD, additionalProperties=False, example=RECORD_EXAMPLE),
    "StoredRecord": _object({"seq": _SEQ, "processedAt": _TIME, **_CANONICAL}),
    "SingleAnswer": _object(
        {"recordId": _TEXT, "status": {"enum": ["accepted", "duplicate"]}, "seq": _or_null(_SEQ)},
        example={"recordId": "rec-001", "status": "accepted", "seq": 1},
    ),
    "RecordProblem": _object(
        {
            "index": {**_COUNT, "description": "of the record in its batch"},
            "recordId": {"type": ["string", "null"]},
            "status": {"enum": ["conflict", "rejected"]},
            "seq": {**_or_null(_SEQ), "description": "of the record that it conflicts with"},
            "fields": {**_list({"type": "string"}), "description": "names that differ"},
            "errors": _list(_ref("FieldError")),
        },
        optional=("seq", "fields", "errors"),
    ),
    "BatchAnswer": _object(
        _BATCH,
        example={
            "received": 2, "accepted": 1, "duplicate": 0, "conflict": 1, "rejected": 0, "firstSeq": 2, "lastSeq": 2,
            "problems": [{"index": 1, "recordId": "rec-001", "status": "conflict", "seq": 1, "fields": ["value"]}],
            "problemsTruncated": False,
        },
    ),
    "Total": _object(_TOTAL),
    "Group": _object(
        {
            "destinationId": _TEXT,
            "count": _COUNT,
            "total": {**_or_null(_DECIMAL), "description": "the net, where the group has one unit"},
            "totals": _list(_ref("Total")),
            "records": _list(_object({"seq": _SEQ, **_CANONICAL})),
        },
        optional=("records",),
    ),
    "Aggregation": _object(
        {
            "asOf": _COUNT,
            "groups": _list(_ref("Group")),
            "totals": _list(_ref("Total")),
            "nextCursor": {"type": ["string", "null"]},
        },
        example={
            "asOf": 1,
            "groups": [
                {
                    "destinationId": "dest-123", "count": 1, "total": "125.5",
                    "totals": [{"unit": "SEK", "count": 1, "positive": "125.5", "negative": "0", "net": "125.5"}],
                    "records": [{"seq": 1, **CANONICAL_EXAMPLE}],
                }
            ],
            "totals": [{"unit": "SEK", "count": 1, "positive": "125.5", "negative": "0", "net": "125.5"}],
            "nextCursor": None,
        },
    ),
    "Rejected": _object(
        {"items": _list(_ref("DeadLetter")), "nextCursor": {"type": ["string", "null"]}},
        example={
            "items": [
                {
                    "id": "12-1", "status": "conflict", "recordId": "rec-001", "sourceId": "source-a", "seq": 1,
                    "errors": None, "fields": ["value"], "record": '{"recordId":"rec-001"}', "encoding": "utf-8",
                    "truncated": False, "time": "2024-03-01T12:00:07.512034Z", "resolvedBy": None,
                    "source": {"request": None, "file": "batch.ndjson", "line": 4, "index": 3, "letter": None},
                }
            ],
            "nextCursor": None,
        },
    ),
    "DeadLetter": _object(
        {
            "id": {"type": "string"},
            "status": {"enum": ["conflict", "rejected", "resolved"]},
            "recordId": {"type": ["string", "null"]},
            "sourceId": {"type": ["string", "null"]},
            "seq": {**_or_null(_SEQ), "description": "of the stored record"},
            "errors": _or_null(_list(_ref("FieldError"))),
            "fields": _or_null(_list({"type": "string"})),
            "record": {"type": ["string", "null"], "description": "as it was received"},
            "encoding": {"enum": ["utf-8", "base64"]},
            "truncated": {"type": "boolean"},
            "source": {"type": "object", "description": "request or file, line, index; letter that was sent again"},
            "time": _TIME,
            "resolvedBy": {"type": ["object", "null"], "description": "the record that took its place"},
        }
    ),
    "Health": _object(
        {
            "status": {"enum": ["ok", "failing"]},
            "components": {"type": "object", "additionalProperties": _object({"status": {"type": "string"}})},
        },
        example={"status": "ok", "components": {"store": {"status": "ok", "seq": 12, "flushedSeq": 10}}},
    ),
}  # fmt: skip

SECURITY_SCHEMES: Schema = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "Made by `oncelake token`. Without tokens in the configuration none is asked for.",
    }
}

_EVERYWHERE = {
    400: "malformed HTTP (`bad_request`)",
    408: "the head of the request came too slowly (`header_timeout`)",
    431: "the head of the request is too long (`headers_too_large`)",
    500: "the service failed (`internal`), or stored data is damaged (`corruption`)",
    503: "stopping (`stopping`), too much going on (`unavailable`), or too many connections (`too_many_connections`)",
}
_GUARDED = {
    401: "no token, or one that is not known (`unauthorized`)",
    403: "the role of the token does not allow this (`forbidden`)",
}
_PROBLEM_MEDIA_TYPE = "application/problem+json"
_RETRY = (("Retry-After", "seconds after which to try again, where that helps"),)
_HEADERS = {401: (("WWW-Authenticate", "`Bearer`"),), 429: _RETRY, 503: _RETRY}


def completed(document: Schema) -> Schema:
    """A document whose operations also say who may ask, and every problem that any of them can answer.

    Problems whose description names codes in backticks get an example for each.
    """
    paths = {
        path: {method: _completed(method, path, operation) for method, operation in operations.items()}
        for path, operations in document["paths"].items()
    }
    return {**document, "paths": paths}


def _completed(method: str, path: str, operation: Schema) -> Schema:
    allowed = ROUTES.get((method.upper(), path), frozenset())
    is_open = "anyone" in allowed
    responses = dict(operation["responses"])
    for status, meaning in {**_EVERYWHERE, **({} if is_open else _GUARDED)}.items():
        known = responses.get(str(status))
        if known is None:
            responses[str(status)] = {"description": meaning}
        elif _PROBLEM_MEDIA_TYPE in known.get("content", {}):
            responses[str(status)] = {**known, "description": f"{known['description']}; {meaning}"}
    responses = {status: _with_content(int(status), answer) for status, answer in sorted(responses.items())}
    who = "everybody" if is_open else ", ".join([*sorted(allowed), "admin"])
    security: list[Schema] = [] if is_open else [{"token": []}]
    description = " ".join(filter(None, [operation.get("description"), f"Roles: {who}."]))
    return {**operation, "description": description, "security": security, "responses": responses}


def _with_content(status: int, answer: Schema) -> Schema:
    content = answer.get("content", {})
    if status < 400 or (content and _PROBLEM_MEDIA_TYPE not in content):
        return answer
    schema = content.get(_PROBLEM_MEDIA_TYPE, {}).get("schema", _ref("Problem"))
    codes = re.findall(r"`([a-z_]+)`", answer["description"])
    problem = {"schema": schema, "examples": {code: {"value": example_of(status, code)} for code in codes}}
    headers = {name: {"schema": {"type": "string"}, "description": text} for name, text in _HEADERS.get(status, ())}
    found = {**answer, "content": {**content, _PROBLEM_MEDIA_TYPE: problem}}
    return {**found, "headers": {**headers, **answer.get("headers", {})}} if headers else found

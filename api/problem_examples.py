"""One example of each problem, as the service words it: what a client programs against, before it happens.

A test holds the list against the codes of the code, so that none is described without an example.
"""

from __future__ import annotations

from typing import Any

from api.problems import title_of

__all__ = ["PROBLEM_EXAMPLES", "example_of"]

_ERROR = {
    "field": "value",
    "code": "value_scale",
    "message": "value is '1.0000000005'; at most 9 digits may stand after the point.",
}
_BATCH = {
    "received": 2, "accepted": 1, "duplicate": 0, "conflict": 0, "rejected": 1, "firstSeq": None, "lastSeq": None,
    "problems": [{"index": 1, "recordId": "rec-002", "status": "rejected", "errors": [_ERROR]}],
    "problemsTruncated": False,
}  # fmt: skip

PROBLEM_EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "invalid_parameter": (
        "there is no parameter 'destinationID'; did you mean 'destinationId'?",
        {"parameter": "destinationID"},
    ),
    "undecodable": (
        "The document is not JSON: it ends within the array (byte 3).",
        {"position": "byte 3"},
    ),
    "too_deep": (
        "The body cannot be decoded. Nested more than 64 deep (ingest.max_json_depth); a record holds no arrays or "
        "objects.",
        {},
    ),
    "bad_request": ("the request is not HTTP/1.1", {}),
    "unauthorized": ("this takes a token that is known here, as in Authorization: Bearer olk_…", {}),
    "forbidden": ("this takes the role read or admin; the token 'meters' is ingest", {}),
    "not_found": ("there is no record 'rec-404'", {"recordId": "rec-404"}),
    "not_acceptable": (
        "the answer cannot be had as 'text/html'; there is application/json, text/csv",
        {"available": ["application/json", "text/csv"]},
    ),
    "header_timeout": ("the head of the request did not arrive within 10 s (api.header_timeout_s)", {}),
    "body_timeout": ("the body did not arrive within 30 s (api.body_timeout_s)", {}),
    "conflict": (
        "the record is stored already, as seq 1, with other values; it was not changed",
        {"recordId": "rec-001", "seq": 1, "fields": ["value"]},
    ),
    "too_large": (
        "a body may have 33554432 bytes (api.max_body_bytes): send smaller batches, or drop a file",
        {},
    ),
    "too_large_decompressed": (
        "The batch has more than 268435456 bytes when decompressed (ingest.max_decompressed_bytes): send smaller "
        "batches, or drop a file.",
        {},
    ),
    "too_large_ratio": (
        "The batch grows more than 500 times when decompressed (ingest.max_ratio): compress it less.",
        {},
    ),
    "too_many_records": (
        "The batch has more than 2000000 records (ingest.max_batch_records): send smaller batches, or drop a file.",
        {},
    ),
    "too_many_rejected": (
        "The batch has more than 500000 records that break a rule; send less at once.",
        {},
    ),
    "too_large_atomic": (
        "an atomic batch may hold 65536 records (ingest.atomic_records), this one holds 65537: send it without atomic, "
        "or in smaller batches",
        {},
    ),
    "unsupported_format": ("The content encoding 'br' is not known. Known are: gzip, zstd.", {}),
    "invalid_record": (
        f"the record breaks a rule: {_ERROR['message']}",
        {"recordId": "rec-001", "errors": [_ERROR]},
    ),
    "invalid_schema": (
        "The column 'value' is of the type double; it must be a decimal, an integer or a string.",
        {},
    ),
    "atomic_refused": ("nothing of the batch was stored; conflicts: 0, rejected: 1", _BATCH),
    "answer_too_large": (
        "the answer has more than 100000 rows (api.max_answer_rows): ask for it in pages with limit and cursor, or for "
        "a shorter time or fewer destinations",
        {},
    ),
    "queue_full": (
        "too many batches wait to be committed (ingest.queue_batches, ingest.queue_records): try again in a second",
        {},
    ),
    "headers_too_large": ("the head of a request may have 65536 bytes (api.max_header_bytes)", {}),
    "internal": ("the service failed to answer; what went wrong is in its log", {}),
    "corruption": ("stored data is damaged: the operator finds it in the log", {}),
    "stopping": ("the service is stopping: send the batch again when it is back", {}),
    "unavailable": ("no process to read the batch in could be started: Resource temporarily unavailable", {}),
    "too_many_connections": ("1000 connections are open (api.max_connections): come back", {}),
    "too_many_queries": ("64 questions wait for their answers (api.waiting_queries): try again later", {}),
    "too_many_answers": ("64 answers are being read (api.open_answers): try again later", {}),
    "query_timeout": (
        "the question takes more than 120 s (store.query_timeout_s): ask for a shorter time or fewer destinations, or "
        "raise that key",
        {},
    ),
    "query_memory": (
        "the question needs more memory than store.query_memory (192MB) gives it: ask for a shorter time or fewer "
        "destinations, or raise that key",
        {},
    ),
    "disk_full": ("no room on the device of /data: nothing was stored, make room and try again", {}),
}
"""By code: the detail, and the members beside the fixed ones."""


def example_of(status: int, code: str) -> dict[str, Any]:
    """The problem as it is sent."""
    detail, members = PROBLEM_EXAMPLES[code]
    return {
        "type": "about:blank", "title": title_of(status), "status": status, "detail": detail, "code": code, **members
    }  # fmt: skip

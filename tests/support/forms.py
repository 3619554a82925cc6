"""Answers in every format, read back into the JSON values of their rows."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from store.queries import RECORDS, TOTALS
from tests.support.model import canonical_time, plain

__all__ = ["FORMS", "rows_in", "rows_of_json"]

FORMS = {
    "ndjson": "application/x-ndjson",
    "csv": "text/csv",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}


def rows_of_json(answer: dict[str, Any], include: str) -> list[dict[str, Any]]:
    """The rows that the flat formats must have, from the JSON answer (or the model's)."""
    if include == "records":
        return [row for group in answer["groups"] for row in group["records"]]
    return [{"destinationId": group["destinationId"], **row} for group in answer["groups"] for row in group["totals"]]


def rows_in(form: str, body: bytes, include: str) -> list[dict[str, Any]]:
    """The rows of an answer, with columns and types checked."""
    schema = RECORDS if include == "records" else TOTALS
    if form == "ndjson":
        assert body == b"" or body.endswith(b"\n")
        return [json.loads(line) for line in body.split(b"\n")[:-1]]
    if form == "csv":
        header, *lines = csv.reader(io.StringIO(body.decode(), newline=""))
        assert header == schema.names
        rows = [dict(zip(header, line, strict=True)) for line in lines]
        return [{name: int(text) if name in ("seq", "count") else text for name, text in row.items()} for row in rows]
    table = pa.ipc.open_stream(body).read_all() if form == "arrow" else pq.read_table(io.BytesIO(body))
    assert [(field.name, field.type) for field in table.schema] == [(field.name, field.type) for field in schema]
    if include == "records":
        at = table.schema.get_field_index("time")
        table = table.set_column(at, "time", table.column("time").cast(pa.int64()))
    return [{name: _text(name, value) for name, value in row.items()} for row in table.to_pylist()]


def _text(name: str, value: Any) -> Any:
    if name == "time":
        return canonical_time(value)
    return plain(value) if name in ("value", "positive", "negative", "net") else value

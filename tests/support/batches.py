"""The same records written down in every format and compression of the contract, section 3."""

from __future__ import annotations

import csv
import gzip
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.support.model import FIELDS, Canonical, canonical

MEDIA_TYPES = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
    "arrows": "application/vnd.apache.arrow.stream",
    "arrow": "application/vnd.apache.arrow.file",
}
ROW_FORMATS = ("json", "ndjson", "csv")
COMPRESSIONS = (None, "gzip", "zstd")
ENDINGS = {None: "", "gzip": ".gz", "zstd": ".zst"}


def encoded(records: list[dict[str, Any]], fmt: str, compression: str | None = None) -> bytes:
    """Records (all values texts) as the bytes of a batch."""
    return compressed(_WRITERS[fmt](records), compression)


def of_canonical(records: list[Canonical]) -> list[dict[str, Any]]:
    """Canonical records as what `encoded` takes."""
    return [dict(canonical(record)) for record in records]


def compressed(data: bytes, compression: str | None) -> bytes:
    """The bytes in a compression."""
    if compression == "gzip":
        return gzip.compress(data, 1)
    return zstandard.ZstdCompressor().compress(data) if compression == "zstd" else data


def _json(records: list[dict[str, Any]]) -> bytes:
    return json.dumps(records, ensure_ascii=False).encode()


def _ndjson(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def _csv(records: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(FIELDS)
    writer.writerows([[record[name] for name in FIELDS] for record in records])
    return text.getvalue().encode()


def table(records: list[dict[str, Any]]) -> pa.Table:
    """Records as a table of strings."""
    return pa.table({name: pa.array([record[name] for record in records], pa.string()) for name in FIELDS})


def _parquet(records: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table(records), sink)
    return sink.getvalue()


def _arrow_stream(records: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table(records).schema) as writer:
        writer.write_table(table(records))
    return sink.getvalue()


def _arrow_file(records: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table(records).schema) as writer:
        writer.write_table(table(records))
    return sink.getvalue()


_WRITERS = {
    "json": _json,
    "ndjson": _ndjson,
    "csv": _csv,
    "parquet": _parquet,
    "arrows": _arrow_stream,
    "arrow": _arrow_file,
}

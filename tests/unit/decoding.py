"""What the tests of the decoders share: ordinary records in every format, and chunks as plain values."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from ingest.batch import Chunk
from ingest.formats import Compression, Format
from store.schema import CANONICAL_FIELDS, RECORD

GOOD = {
    "recordId": "rec-1",
    "time": "2024-03-01T12:00:00Z",
    "sourceId": "s",
    "destinationId": "d",
    "type": "positive",
    "value": "1",
    "unit": "SEK",
    "reference": "r",
}


def line(**fields: object) -> bytes:
    """An ordinary record as JSON, with some fields in other text: `value` is a token, others are encoded."""
    content = {**GOOD, **fields}
    tokens = {name: str(found) if name == "value" else json.dumps(found) for name, found in content.items()}
    return ("{" + ",".join(f"{json.dumps(name)}:{token}" for name, token in tokens.items()) + "}").encode()


def sample(count: int) -> list[dict[str, str]]:
    """Records as texts, some of which break rules that every format can express."""
    records = []
    for at in range(count):
        found = {**GOOD, "recordId": f"rec-{at}-é", "value": f"{at}.{at % 7}", "sourceId": f"s{at % 3}"}
        found["time"] = (datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=at)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if at % 11 == 3:
            found["unit"] = ""
        if at % 13 == 5:
            found["value"] = f"-{at}"
        if at % 17 == 7:
            found |= {"recordId": "x" * 257, "type": "maybe"}
        records.append(found)
    return records


def as_ndjson(records: list[dict[str, str]]) -> bytes:
    return b"".join(line(**record) + b"\n" for record in records)


def as_json(records: list[dict[str, str]]) -> bytes:
    return b"[" + b" ,\n".join(line(**record) for record in records) + b"]"


def as_csv(records: list[dict[str, str]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(reversed(CANONICAL_FIELDS)), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().encode()


def as_table(records: list[dict[str, str]]) -> pa.Table:
    columns = {name: pa.array([record[name] for record in records], pa.string()) for name in CANONICAL_FIELDS}
    columns["value"] = pa.array([Decimal(record["value"]) for record in records], pa.decimal128(38, 9))
    columns["time"] = columns["time"].cast(pa.timestamp("us", "UTC"))
    return pa.table(columns)


def as_parquet(records: list[dict[str, str]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(as_table(records), out, row_group_size=37)
    return out.getvalue()


def arrow_bytes(table: pa.Table, *, file: bool = False) -> bytes:
    out = io.BytesIO()
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=41)
    return out.getvalue()


ENCODERS: dict[Format, Callable[[list[dict[str, str]]], bytes]] = {
    Format.NDJSON: as_ndjson,
    Format.JSON: as_json,
    Format.CSV: as_csv,
    Format.PARQUET: as_parquet,
    Format.ARROW_STREAM: lambda records: arrow_bytes(as_table(records)),
    Format.ARROW_FILE: lambda records: arrow_bytes(as_table(records), file=True),
}


def compressed(data: bytes, compression: Compression) -> bytes:
    """In two members or frames, which every decoder of them must put together."""
    half = len(data) // 2
    if compression is Compression.GZIP:
        return gzip.compress(data[:half]) + gzip.compress(data[half:])
    if compression is Compression.ZSTD:
        return zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    return data


def facts(chunks: Iterable[Chunk], *, lines: bool = True) -> list[tuple[object, ...]]:
    """All outcomes in order, whatever the chunks: (index, line, what)."""
    found: list[tuple[object, ...]] = []
    at = None
    for chunk in chunks:
        assert chunk.records.schema == RECORD
        chunk.records.validate(full=True)
        assert chunk.received == chunk.records.num_rows + len(chunk.rejects)
        assert len(chunk.index) == chunk.records.num_rows
        if at is not None:
            assert chunk.end.index == at + chunk.received
        at = chunk.end.index
        rows: list[tuple[object, ...]] = []
        for row, record in enumerate(zip(*(column.to_pylist() for column in chunk.records.columns), strict=True)):
            rows.append((int(chunk.index[row]), chunk.locate(row).line if lines else None, record))
        for reject in chunk.rejects:
            errors = tuple((error.field, error.code) for error in reject.errors)
            rows.append((reject.index, reject.line if lines else None, reject.record_id, errors))
        found.extend(sorted(rows, key=lambda row: row[0]))  # type: ignore[arg-type, return-value]
    first = found[0][0] if found else 0
    assert isinstance(first, int)
    assert [row[0] for row in found] == list(range(first, first + len(found)))
    return found

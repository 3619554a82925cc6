"""The record: its fields, limits and column types, in the one place that everything else takes them from.

The limits stand in `store/limits.py`, for what does without pyarrow.

`RECORD` is a validated record, `STORED` is what a committed one is everywhere: in hot rows, in the Parquet files and
in every query (the order of the columns is the order in the files).
"""

from __future__ import annotations

import pyarrow as pa

from store.limits import (
    FIELD_LIMIT,
    FORMAT_VERSION,
    SCALE,
    SCALED_VALUE_LIMIT,
    TIME_MAX_US,
    TIME_MIN_US,
    UNIT_LIMIT,
)

__all__ = [
    "CANONICAL_FIELDS",
    "FIELD_LIMIT",
    "FORMAT_VERSION",
    "RECORD",
    "SCALE",
    "SCALED_VALUE_LIMIT",
    "STORED",
    "STRING_FIELDS",
    "TIME_MAX_US",
    "TIME_MIN_US",
    "UNIT_LIMIT",
]

_TIMESTAMP = pa.timestamp("us", tz="UTC")
_DECIMAL = pa.decimal128(38, SCALE)

RECORD = pa.schema(
    [
        pa.field("recordId", pa.string(), nullable=False),
        pa.field("time", _TIMESTAMP, nullable=False),
        pa.field("sourceId", pa.string(), nullable=False),
        pa.field("destinationId", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("value", _DECIMAL, nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),
    ]
)
"""A validated record: time in UTC microseconds, value with exactly nine digits after the point."""

CANONICAL_FIELDS: tuple[str, ...] = tuple(RECORD.names)

STRING_FIELDS: tuple[str, ...] = ("recordId", "sourceId", "destinationId", "type", "unit", "reference")

STORED = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        *RECORD,
        pa.field("processedAt", _TIMESTAMP, nullable=False),
    ]
)
"""A committed record, in the order of the columns of `records/**/*.parquet`."""

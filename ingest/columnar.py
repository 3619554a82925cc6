"""Parquet and Arrow: columns that are checked as columns, in bounded memory.

`value` may be a decimal, an integer or a string, `time` a timestamp with a zone (digits beyond the microsecond are cut
off) or an RFC 3339 string, every other column a string (also large, view or dictionary-encoded). A missing, unknown
or inexact column is `InvalidSchemaError`; a null or a value that breaks a rule rejects its row. Everything that
pyarrow raises on these bytes is `UndecodableError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ingest.batch import Chunk, Located, Record, Reject
from ingest.lines import Decoded, Ints
from ingest.record import Micros, Number, Rejected, Rules, check_fields, malformed
from ingest.untrusted import is_text, translated
from ingest.validate import check_columns, columns_of, merge
from store.journal import Position
from store.schema import CANONICAL_FIELDS, SCALE, STRING_FIELDS

__all__ = ["columnar_chunks"]

Mask = npt.NDArray[np.bool_]

_DECIMAL = pa.decimal128(38, SCALE)
_TIMESTAMP = pa.timestamp("us", tz="UTC")
_UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EXACT_ROWS = 256
_SHOWN_CHARS = 4_096


def columnar_chunks(batches: Iterator[pa.RecordBatch], rules: Rules, start: Position) -> Iterator[Chunk]:
    """A chunk for each batch of the known columns; the first batch begins at `start` (an offset in rows)."""
    at = start
    for batch in batches:
        chunk = _chunk(batch, rules, at)
        at = chunk.end
        yield chunk


def _chunk(batch: pa.RecordBatch, rules: Rules, at: Position) -> Chunk:
    with translated("data"):
        decoded = _decode(batch, rules)
        rejects = [
            Reject(at.index + row, None, found.record_id, found.errors, _original(batch, row), found.source_id)
            for row, found in decoded.rejected
        ]

    def locate(row: int) -> Located:
        return Located(None, _original(batch, int(decoded.rows[row])))

    end = Position(at.offset + batch.num_rows, at.index + batch.num_rows, 0)
    return Chunk(decoded.records, decoded.rows + at.index, rejects, batch.num_rows, locate, end)


def _decode(batch: pa.RecordBatch, rules: Rules) -> Decoded:
    """All rows of a batch: those that surely pass as columns, the others one by one."""
    good = np.ones(batch.num_rows, np.bool_)
    columns = {name: _as_text(batch.column(name), good) for name in STRING_FIELDS}
    time, value = batch.column("time"), batch.column("value")
    time = _as_text(time, good) if is_text(time.type) else _as_micros(time, good)
    value = _as_text(value, good) if is_text(value.type) else _as_decimal(value, good)
    checked = check_columns(columns, time, value, rules)
    sure = checked.sure & good
    records = checked.records
    if not good.all():
        records = records.filter(pa.array(good[checked.sure]))
    rejected: list[tuple[int, Rejected]] = []
    kept: list[int] = []
    exact: list[Record] = []
    for row in np.flatnonzero(~sure).tolist():
        found = _exact(batch, row, rules)
        if isinstance(found, Record):
            kept.append(row)
            exact.append(found)
        else:
            rejected.append((row, found))
    parts: list[tuple[Ints, pa.RecordBatch]] = [(np.flatnonzero(sure), records)]
    if kept:
        parts.append((np.array(kept, np.int64), columns_of(exact)))
    rows, records = merge(parts)
    return Decoded(rows, records, rejected)


def _as_text(column: pa.Array, good: Mask) -> pa.StringArray:
    """A text column as plain strings; rows that are not UTF-8 hold "" and lose their `good`."""
    if pa.types.is_dictionary(column.type):
        bad = ~_utf8_rows(column.dictionary)
        if bad.any():
            indices = column.indices.fill_null(0).to_numpy(zero_copy_only=False)
            good &= ~(bad[indices] & column.is_valid().to_numpy(zero_copy_only=False))
            texts = [None if wrong else text for wrong, text in zip(bad, _bytes_of(column.dictionary), strict=True)]
            column = pa.DictionaryArray.from_arrays(column.indices, pa.array(texts, pa.binary()).cast(pa.string()))
        return column.cast(pa.string())
    valid = _utf8_rows(column)
    if not valid.all():
        good &= valid
        texts = _bytes_of(column)
        column = pa.array([text if ok else b"" for ok, text in zip(valid, texts, strict=True)], pa.binary())
    return column.cast(pa.string())


def _bytes_of(column: pa.Array) -> list[bytes | None]:
    found: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return found


def _utf8_rows(column: pa.Array) -> Mask:
    """Which rows of a text column are UTF-8 (nulls are)."""
    try:
        column.validate(full=True)
        return np.ones(len(column), np.bool_)
    except pa.ArrowInvalid:
        return np.array([_is_utf8(text) for text in _bytes_of(column)], np.bool_)


def _is_utf8(text: bytes | None) -> bool:
    try:
        (text or b"").decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _as_micros(column: pa.Array, good: Mask) -> pa.Array:
    """A timestamp column in UTC microseconds, cut off downwards; rows outside of 64 bits lose their `good`."""
    per_second = _UNITS_PER_SECOND[column.type.unit]
    ticks = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    if per_second > 10**6:
        micros = np.floor_divide(ticks, per_second // 10**6)
    else:
        factor = 10**6 // per_second
        fits = np.abs(ticks // 2) <= (2**62 - 1) // factor
        good &= fits
        micros = np.where(fits, ticks, 0) * factor
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    return pa.array(micros, pa.int64(), mask=~valid).cast(_TIMESTAMP)


def _as_decimal(column: pa.Array, good: Mask) -> pa.Array:
    """A number column as the record's decimal; rows where that is not exact hold 0 and lose their `good`."""
    kind = column.type
    if pa.types.is_integer(kind) or (0 <= kind.scale <= SCALE and kind.precision - kind.scale <= 29):
        return column.cast(_DECIMAL)
    # Arrow checks an overflow of rescaling only roughly (1e31 wraps), so that only rows of a safe size are cast.
    wide = column.cast(pa.decimal256(76, kind.scale)) if kind.scale >= 0 else None
    if wide is None or kind.scale > 46:
        good[:] = False
        return pa.array([Decimal(0)] * len(column), _DECIMAL)
    limit = pa.scalar(Decimal(10) ** 20, wide.type)
    floor = pa.scalar(-(Decimal(10) ** 20), wide.type)
    inside = pc.and_(pc.less(wide, limit), pc.greater_equal(wide, floor)).fill_null(True)
    good &= inside.to_numpy(zero_copy_only=False)
    wide = pc.if_else(inside, wide, pa.scalar(Decimal(0), wide.type))
    return _exact_cast(wide, good, 0)


def _exact_cast(column: pa.Array, good: Mask, first: int) -> pa.Array:
    """Cast, which fails where a digit would be lost; halves find the rows to blame."""
    try:
        return column.cast(_DECIMAL)
    except pa.ArrowInvalid:
        if len(column) <= _EXACT_ROWS:
            good[first : first + len(column)] = False
            return pa.array([Decimal(0)] * len(column), _DECIMAL)
    half = len(column) // 2
    parts = [_exact_cast(column[:half], good, first), _exact_cast(column[half:], good, first + half)]
    return pa.concat_arrays(parts)


def _cell(column: pa.Array, row: int) -> object:
    """One value as `check_fields` takes it; bytes where it is a text that is not UTF-8."""
    scalar = column[row]
    if not scalar.is_valid:
        return None
    if pa.types.is_dictionary(column.type):
        scalar = column.dictionary[scalar.index.as_py()]
        if not scalar.is_valid:
            return None
    if is_text(column.type):
        raw: bytes = scalar.as_buffer().to_pybytes()
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw
    if pa.types.is_timestamp(column.type):
        return Micros(scalar.value * 10**6 // _UNITS_PER_SECOND[column.type.unit])
    found = scalar.as_py()
    return Number(format(found, "f") if isinstance(found, Decimal) else str(found))


def _exact(batch: pa.RecordBatch, row: int, rules: Rules) -> Record | Rejected:
    cells = {name: _cell(batch.column(name), row) for name in CANONICAL_FIELDS}
    for name, cell in cells.items():
        if isinstance(cell, bytes):
            return malformed(f"{name} is not UTF-8.", field=name)
    return check_fields(cells, rules)


def _original(batch: pa.RecordBatch, row: int) -> bytes:
    """A row as compact JSON: numbers as strings, times in RFC 3339 where the calendar has them."""
    shown: dict[str, object] = {}
    for name in CANONICAL_FIELDS:
        cell = _cell(batch.column(name), row)
        if isinstance(cell, Micros):
            cell = _time_text(cell)
        elif isinstance(cell, bytes):
            cell = cell.decode("utf-8", "backslashreplace")
        # Capped: a small file can say a long text very often, and each reject is held until the commit.
        shown[name] = str(cell)[:_SHOWN_CHARS] if cell is not None else None
    return msgspec.json.encode(shown)


def _time_text(micros: int) -> str:
    try:
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    except OverflowError:
        return f"{micros} microseconds since 1970"
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f") + "Z"

"""What a run holds of summaries, as columns: a second reading of docs/formats.md ("Summary runs"), number by number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from store.arrays import I64, U64

__all__ = ["SUMMARY", "in_columns"]

_DECIMAL = pa.decimal128(38, 9)
SUMMARY = [
    ("hi", pa.uint64()),
    ("lo", pa.uint64()),
    ("unit", pa.string()),
    ("count", pa.int64()),
    ("positive", _DECIMAL),
    ("negative", _DECIMAL),
    ("first", pa.int64()),
    ("last", pa.int64()),
    ("lastSeq", pa.int64()),
]
"""The columns, which runs had as such before format 4."""

_HEADER_BYTES = 4


def in_columns(page: pa.RecordBatch) -> pa.RecordBatch:
    """A page of (hi, lo, summary) with the columns of `SUMMARY`. `pa.ArrowInvalid` where a row is no summary."""
    column = page.column("summary")
    _, offsets, text = column.buffers()
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    data = np.frombuffer(text if text is not None else b"", np.uint8)
    begin, end = bounds[:-1], bounds[1:]
    if (end - begin < _HEADER_BYTES).any():
        raise pa.ArrowInvalid("a summary is shorter than its header")
    halves = [data[begin + byte] >> shift & 15 for byte in (1, 2, 3) for shift in (0, 4)]
    widths = [np.where(half == 15, 16, half).astype(np.int64) for half in halves]
    if (sum(widths, begin + _HEADER_BYTES + data[begin]) != end).any():
        raise pa.ArrowInvalid("a summary has another length than its header says")
    if any((widths[number] > 8).any() for number in (0, 3, 4, 5)):
        raise pa.ArrowInvalid("a number of a summary has more than eight bytes")
    at = begin + _HEADER_BYTES
    numbers: list[tuple[U64, U64]] = []
    for width in widths:
        numbers.append((_word(data, at, np.minimum(width, 8)), _word(data, at + 8, np.maximum(width - 8, 0))))
        at = at + width
    (count, _), positive, negative, (first, _), (span, _), (last_seq, _) = numbers
    sizes = end - at
    ends = np.append(0, np.cumsum(sizes))
    units = data[np.repeat(at - ends[:-1], sizes) + np.arange(ends[-1])]
    unit = pa.StringArray.from_buffers(len(column), pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(units))
    totals = [_decimals(*sum_) for sum_ in (positive, negative)]
    times = [pa.array(number.view(np.int64)) for number in (first, first + span, last_seq)]
    columns = [page.column("hi"), page.column("lo"), unit, pa.array(count.view(np.int64)), *totals, *times]
    return pa.record_batch(columns, schema=pa.schema(SUMMARY))


def _word(data: npt.NDArray[np.uint8], at: I64, width: I64) -> U64:
    """Little-endian numbers of up to eight bytes, where they are."""
    word = np.zeros(len(at), np.uint64)
    for byte in range(int(width.max(initial=0))):
        has = width > byte
        word[has] |= data[at[has] + byte].astype(np.uint64) << np.uint64(8 * byte)
    return word


def _decimals(low: U64, high: U64) -> pa.Array:
    """Even numbers are twice a sum, odd ones a negative sum: twice its distance from 0, less one."""
    is_negative = low & np.uint64(1) == 1
    half_low, half_high = low >> np.uint64(1) | high << np.uint64(63), high >> np.uint64(1)
    words = np.stack([np.where(is_negative, ~half, half) for half in (half_low, half_high)], axis=1)
    return pa.Array.from_buffers(_DECIMAL, len(low), [None, pa.py_buffer(np.ascontiguousarray(words))])

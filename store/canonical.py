"""Rendering in the canonical form, a column at a time.

Every function takes an array, sliced or chunked as it may be and without nulls, and gives one string array of as many
rows. The work is done by NumPy gathers and pyarrow kernels; Python looks at single rows only where one has to be
escaped. Records are rendered in C where that is there (`store.kernels`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from decimal import Decimal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from store import kernels
from store.schema import CANONICAL_FIELDS, RECORD, SCALE, STRING_FIELDS, TIME_MAX_US
from store.whole import whole

__all__ = [
    "json_strings",
    "render_csv",
    "render_decimals",
    "render_integers",
    "render_objects",
    "render_records",
    "render_times",
    "text_of",
]

_Bytes = npt.NDArray[np.void]

_DECIMAL = pa.decimal128(38, SCALE)
_DAY_S = 86_400
_DAYS = TIME_MAX_US // (_DAY_S * 1_000_000)
_DAYS_AT_ONCE = 512

# A text of 27 bytes in the pieces that tables hold: 2024-03-01 | T12:00:00. | 123 | 456Z
_PIECES = np.dtype([("date", "V10"), ("second", "V10"), ("ms", "V3"), ("us", "V4")])

_BLOCK_ROWS = 32_768
"""Rows rendered at a time, so that what lies between two steps stays in the cache."""

_TINY = 1_000
"""Arrow writes values nearer to 0 than 10^-6, which is this many units of 10^-9, with an exponent; also 0 itself."""


def render_integers(numbers: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Integers in decimal digits."""
    return whole(numbers).cast(pa.string())


def render_times(times: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Timestamps in microseconds (UTC) as `2024-03-01T12:00:00.000000Z`. Arrow's own cast takes 1.1 µs a row."""
    us = whole(times).cast(pa.int64()).to_numpy()
    rows = len(us)
    text = np.empty(rows, dtype=_PIECES)
    for begin in range(0, rows, _BLOCK_ROWS):
        _write_times(us[begin : begin + _BLOCK_ROWS], text[begin : begin + _BLOCK_ROWS])
    width = _PIECES.itemsize
    offsets = np.arange(0, (rows + 1) * width, width, dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(text)])


def _write_times(us: npt.NDArray[np.int64], text: npt.NDArray[np.void]) -> None:
    # Division by a constant is fast in NumPy, divmod is not.
    ms = us // 1_000
    second = ms // 1_000
    day = second // _DAY_S
    first, last = (int(day.min()), int(day.max())) if len(day) else (0, 0)
    if first < 0 or last >= _DAYS:
        text["date"] = _days_as_text(day)
    else:
        begin = first - first % _DAYS_AT_ONCE
        text["date"] = _dates(begin, last - last % _DAYS_AT_ONCE + _DAYS_AT_ONCE)[day - begin]
    text["second"] = _seconds()[second - day * _DAY_S]
    text["ms"] = _thousand("")[ms - second * 1_000]
    text["us"] = _thousand("Z")[us - ms * 1_000]


@functools.lru_cache(16)
def _dates(begin: int, end: int) -> _Bytes:
    """The dates of some days; those of all that records may have take 0.8 MB, and 50 ms to make."""
    return _days_as_text(np.arange(begin, end))


def _days_as_text(days: npt.NDArray[np.int64]) -> _Bytes:
    return np.datetime_as_string(days.astype("datetime64[D]")).astype("S10").view("V10")


@functools.cache
def _seconds() -> _Bytes:
    """The seconds of a day: 0.9 MB."""
    second = np.arange(_DAY_S)
    text = np.tile(np.frombuffer(b"T00:00:00.", np.uint8), (_DAY_S, 1))
    for at, number in ((1, second // 3_600), (4, second // 60 % 60), (7, second % 60)):
        text[:, at] += (number // 10).astype(np.uint8)
        text[:, at + 1] += (number % 10).astype(np.uint8)
    return text.view("V10").reshape(-1)


@functools.cache
def _thousand(end: str) -> _Bytes:
    """000 to 999."""
    texts = np.array([f"{number:03}{end}" for number in range(1_000)], dtype="S")
    return texts.view(f"V{texts.itemsize}")


def render_decimals(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Decimals with nine digits after the point, in plain notation without trailing zeros: `125.5`, `-5`, `0`."""
    values = whole(values)
    if values.type != _DECIMAL:
        values = values.cast(_DECIMAL)
    plain = pc.ascii_rtrim(pc.ascii_rtrim(values.cast(pa.string()), "0"), ".")
    if not len(values):
        return plain
    words = np.frombuffer(values.buffers()[1], dtype="<i8")[2 * values.offset : 2 * (values.offset + len(values))]
    low, high = words[0::2], words[1::2]
    is_tiny = (low > -_TINY) & (low < _TINY) & (high == (low >> 63))
    if not is_tiny.any():
        return plain
    return pc.replace_with_mask(plain, pa.array(is_tiny), _tiny_texts().take(pa.array(low[is_tiny] + _TINY)))


@functools.cache
def _tiny_texts() -> pa.Array:
    """The texts of -1000 to 999 units of 10^-9."""
    texts = (format(Decimal(units).scaleb(-SCALE), "f").rstrip("0").rstrip(".") for units in range(-_TINY, _TINY))
    return pa.array([text or "0" for text in texts], pa.string())


def json_strings(strings: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Strings as they stand between the quotes of JSON. Most columns hold nothing to escape and are given back."""
    return _rewritten(
        strings,
        lambda content: (content == ord('"')) | (content == ord("\\")) | (content < ord(" ")),
        lambda text: msgspec.json.encode(text).decode()[1:-1],
    )


def _csv_strings(strings: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Strings as fields of CSV (RFC 4180): in quotes where they hold a quote, a comma or a line break."""
    return _rewritten(
        strings,
        lambda content: (content == ord('"')) | (content == ord(",")) | (content == ord("\n")) | (content == ord("\r")),
        lambda text: '"' + text.replace('"', '""') + '"',
    )


def _rewritten(
    strings: pa.Array | pa.ChunkedArray,
    special: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.bool_]],
    rewrite: Callable[[str], str],
) -> pa.Array:
    """The strings, those rewritten that hold a special byte."""
    strings = whole(strings)
    if strings.type != pa.string():
        strings = strings.cast(pa.string())
    data = strings.buffers()[2]
    if data is None or not len(strings):
        return strings
    offsets = _offsets(strings)
    content = np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]]
    found = np.flatnonzero(special(content))
    if not len(found):
        return strings
    rows = np.unique(np.searchsorted(offsets, found + offsets[0], side="right") - 1)
    texts = [rewrite(text) for text in strings.take(pa.array(rows)).to_pylist()]
    mask = np.zeros(len(strings), dtype=bool)
    mask[rows] = True
    return pc.replace_with_mask(strings, pa.array(mask), pa.array(texts, pa.string()))


def render_records(rows: pa.Table | pa.RecordBatch) -> pa.Array:
    """Records (the columns of `store.schema.RECORD`, among others perhaps) as compact canonical JSON objects."""
    columns = {name: whole(rows.column(name)) for name in CANONICAL_FIELDS}
    if all(columns[name].type == RECORD.field(name).type for name in CANONICAL_FIELDS):
        strings = [columns[name] for name in STRING_FIELDS]
        found = kernels.render_records(strings, columns["time"], columns["value"])
        if found is not None:
            return found
    return render_objects(rows.select(CANONICAL_FIELDS))


def render_objects(rows: pa.Table | pa.RecordBatch, after: str = "") -> pa.Array:
    """Rows as compact JSON objects in the order of their columns; what is no integer is a string.

    `after` stands behind each object.
    """
    pieces: list[str | pa.Array] = []
    end = "{"
    for field, column in zip(rows.schema, rows.columns, strict=True):
        quote = "" if pa.types.is_integer(field.type) else '"'
        pieces += [f'{end}"{field.name}":{quote}', _text(field.type, column, json_strings)]
        end = f"{quote},"
    return pc.binary_join_element_wise(*pieces, end.replace(",", "}") + after, "")


def render_csv(rows: pa.Table | pa.RecordBatch) -> pa.Array:
    """Rows as lines of CSV, with their line feeds."""
    pieces: list[str | pa.Array] = []
    for field, column in zip(rows.schema, rows.columns, strict=True):
        pieces += [_text(field.type, column, _csv_strings), ","]
    return pc.binary_join_element_wise(*pieces[:-1], "\n", "")


def _text(
    kind: pa.DataType, column: pa.Array | pa.ChunkedArray, strings: Callable[[pa.Array | pa.ChunkedArray], pa.Array]
) -> pa.Array:
    if pa.types.is_integer(kind):
        return render_integers(column)
    if pa.types.is_decimal(kind):
        return render_decimals(column)
    return render_times(column) if pa.types.is_timestamp(kind) else strings(column)


def text_of(strings: pa.Array, begin: int = 0, end: int | None = None) -> bytes:
    """The bytes of the strings from `begin` to `end`, one behind the other."""
    if not len(strings):
        return b""
    offsets = _offsets(strings)
    first, last = int(offsets[begin]), int(offsets[len(strings) if end is None else end])
    return bytes(strings.buffers()[2][first:last])


def _offsets(strings: pa.Array) -> npt.NDArray[np.int32]:
    return np.frombuffer(strings.buffers()[1], dtype="<i4")[strings.offset : strings.offset + len(strings) + 1]

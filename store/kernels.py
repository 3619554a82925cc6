"""The loops over bytes in C (`store/kernels.c`), which hold no interpreter lock; each has a slower way in Python.

They are built where the package is installed beside a C compiler. Without them everything gives the same, bulk more
slowly; `None` from a function says that the slower way is to be taken.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from store.arrays import I64, U64
from store.buffers import at, string_array, string_columns, values_at
from store.schema import FIELD_LIMIT, RECORD, STRING_FIELDS, TIME_MAX_US, TIME_MIN_US, UNIT_LIMIT
from store.whole import whole

__all__ = [
    "Lanes",
    "Searched",
    "argsort",
    "available",
    "decode_lines",
    "filter_of",
    "find_hashes",
    "gathered",
    "hash_records",
    "line_ends",
    "load",
    "pack_summaries",
    "render_notifications",
    "render_previous",
    "render_records",
    "taken",
    "unpack_summaries",
]

logger = logging.getLogger("oncelake.store")

Lanes = tuple[U64, U64, U64, U64, U64]
"""Of records: id hi, id lo, key hi, key lo, fingerprint."""

_RECORD_BYTES = 176
_PREVIOUS_BYTES = 384
_LINE_BYTES = 64
_PACKED_BYTES = 80
"""What a row takes at most beside its strings; the same figures stand in the C."""

_LINE_GUESS = 64
"""Bytes of a line, or more: a text of shorter ones has more than there is room for, and is read twice."""

_VERSION = 10
"""One more with every change of the C, where it stands too: what was built of another one is not loaded."""

_CONTROL = -1
"""What rendering returns where a string has a control character."""

_MOST_BYTES = (1 << 31) - 1
"""Of a string array of Arrow, whose offsets are 32 bits."""


def load(path: Path) -> ctypes.CDLL:
    """The library at a path. Raises `OSError` or `AttributeError` where it is not of this version."""
    library = ctypes.CDLL(str(path))
    if library.kernels_version() != _VERSION:
        raise OSError("it was built of another version of store/kernels.c")
    for name in (
        "find_hashes", "gather_offsets", "line_ends", "pack_summaries", "parse_lines", "render_notifications",
        "render_previous", "render_records", "take_offsets", "unpack_summaries",
    ):  # fmt: skip
        getattr(library, name).restype = ctypes.c_int64
    for name in (
        "copy_spans", "gather_strings", "gather_words", "hash_records", "make_filter", "sort_keys", "take_strings",
    ):  # fmt: skip
        getattr(library, name).restype = None
    return library


def _built() -> ctypes.CDLL | None:
    if sys.byteorder != "little":
        return None
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_kernels" + suffix)
        if path.exists():
            try:
                return load(path)
            except (OSError, AttributeError) as error:
                logger.warning("%s cannot be loaded, bulk is slower without it: %s", path, error)
    return None


_C = _built()


def available() -> bool:
    """Whether the library is there."""
    return _C is not None


class _Bounds(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("record_limit", "field_limit", "unit_limit", "time_min", "time_max", "negative")
    ]  # fmt: skip


def line_ends(text: bytes) -> I64:
    """Where the line feeds of a text are."""
    if _C is None:
        return np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    room = len(text) // _LINE_GUESS
    while True:
        ends = np.empty(room, np.int64)
        lines = _C.line_ends(text, ctypes.c_int64(len(text)), at(ends), ctypes.c_int64(room))
        if lines <= room:
            return ends[:lines]
        room = lines


def decode_lines(
    text: bytes, starts: I64, ends: I64, *, longest: int, negative: bool
) -> tuple[pa.RecordBatch, npt.NDArray[np.bool_]] | None:
    """The JSON records `text[starts[i]:ends[i]]` that are surely valid, and which they are.

    `longest`: bytes that a record may have; `negative`: whether values below 0 are valid. The schema of the records is
    `RECORD`.
    """
    if _C is None or len(text) > _MOST_BYTES:
        return None
    lines, columns = len(starts), len(STRING_FIELDS)
    bounds = _Bounds(longest, FIELD_LIMIT, UNIT_LIMIT, TIME_MIN_US, TIME_MAX_US, negative)
    starts, ends = np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(ends, np.int64)
    begins, lengths = np.empty((columns, lines), np.int32), np.empty((columns, lines), np.int32)
    times, values, sure = np.empty(lines, np.int64), np.empty((lines, 2), np.uint64), np.empty(lines, np.bool_)
    sizes = np.zeros(columns, np.int64)
    rows = _C.parse_lines(
        text, ctypes.c_int64(lines), at(starts), at(ends), ctypes.byref(bounds), at(begins), at(lengths),
        at(times), at(values), at(sure), at(sizes),
    )  # fmt: skip
    found: dict[str, pa.Array] = {}
    for name, begin, length, size in zip(STRING_FIELDS, begins, lengths, sizes.tolist(), strict=True):
        data, offsets = np.empty(size, np.uint8), np.empty(rows + 1, np.int32)
        _C.copy_spans(text, ctypes.c_int64(rows), at(begin), at(length), at(data), at(offsets))
        found[name] = string_array(rows, offsets, data)
    for name, array in (("time", times), ("value", values)):
        found[name] = pa.Array.from_buffers(RECORD.field(name).type, rows, [None, pa.py_buffer(array)])
    return pa.RecordBatch.from_arrays([found[name] for name in RECORD.names], schema=RECORD), sure


def render_records(strings: Sequence[pa.StringArray], time: pa.Array, value: pa.Array) -> pa.StringArray | None:
    """Records as canonical JSON objects; the strings are the columns `STRING_FIELDS`, none has nulls."""
    rows = len(time)
    if _C is None or not rows:
        return None
    columns = string_columns(strings)
    for times in (1, 2):  # most records have nothing to escape
        most = _RECORD_BYTES * rows + times * columns.bytes
        if most > _MOST_BYTES:
            return None
        out, offsets = np.empty(most, np.uint8), np.empty(rows + 1, np.int32)
        size = _C.render_records(
            ctypes.c_int64(rows), columns.structs, values_at(time, 8), values_at(value, 16), ctypes.c_int(times - 1),
            at(out), at(offsets),
        )  # fmt: skip
        if size >= 0:
            return string_array(rows, offsets, out[:size])
        if size == _CONTROL:
            break
    return None


def render_previous(
    count: I64, first: I64, last: I64, last_seq: I64, unit: pa.StringArray, totals: tuple[pa.Array, pa.Array, pa.Array]
) -> pa.StringArray | None:
    """Summaries with one unit as the `previous` objects of notifications; the totals are positive, negative and net."""
    rows = len(count)
    if _C is None or not rows:
        return None
    units = string_columns([unit])
    most = _PREVIOUS_BYTES * rows + 2 * units.bytes
    if most > _MOST_BYTES:
        return None
    numbers = [np.ascontiguousarray(column, np.int64) for column in (count, first, last, last_seq)]
    out, offsets = np.empty(most, np.uint8), np.empty(rows + 1, np.int32)
    size = _C.render_previous(
        ctypes.c_int64(rows), *map(at, numbers), units.structs, *(values_at(total, 16) for total in totals), at(out),
        at(offsets),
    )  # fmt: skip
    return string_array(rows, offsets, out[:size]) if size >= 0 else None


def render_notifications(
    first_seq: int, middle: bytes, records: pa.StringArray, previous: pa.StringArray, place: I64
) -> memoryview | None:
    """The lines of records whose seqs follow one another.

    `middle` stands between a seq and its record; `previous[place[i]]` is the summary of record i.
    """
    rows = len(records)
    if _C is None or not rows:
        return None
    of_records, of_previous = string_columns([records]), string_columns([previous])
    place = np.ascontiguousarray(place, np.int64)
    _, bounds, _ = previous.buffers()
    lengths = np.diff(np.frombuffer(bounds, np.int32)[previous.offset : previous.offset + len(previous) + 1])
    out = np.empty((_LINE_BYTES + len(middle)) * rows + of_records.bytes + int(lengths[place].sum()), np.uint8)
    size = _C.render_notifications(
        ctypes.c_int64(rows), ctypes.c_int64(first_seq), middle, ctypes.c_int64(len(middle)), of_records.structs,
        of_previous.structs, at(place), at(out),
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
        columns = string_columns(strings)
        keys = np.ascontiguousarray(keys, np.uint64)
        _C.hash_records(
            ctypes.c_int64(rows), columns.structs, values_at(time, 8), values_at(value, 16), at(keys),
            ctypes.c_uint64(mask), *map(at, lanes),
        )  # fmt: skip
    return lanes  # type: ignore[return-value]


def argsort(keys: U64) -> I64:
    """The order in which keys ascend, equal ones as they stand."""
    if _C is None:
        return np.argsort(keys, kind="stable")
    keys = np.ascontiguousarray(keys, np.uint64)
    order, scratch = np.empty(len(keys), np.int64), np.empty((len(keys), 4), np.uint64)
    _C.sort_keys(ctypes.c_int64(len(keys)), at(keys), at(order), at(scratch))
    return order


class Searched(ctypes.Structure):
    """A run as the C takes it: page p has `size[p]` hashes, which lie at the addresses `hi[p]` and `lo[p]`.

    `density` is its rows by hash; `filters` has the filter of each page, or none at all.
    """

    _fields_ = [
        ("hi", ctypes.c_void_p), ("lo", ctypes.c_void_p), ("pages", ctypes.c_int64), ("size", ctypes.c_void_p),
        ("first", ctypes.c_void_p), ("density", ctypes.c_void_p), ("filter", ctypes.c_void_p),
    ]  # fmt: skip

    def __init__(
        self,
        hi: I64,
        lo: I64,
        size: I64,
        first: U64,
        density: npt.NDArray[np.float64],
        filters: Sequence[npt.NDArray[np.uint16]],
    ) -> None:
        filter_at = np.array([each.ctypes.data for each in filters], np.int64) if filters else None
        self._given, self._held = (hi, lo, size, first, density), (filter_at, filters)
        hi_at, lo_at, *rest = (None if array is None else array.ctypes.data for array in (*self._given, filter_at))
        super().__init__(hi_at, lo_at, len(size), *rest)

    def with_filters(self, filters: Sequence[npt.NDArray[np.uint16]]) -> Searched:
        """The same with filters that lie elsewhere."""
        return Searched(*self._given, filters)


def filter_of(hi: U64, lo: U64, density: float) -> npt.NDArray[np.uint16] | None:
    """The filter of a page with these hashes, which ascend: two bytes for each (docs/formats.md, "Index runs")."""
    if _C is None:
        return None
    found = np.zeros(len(hi), np.uint16)
    hi, lo = np.ascontiguousarray(hi, np.uint64), np.ascontiguousarray(lo, np.uint64)
    _C.make_filter(ctypes.c_int64(len(hi)), at(hi), at(lo), ctypes.c_double(density), at(found))
    return found


def find_hashes(hi: U64, lo: U64, runs: Sequence[Searched]) -> tuple[I64, I64, I64] | None:
    """(needle, page, row) of every row of the runs that has one of the hashes; `hi` ascends.

    Run by run, in order of the needles; pages are counted through all runs.
    """
    if _C is None:
        return None
    hi, lo = np.ascontiguousarray(hi, np.uint64), np.ascontiguousarray(lo, np.uint64)
    structs = (Searched * len(runs))(*runs)
    room, scratch = len(hi), np.empty((3, len(hi)), np.uint64)
    while True:
        needle, page, row = (np.empty(room, np.int64) for _ in range(3))
        found = _C.find_hashes(
            ctypes.c_int64(len(hi)), at(hi), at(lo), ctypes.c_int64(len(runs)), structs, ctypes.c_int64(room),
            at(needle), at(page), at(row), at(scratch),
        )  # fmt: skip
        if found <= room:
            return needle[:found], page[:found], row[:found]
        room = found


def gathered(kind: pa.DataType, page: I64, row: I64, places: I64) -> pa.Array | None:
    """Rows of many pages, of a column of 64-bit words, or of binary strings.

    `places` says of each page where its values lie; of strings where its offsets and its bytes do, and how many bytes.
    `pa.ArrowInvalid` where the offsets of a page are not within it.
    """
    if _C is None:
        return None
    rows, page, row = len(page), np.ascontiguousarray(page), np.ascontiguousarray(row)
    where = (ctypes.c_int64(rows), at(page), at(row), at(places[0]))
    if kind != pa.binary():
        values = np.empty(rows, np.uint64)
        _C.gather_words(*where, at(values))
        return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(values)])
    offsets = np.empty(rows + 1, np.int32)
    size = _C.gather_offsets(*where, at(places[2]), at(offsets))
    if size < 0:
        raise pa.ArrowInvalid("strings of a run do not lie where its offsets say")
    data = np.empty(size, np.uint8)
    _C.gather_strings(*where, at(places[1]), at(data))
    return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def taken(rows: pa.Table, order: I64) -> pa.Table:
    """Rows in another order, `rows.take(order)`; columns are one chunk each and have no nulls.

    Rows far apart in memory are asked for before they are copied, which Arrow does not do.
    """
    return pa.table([_taken(whole(column), order) for column in rows.columns], schema=rows.schema)


def _taken(column: pa.Array, order: I64) -> pa.Array:
    if _C is None or column.type != pa.string() or not len(column):
        return column.take(pa.array(order))
    order = np.ascontiguousarray(order, np.int64)
    strings = string_columns([column])
    offsets = np.empty(len(order) + 1, np.int32)
    size = _C.take_offsets(
        ctypes.c_int64(len(order)), at(order), ctypes.c_void_p(strings.structs[0].offsets), at(offsets)
    )
    if size > _MOST_BYTES:
        return column.take(pa.array(order))
    data = np.empty(size, np.uint8)
    _C.take_strings(ctypes.c_int64(len(order)), at(order), strings.structs, at(data))
    return string_array(len(order), offsets, data)


class _Sums(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("count", "positive", "negative", "first", "last", "last_seq")]


def pack_summaries(unit: pa.StringArray, numbers: Sequence[pa.Array]) -> pa.BinaryArray | None:
    """Summaries in few bytes each; see `store.packed`."""
    rows, units = len(unit), string_columns([unit])
    most = _PACKED_BYTES * rows + units.bytes
    if _C is None or most > _MOST_BYTES:
        return None
    sums = _Sums(*(values_at(column, column.type.bit_width // 8) for column in numbers))
    out, offsets = np.empty(most, np.uint8), np.empty(rows + 1, np.int32)
    size = _C.pack_summaries(ctypes.c_int64(rows), units.structs, ctypes.byref(sums), at(out), at(offsets))
    if size < 0:
        raise ValueError("a unit of more than 255 bytes")
    return pa.Array.from_buffers(pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(out[:size].copy())])


def unpack_summaries(
    packed: pa.BinaryArray, kinds: Sequence[pa.DataType]
) -> tuple[pa.StringArray, list[pa.Array]] | None:
    """The units and the numbers, which are of these kinds. `pa.ArrowInvalid` where something else is among them."""
    if _C is None:
        return None
    rows, given, text = len(packed), string_columns([packed]), packed.buffers()[2]
    numbers = [np.empty(rows * kind.bit_width // 64, np.uint64) for kind in kinds]
    data, offsets = np.empty(max(given.bytes, 0), np.uint8), np.empty(rows + 1, np.int32)
    size = _C.unpack_summaries(
        ctypes.c_int64(rows), given.structs, ctypes.c_int64(0 if text is None else text.size),
        ctypes.byref(_Sums(*map(at, numbers))), ctypes.c_int64(len(data)), at(data), at(offsets),
    )  # fmt: skip
    if size < 0:
        raise pa.ArrowInvalid("not what a summary is packed as")
    columns = zip(kinds, numbers, strict=True)
    return string_array(rows, offsets, data[:size]), [
        pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(values)]) for kind, values in columns
    ]

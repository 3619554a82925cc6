"""JSON records that stand one on a line, to columns: pyarrow's reader where it is surely exact, else line by line.

pyarrow reads JSON without the GIL in about a third of the time of the exact path, and is more lenient than a record may
be. Measured (pyarrow 26): it takes several objects on one line, an object over several lines, strings such as "+1" or
".5" as decimals; and **it wraps silently**: 1e31 becomes 131811359292784559562136384478.721867776 in
decimal128, and 1,390 of 20,000 random numbers of 18 to 50 digits came out wrong. `fast_lines` therefore
rules out, with a few passes over the bytes:

- escapes (no backslash at all), bytes that are not UTF-8, control characters other than line ends;
- anything but eight keys and seven strings a line: 30 quotes a line in sum, no nulls, rows = lines, each beginning
  with `{` and ending with `}` (32 quotes where every value is a string, which is then read as text and checked);
- exponents: every `e` of the text stands in a key or in a string column;
- numbers of more than 67 characters: value is read as decimal256, where fewer digits cannot wrap, and then compared
  with the bounds. (No wrapped number within the bounds was found in decimal256, not even by lattice search; decimal128
  wraps often. The two gates keep that from resting on how Arrow happens to detect an overflow.)

What does not pass is sorted out line by line where bytes tell which lines are to blame, and else by eighths.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as pj

from ingest.batch import Chunk, Located, Record, Reject
from ingest.record import Rejected, Rules, parse_record
from ingest.validate import (
    Checked,
    byte_lengths,
    check_columns,
    columns_of,
    count_bytes,
    data_of,
    has_control_characters,
    merge,
)
from store.journal import Position
from store.schema import CANONICAL_FIELDS, SCALE, STRING_FIELDS

__all__ = ["Decoded", "Ints", "Lines", "Solver", "chunk_of", "clean_text", "decode_lines", "fast_lines"]

Ints = npt.NDArray[np.int64]

_EXACT_ROWS = 512
_FEW_ROWS = 64
"""So few records are read one by one (6 µs each): the columns of the fast path have cost 600 µs before the first."""

_PIECES = 8
_TEXT_COLUMNS = (*STRING_FIELDS, "time")
_NUMBER_SCHEMA = pa.schema(
    [(name, pa.decimal256(76, SCALE) if name == "value" else pa.string()) for name in CANONICAL_FIELDS]
)
_STRING_SCHEMA = pa.schema([(name, pa.string()) for name in CANONICAL_FIELDS])
_NUMBER_QUOTES = 2 * (len(CANONICAL_FIELDS) + len(_TEXT_COLUMNS))
_STRING_QUOTES = _NUMBER_QUOTES + 2
_KEY_BYTES = sum(map(len, CANONICAL_FIELDS))
_KEY_ES = "".join(CANONICAL_FIELDS).lower().count("e")
_FIXED_BYTES = _KEY_BYTES + _NUMBER_QUOTES + 2 * len(CANONICAL_FIELDS) + 1
_SAFE_DIGITS = 67
_ODD_NUMBER = re.compile(rb"[:\s]-?[0-9]++(?:[eE]|\.[0-9]{10}|\.[0-9]*+[eE])")
_C1 = re.compile(rb"\xc2[\x80-\x9f]")


@dataclass(frozen=True)
class Lines:
    """Records as text: row i is `text[starts[i]:ends[i]]`, none of them blank; `lines` are their 1-based numbers."""

    text: bytes
    starts: Ints
    ends: Ints
    lines: Ints | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> bytes:
        return self.text[self.starts[row] : self.ends[row]]

    def line(self, row: int) -> int | None:
        """The line number of a row, where the format has lines."""
        return None if self.lines is None else int(self.lines[row])

    def span(self, first: int, last: int) -> Lines:
        """The rows from `first` up to `last`, with only their own text."""
        begin = int(self.starts[first])
        text = self.text[begin : int(self.ends[last - 1])]
        return Lines(text, self.starts[first:last] - begin, self.ends[first:last] - begin)

    def pick(self, rows: Ints) -> Lines:
        """Some rows, joined by newlines."""
        text = b"\n".join([self[row] for row in rows.tolist()])
        lengths = self.ends[rows] - self.starts[rows]
        starts = np.concatenate(([0], np.cumsum(lengths[:-1] + 1)))
        return Lines(text, starts, starts + lengths)


@dataclass(frozen=True)
class Decoded:
    """Records with their row numbers in the chunk, and the rows that were rejected."""

    rows: Ints
    records: pa.RecordBatch
    rejected: list[tuple[int, Rejected]]


def chunk_of(decoded: Decoded, text: Lines, first_index: int, end: Position) -> Chunk:
    """The chunk that the committer takes."""
    rejects = [
        Reject(first_index + row, text.line(row), found.record_id, found.errors, text[row])
        for row, found in sorted(decoded.rejected, key=lambda pair: pair[0])
    ]

    def locate(row: int) -> Located:
        at = int(decoded.rows[row])
        return Located(text.line(at), text[at])

    return Chunk(decoded.records, decoded.rows + first_index, rejects, len(text), locate, end)


class Solver:
    """Rows of a chunk as they are decoded: on the fast path where that is sure, else exactly."""

    def __init__(self, fast: Callable[[Lines], Checked | None], parse: Callable[[bytes], Record | Rejected]) -> None:
        self._fast = fast
        self._parse = parse
        self._parts: list[tuple[Ints, pa.RecordBatch]] = []
        self._rejected: list[tuple[int, Rejected]] = []

    def exact(self, text: Lines, rows: Ints) -> None:
        """Rows of `text`, whose numbers in the chunk are `rows`, one by one."""
        kept: list[int] = []
        records: list[Record] = []
        for at, row in enumerate(rows.tolist()):
            found = self._parse(text[at])
            if isinstance(found, Record):
                kept.append(row)
                records.append(found)
            else:
                self._rejected.append((row, found))
        self._parts.append((np.array(kept, np.int64), columns_of(records)))

    def fast(self, text: Lines, rows: Ints) -> bool:
        """Rows of `text` on the fast path, and exactly those that it doubts. False: it cannot take them together."""
        checked = self._fast(text)
        if checked is None:
            return False
        self._parts.append((rows[checked.sure], checked.records))
        doubtful = np.flatnonzero(~checked.sure)
        if len(doubtful):
            self.exact(text.pick(doubtful), rows[doubtful])
        return True

    def solve(self, text: Lines, rows: Ints) -> None:
        """Rows on the fast path, by pieces of them where it cannot take them together, and small pieces exactly."""
        if self.fast(text, rows):
            return
        if len(text) <= _EXACT_ROWS:
            self.exact(text, rows)
            return
        step = -(-len(text) // _PIECES)
        for first in range(0, len(text), step):
            last = min(first + step, len(text))
            self.solve(text.span(first, last), rows[first:last])

    def done(self) -> Decoded:
        """All rows, in order."""
        rows, records = merge(self._parts)
        return Decoded(rows, records, self._rejected)


def decode_lines(text: Lines, rules: Rules, *, exact: bool = False) -> Decoded:
    """All rows of a chunk. `exact` keeps to the exact path (the fast one must not differ)."""
    solver = Solver(lambda lines: fast_lines(lines, rules), lambda data: parse_record(data, rules))
    every = np.arange(len(text))
    if exact or len(text) <= _FEW_ROWS:
        solver.exact(text, every)
    elif not solver.fast(text, every):
        groups, others = _sorted_out(text)
        for rows in groups:
            solver.solve(text.pick(rows), rows)
        if len(others):
            solver.exact(text.pick(others), others)
    return solver.done()


def fast_lines(text: Lines, rules: Rules) -> Checked | None:
    """All rows by pyarrow, or None where it is not sure to be exact (see the module)."""
    data = np.frombuffer(text.text, np.uint8)
    count = len(text)
    quotes = count_bytes(data, lambda piece: piece == ord('"'))
    if quotes not in (count * _NUMBER_QUOTES, count * _STRING_QUOTES) or b"\\" in text.text:
        return None
    if (data[text.starts] != ord("{")).any() or (data[text.ends - 1] != ord("}")).any():
        return None
    if not clean_text(text.text, data):
        return None
    numbers = quotes == count * _NUMBER_QUOTES
    table = _read(text.text, _NUMBER_SCHEMA if numbers else _STRING_SCHEMA)
    if table is None or table.num_rows != count or any(column.null_count for column in table.columns):
        return None
    columns = dict(zip(CANONICAL_FIELDS, (column.combine_chunks() for column in table.columns), strict=True))
    if numbers and not _numbers_cannot_wrap(text, data, columns):
        return None
    strings = {name: columns[name] for name in STRING_FIELDS}
    return check_columns(strings, columns["time"], columns["value"], rules, clean=True)


def clean_text(text: bytes, data: npt.NDArray[np.uint8]) -> bool:
    """Whether bytes are UTF-8 without control characters, but for line ends."""
    ends = text.count(b"\n")
    if b"\r" in text:
        crs = text.count(b"\r\n")
        if text.count(b"\r") != crs:
            return False
        ends += crs
    if not text.isascii():
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            return False
    return not has_control_characters(data, allowed=ends)


def _read(text: bytes, schema: pa.Schema) -> pa.Table | None:
    try:
        return pj.read_json(
            pa.BufferReader(text),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(text) + 1),
            parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
        )
    except (pa.ArrowException, UnicodeDecodeError):
        return None


def _is_e(piece: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (piece & 0xDF) == ord("E")
    return found


def _numbers_cannot_wrap(text: Lines, data: npt.NDArray[np.uint8], columns: dict[str, pa.Array]) -> bool:
    rest = text.ends - text.starts - _FIXED_BYTES
    es = -_KEY_ES * len(text) + count_bytes(data, _is_e)
    for name in _TEXT_COLUMNS:
        rest -= byte_lengths(columns[name])
        es -= count_bytes(data_of(columns[name]), _is_e)
    return es == 0 and bool(rest.max() <= _SAFE_DIGITS)


def _sorted_out(text: Lines) -> tuple[list[Ints], Ints]:
    """Groups of lines that have one shape, and the lines that bytes show to be unusual."""
    data = np.frombuffer(text.text, np.uint8)
    plain = (data[text.starts] == ord("{")) & (data[text.ends - 1] == ord("}"))
    unusual = (data < 0x20) | (data == 0x7F) | (data == ord("\\"))
    if not text.text.isascii() and not _clean_utf8(text.text):
        unusual |= data >= 0x80
    odd_numbers = np.array([found.start() + 1 for found in _ODD_NUMBER.finditer(text.text)], np.int64)
    for positions in (np.flatnonzero(unusual), odd_numbers):
        rows = np.searchsorted(text.starts, positions, side="right") - 1
        inside = (rows >= 0) & (positions < text.ends[rows])
        plain[rows[inside]] = False
    running = np.concatenate(([0], np.cumsum(data == ord('"'), dtype=np.int64)))
    quotes = running[text.ends] - running[text.starts]
    groups = [np.flatnonzero(plain & (quotes == shape)) for shape in (_NUMBER_QUOTES, _STRING_QUOTES)]
    groups = [rows for rows in groups if len(rows)]
    rest = np.ones(len(text), np.bool_)
    for rows in groups:
        rest[rows] = False
    return groups, np.flatnonzero(rest)


def _clean_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return _C1.search(text) is None

"""JSON records that stand one on a line, to columns: pyarrow's reader where it is surely exact, else line by line.

pyarrow reads JSON without the GIL in about a third of the time of the exact path, and is more lenient than a record may
be. Measured (pyarrow 26): it takes several objects on one line, an object over several lines, strings such as "+1" or
".5" as decimals; and **it wraps silently**: 1e31 becomes 131811359292784559562136384478.721867776, and so do about one
in fourteen integers of 30 digits and more. `_fast` therefore rules out, with a few passes over the bytes:

- escapes (no backslash at all), bytes that are not UTF-8, control characters other than line ends;
- anything but eight keys and seven strings a line: 30 quotes a line in sum, no nulls, rows = lines, each beginning
  with `{` and ending with `}` (32 quotes where every value is a string, which is then read as text and checked);
- exponents: every `e` of the text stands in a key or in a string column;
- numbers of more than 67 characters: value is read as decimal256, where fewer digits cannot wrap.

What does not pass is sorted out line by line where bytes tell which lines are to blame, and else by halving.
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
from ingest.validate import Checked, byte_lengths, check_columns, columns_of, data_of, has_control_characters, merge
from store.journal import Position
from store.schema import CANONICAL_FIELDS, SCALE, STRING_FIELDS

__all__ = ["Decoded", "Lines", "chunk_of", "decode_lines", "exact_rows"]

Ints = npt.NDArray[np.int64]

_EXACT_ROWS = 64
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
_EXPONENT = re.compile(rb"[:\s]-?[0-9][0-9.]*[eE]")
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


Part = tuple[Ints, pa.RecordBatch]


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


def decode_lines(text: Lines, rules: Rules, *, exact: bool = False) -> Decoded:
    """All rows of a chunk. `exact` keeps to the exact path (the fast one must not differ)."""
    parts: list[Part] = []
    rejected: list[tuple[int, Rejected]] = []
    every = np.arange(len(text))
    if exact or not len(text):
        _exact(text, every, rules, parts, rejected)
    elif not _solve(text, every, rules, parts, rejected, pieces=1):
        for rows in _sorted_out(text, rules, parts, rejected):
            _solve(text.pick(rows), rows, rules, parts, rejected, pieces=_PIECES)
    rows, records = merge(parts)
    return Decoded(rows, records, rejected)


def exact_rows(
    rows: list[int], parse: Callable[[int], Record | Rejected], rejected: list[tuple[int, Rejected]]
) -> Part:
    """Rows through the exact path, one by one."""
    kept: list[int] = []
    records: list[Record] = []
    for row in rows:
        found = parse(row)
        if isinstance(found, Record):
            kept.append(row)
            records.append(found)
        else:
            rejected.append((row, found))
    return np.array(kept, np.int64), columns_of(records)


def _exact(text: Lines, rows: Ints, rules: Rules, parts: list[Part], rejected: list[tuple[int, Rejected]]) -> None:
    """Rows of `text` (whose numbers in the chunk are `rows`) through the exact path."""
    found = [parse_record(text[row], rules) for row in range(len(text))]
    numbers = rows.tolist()
    kept = [row for row, item in zip(numbers, found, strict=True) if isinstance(item, Record)]
    parts.append((np.array(kept, np.int64), columns_of([item for item in found if isinstance(item, Record)])))
    rejected.extend((row, item) for row, item in zip(numbers, found, strict=True) if isinstance(item, Rejected))


def _solve(
    text: Lines, rows: Ints, rules: Rules, parts: list[Part], rejected: list[tuple[int, Rejected]], pieces: int
) -> bool:
    """Decode rows on the fast path; what it cannot take, in `pieces`, and few rows exactly. False: not done."""
    checked = _fast(text, rules)
    if checked is not None:
        parts.append((rows[checked.sure], checked.records))
        if not checked.sure.all():
            doubtful = np.flatnonzero(~checked.sure)
            _exact(text.pick(doubtful), rows[doubtful], rules, parts, rejected)
        return True
    if len(text) <= _EXACT_ROWS:
        _exact(text, rows, rules, parts, rejected)
        return True
    if pieces == 1:
        return False
    step = -(-len(text) // pieces)
    for first in range(0, len(text), step):
        last = min(first + step, len(text))
        _solve(text.span(first, last), rows[first:last], rules, parts, rejected, pieces)
    return True


def _fast(text: Lines, rules: Rules) -> Checked | None:
    """All rows by pyarrow, or None where it is not sure to be exact (see the module)."""
    data = np.frombuffer(text.text, np.uint8)
    count = len(text)
    quotes = np.count_nonzero(data == ord('"'))
    if quotes not in (count * _NUMBER_QUOTES, count * _STRING_QUOTES) or b"\\" in text.text:
        return None
    if (data[text.starts] != ord("{")).any() or (data[text.ends - 1] != ord("}")).any() or not _clean(text.text, data):
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


def _clean(text: bytes, data: npt.NDArray[np.uint8]) -> bool:
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


def _numbers_cannot_wrap(text: Lines, data: npt.NDArray[np.uint8], columns: dict[str, pa.Array]) -> bool:
    rest = text.ends - text.starts - _FIXED_BYTES
    es = -_KEY_ES * len(text) + np.count_nonzero((data & 0xDF) == ord("E"))
    for name in _TEXT_COLUMNS:
        rest -= byte_lengths(columns[name])
        es -= np.count_nonzero((data_of(columns[name]) & 0xDF) == ord("E"))
    return es == 0 and bool(rest.max() <= _SAFE_DIGITS)


def _sorted_out(text: Lines, rules: Rules, parts: list[Part], rejected: list[tuple[int, Rejected]]) -> list[Ints]:
    """Decode the lines exactly that bytes show to be unusual; the rest as groups of one shape."""
    data = np.frombuffer(text.text, np.uint8)
    plain = (data[text.starts] == ord("{")) & (data[text.ends - 1] == ord("}"))
    unusual = (data < 0x20) | (data == 0x7F) | (data == ord("\\"))
    if not text.text.isascii() and not _clean_utf8(text.text):
        unusual |= data >= 0x80
    for positions in (np.flatnonzero(unusual), [found.start() + 1 for found in _EXPONENT.finditer(text.text)]):
        rows = np.searchsorted(text.starts, positions, side="right") - 1
        inside = (rows >= 0) & (np.asarray(positions) < text.ends[rows])
        plain[rows[inside]] = False
    running = np.concatenate(([0], np.cumsum(data == ord('"'), dtype=np.int64)))
    quotes = running[text.ends] - running[text.starts]
    groups = [np.flatnonzero(plain & (quotes == shape)) for shape in (_NUMBER_QUOTES, _STRING_QUOTES)]
    groups = [rows for rows in groups if len(rows) >= _EXACT_ROWS]
    rest = np.ones(len(text), np.bool_)
    for rows in groups:
        rest[rows] = False
    others = np.flatnonzero(rest)
    if len(others):
        _exact(text.pick(others), others, rules, parts, rejected)
    return groups


def _clean_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return _C1.search(text) is None

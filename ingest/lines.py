"""JSON records that stand one on a line, to columns: together where they are surely plain, else line by line.

Together (`fast_lines`) means without the interpreter and in about a third of the time of the exact path. It takes text
without escapes (no backslash at all), in UTF-8 and without control characters but for line ends, in which each line has
eight keys and seven or eight strings, by its quotes; and of these the lines that are written alike (`ingest.alike`),
one way after another. A line that is not, or of which a value does not surely pass, is read exactly; where a whole
chunk is not plain, bytes tell which lines are to blame.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ingest.alike import layout_of, values_of
from ingest.batch import Chunk, Located, Record, Reject
from ingest.record import Rejected, Rules, parse_record
from ingest.validate import Checked, check_columns, columns_of, has_control_characters, merge
from store.journal import Position
from store.schema import CANONICAL_FIELDS

__all__ = ["Decoded", "Ints", "Lines", "Solver", "chunk_of", "clean_text", "decode_lines", "fast_lines"]

Ints = npt.NDArray[np.int64]

_EXACT_ROWS = 512
_FEW_ROWS = 64
"""So few records are read one by one (6 µs each): the columns of the fast path have cost 600 µs before the first."""

_PIECES = 8
_LAYOUTS = 8
"""Ways in which the lines of a chunk are written, before the rest of them is read exactly."""

_TRIED_LINES = 16
_NUMBER_QUOTES = 4 * len(CANONICAL_FIELDS) - 2
_STRING_QUOTES = _NUMBER_QUOTES + 2
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
        Reject(first_index + row, text.line(row), found.record_id, found.errors, text[row], found.source_id)
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

    def fast(self, text: Lines, rows: Ints, layouts: int = _LAYOUTS) -> bool:
        """Rows of `text` on the fast path, and exactly those that it doubts. False: it cannot take them together."""
        checked = self._fast(text)
        if checked is None:
            return False
        self._parts.append((rows[checked.sure], checked.records))
        doubtful = ~checked.sure
        if checked.unlike is not None and layouts > 1 and np.count_nonzero(checked.unlike) > _FEW_ROWS:
            others = np.flatnonzero(checked.unlike)
            if self.fast(text.pick(others), rows[others], layouts - 1):
                doubtful &= ~checked.unlike
        left = np.flatnonzero(doubtful)
        if len(left):
            self.exact(text.pick(left), rows[left])
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
    """The rows that are written like the first plain one; None where the text is not plain (see the module)."""
    data = np.frombuffer(text.text, np.uint8)
    quotes = np.flatnonzero(data == ord('"'))
    if len(quotes) not in (len(text) * _NUMBER_QUOTES, len(text) * _STRING_QUOTES) or b"\\" in text.text:
        return None
    if not clean_text(text.text, data):
        return None
    tried = (layout_of(text[row]) for row in range(min(len(text), _TRIED_LINES)))
    layout = next(filter(None, tried), None)
    if layout is None or len(quotes) != len(text) * layout.quotes:
        return None
    values, alike = values_of(layout, text.text, text.starts, text.ends, quotes)
    checked = check_columns(values, values["time"], values["value"], rules, clean=True)
    if alike.all():
        return checked
    sure = alike.copy()
    sure[alike] = checked.sure
    return Checked(checked.records, sure, ~alike)


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


def _sorted_out(text: Lines) -> tuple[list[Ints], Ints]:
    """Groups of lines that have one shape, and the lines that bytes show to be unusual."""
    data = np.frombuffer(text.text, np.uint8)
    plain = (data[text.starts] == ord("{")) & (data[text.ends - 1] == ord("}"))
    unusual = (data < 0x20) | (data == 0x7F) | (data == ord("\\"))
    if not text.text.isascii() and not _clean_utf8(text.text):
        unusual |= data >= 0x80
    positions = np.flatnonzero(unusual)
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

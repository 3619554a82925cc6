"""JSON records, each with its place in a text, to columns: in C where they are surely plain, else one by one.

The C (`store.kernels`) reads each record with the eight fields in any order and any spaces between them, whose strings
have no escapes, and holds it against all the rules. What it does not take is read exactly, and so is everything where
it was not built. `Solver` does the same for CSV, whose faster way takes rows together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ingest.batch import Chunk, Located, Record, Reject
from ingest.record import MAX_RECORD_BYTES, Rejected, Rules, parse_record
from ingest.validate import Checked, columns_of, merge
from store import kernels
from store.journal import Position

__all__ = ["Decoded", "Ints", "Lines", "Solver", "chunk_of", "decode_lines"]

Ints = npt.NDArray[np.int64]

_EXACT_ROWS = 512
_FEW_ROWS = 16
"""So few records are read one by one (6 µs each): columns cost 100 µs before the first."""

_PIECES = 8


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

    def __init__(
        self, parse: Callable[[bytes], Record | Rejected], fast: Callable[[Lines], Checked | None] = lambda text: None
    ) -> None:
        self._parse = parse
        self._fast = fast
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

    def take(self, text: Lines, rows: Ints, records: pa.RecordBatch, sure: npt.NDArray[np.bool_]) -> None:
        """Rows of `text` of which the sure ones are decoded; the others exactly."""
        self._parts.append((rows[sure], records))
        left = np.flatnonzero(~sure)
        if len(left):
            self.exact(text.pick(left), rows[left])

    def solve(self, text: Lines, rows: Ints) -> None:
        """Rows on the fast path, by pieces of them where it cannot take them together, and small pieces exactly."""
        checked = self._fast(text)
        if checked is not None:
            self.take(text, rows, checked.records, checked.sure)
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
    solver = Solver(lambda data: parse_record(data, rules))
    every = np.arange(len(text))
    found = None if exact or len(text) <= _FEW_ROWS else _in_c(text, rules)
    if found is None:
        solver.exact(text, every)
    else:
        solver.take(text, every, *found)
    return solver.done()


def _in_c(text: Lines, rules: Rules) -> tuple[pa.RecordBatch, npt.NDArray[np.bool_]] | None:
    """The records that surely obey the rules, and which rows they are; None without the C."""
    found = kernels.decode_lines(
        text.text, text.starts, text.ends, longest=MAX_RECORD_BYTES, negative=rules.negative_values == "accept"
    )
    if found is None or rules.sources is None:
        return found
    records, sure = found
    allowed = pc.is_in(records.column("sourceId"), pa.array(sorted(rules.sources), pa.string()))
    sure[np.flatnonzero(sure)] = allowed.to_numpy(zero_copy_only=False)
    return records.filter(allowed), sure

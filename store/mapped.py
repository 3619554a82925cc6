"""Rows taken out of the pages of a mapped file, whichever pages they are on, a column at a time.

Arrow takes rows of one record batch in a call, which costs some 60 µs a page where a thousand rows lie on a hundred
pages. The pages of a file are one piece of memory, so a column of all of them is taken in one step here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from store.hashing import U64
from store.sums import I64

__all__ = ["MappedPages"]

_TOUCHED_EVERY = 4_096
"""The size of a page of memory."""

_VALUES, _OFFSETS, _TEXT = 1, 1, 2
"""Which buffer of an Arrow array is which."""


class MappedPages:
    """Record batches that lie in a mapped file, `words`, as they are read: uncompressed and without nulls.

    Columns are of 64-bit words, of decimals of 128 bits, or strings.
    """

    def __init__(self, pages: Sequence[pa.RecordBatch], words: U64) -> None:
        self._pages = pages
        self._words = words
        self._bytes = words.view(np.uint8)
        self._offsets = words.view(np.int32)
        self._places: dict[tuple[str, int], I64] = {}

    def begins(self, name: str) -> I64:
        """By page which word of the file is the first one of a column; `pa.ArrowInvalid` where it lies elsewhere."""
        return self._begins(name, _VALUES) // 8

    def touch(self) -> None:
        """Read all of it once, so that who looks into it does not wait for its pages one by one."""
        self._bytes[::_TOUCHED_EVERY].max(initial=0)

    def numbers(self, name: str, pages: I64, rows: I64) -> U64:
        """A column of 64-bit words at these rows of pages."""
        return np.asarray(self._words[self.begins(name)[pages] + rows])

    def taken(self, pages: I64, rows: I64) -> pa.RecordBatch:
        """These rows of pages, in this order."""
        schema = self._pages[0].schema
        return pa.record_batch([self._column(field, pages, rows) for field in schema], schema=schema)

    def _column(self, field: pa.Field, pages: I64, rows: I64) -> pa.Array:
        if field.type == pa.string():
            return self._strings(field.name, pages, rows)
        if pa.types.is_decimal128(field.type):
            first = self.begins(field.name)[pages] + 2 * rows
            values = self._words[np.column_stack([first, first + 1])]
        else:
            values = self.numbers(field.name, pages, rows)
        return pa.Array.from_buffers(field.type, len(rows), [None, pa.py_buffer(values)])

    def _strings(self, name: str, pages: I64, rows: I64) -> pa.StringArray:
        at = self._begins(name, _OFFSETS)[pages] // 4 + rows
        begins, ends = self._offsets[at].astype(np.int64), self._offsets[at + 1].astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(ends - begins)])
        shifts = self._begins(name, _TEXT)[pages] + begins - offsets[:-1]
        text = self._bytes[np.repeat(shifts, ends - begins) + np.arange(offsets[-1])]
        buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(text)]
        return pa.Array.from_buffers(pa.string(), len(rows), buffers)

    def _begins(self, name: str, buffer: int) -> I64:
        """By page which byte of the file is the first one of a buffer of a column."""
        found = self._places.get((name, buffer))
        if found is None:
            columns = [page.column(name) for page in self._pages]
            begins = np.array([_span(column, buffer) for column in columns], np.int64).reshape(-1, 2)
            found, ends = begins[:, 0] - self._words.ctypes.data, begins.sum(axis=1) - self._words.ctypes.data
            is_moved = any(column.offset or column.null_count for column in columns)
            if is_moved or (found < 0).any() or (found % 8).any() or (ends > self._words.nbytes).any():
                raise pa.ArrowInvalid("its pages do not lie in the file as they are read")
            self._places[name, buffer] = found
        return found


def _span(column: pa.Array, buffer: int) -> tuple[int, int]:
    """Address and size in bytes of what is read of a buffer."""
    held = column.buffers()[buffer]
    if column.type != pa.string():
        return held.address, len(column) * column.type.bit_width // 8
    return held.address, 4 * (len(column) + 1) if buffer == _OFFSETS else held.size

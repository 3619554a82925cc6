"""Sorted runs: immutable tables keyed by 128-bit hashes, in memory or mapped from a file, looked up in bulk.

A run is a list of pages (record batches of at most `PAGE_ROWS` rows whose first columns are `hi` and `lo`), sorted by
hash over all of them; equal hashes never lie on two pages. In a file it is an uncompressed Arrow IPC file that is
mapped, not loaded: what is looked up often stays in the page cache, and memory does not grow with what is stored.

Runs are merged in tiers, as in an LSM tree, a range of hashes at a time, so that a merge needs the memory of a few
pages whatever the size of the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from store.hashing import U64

__all__ = ["PAGE_ROWS", "Run", "map_run", "merge_ranges", "paged", "tier_to_merge"]

PAGE_ROWS = 1 << 20
TIER_RUNS = 4
"""Runs of one size class that are left side by side before they are merged into one of the next."""

I64 = npt.NDArray[np.int64]


FILTERED_ROWS = 1 << 16
"""Pages of at least so many rows have a filter."""

FILTER_BITS = 8
"""Of a filter, for each row, at least: an eighth of the hashes that are not there pass it at most."""


@dataclass(frozen=True)
class _Page:
    hi: U64
    lo: U64
    rows: pa.RecordBatch

    @cached_property
    def filter(self) -> tuple[np.uint64, npt.NDArray[np.uint8]]:
        """(shift, bits): bit `(hi - first) >> shift` is set where the page has such a hash.

        Hashes are uniform and asked for in order, so this reads memory from front to back, where a binary search
        jumps; most of what is asked for is new and ends here. A mebibyte or two for each million rows, made when the
        page is first looked into.
        """
        span = int(self.hi[-1] - self.hi[0])
        shift = max(span.bit_length() - (FILTER_BITS * len(self.hi) - 1).bit_length(), 0)
        marks = np.zeros((span >> shift) + 1, dtype=bool)
        marks[self.hi - self.hi[0] >> np.uint64(shift)] = True
        return np.uint64(shift), np.packbits(marks, bitorder="little")

    def may_have(self, hi: U64) -> I64:
        """Which of the hashes the page can hold; they are not below its first one."""
        if len(self.hi) < FILTERED_ROWS:
            return np.arange(len(hi))
        shift, bits = self.filter
        inside = int(np.searchsorted(hi, self.hi[-1], side="right"))
        at = hi[:inside] - self.hi[0] >> shift
        return np.flatnonzero(bits[at >> np.uint64(3)] >> (at & np.uint64(7)).astype(np.uint8) & 1)


class Run:
    """An immutable sorted run. `name` is that of its file relative to the data directory, empty in memory."""

    def __init__(self, pages: Iterable[pa.RecordBatch], name: str = "") -> None:
        self.name = name
        self._pages = [
            _Page(page.column("hi").to_numpy(), page.column("lo").to_numpy(), page) for page in pages if page.num_rows
        ]
        self._first = np.array([page.hi[0] for page in self._pages], dtype=np.uint64)
        self.rows = sum(page.rows.num_rows for page in self._pages)

    def find(self, hi: U64, lo: U64) -> Iterator[tuple[I64, pa.RecordBatch]]:
        """All rows with one of the hashes, page by page, as (index of the hash, row). `hi` must ascend."""
        if not len(self._pages) or not len(hi):
            return
        bounds = [*np.searchsorted(hi, self._first[1:]).tolist(), len(hi)]
        begin = int(np.searchsorted(hi, self._first[0]))
        for page, end in zip(self._pages, bounds, strict=True):
            if begin < end:
                needles, rows = _find_in(page, hi[begin:end], lo[begin:end])
                if len(needles):
                    yield needles + begin, page.rows.take(pa.array(rows))
            begin = max(begin, end)

    def between(self, low: int, high: int) -> Iterator[pa.RecordBatch]:
        """The rows with `low <= hi < high`."""
        for page in self._pages:
            if int(page.hi[0]) >= high:
                return
            begin = int(np.searchsorted(page.hi, np.uint64(low)))
            end = len(page.hi) if high > 0xFFFFFFFFFFFFFFFF else int(np.searchsorted(page.hi, np.uint64(high)))
            if begin < end:
                yield page.rows.slice(begin, end - begin)

    def batches(self) -> list[pa.RecordBatch]:
        """The pages as they are."""
        return [page.rows for page in self._pages]


def _find_in(page: _Page, hi: U64, lo: U64) -> tuple[I64, I64]:
    """(index of the hash, row of the page) of every match; a hash may match several rows that lie side by side."""
    needles = page.may_have(hi)
    rows = np.searchsorted(page.hi, hi[needles])
    found_needles, found_rows = [], []
    last = len(page.hi) - 1
    while len(rows):
        here = rows <= last
        here[here] = page.hi[rows[here]] == hi[needles[here]]
        rows, needles = rows[here], needles[here]
        same = page.lo[rows] == lo[needles]
        found_rows.append(rows[same])
        found_needles.append(needles[same])
        rows = rows + 1
    return np.concatenate(found_needles or [needles]), np.concatenate(found_rows or [rows])


def paged(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut sorted rows into pages, never between equal hashes."""
    hi = rows.column("hi").to_numpy()
    begin = 0
    while begin < len(hi):
        end = min(begin + PAGE_ROWS, len(hi))
        if end < len(hi):
            end = max(int(np.searchsorted(hi, hi[end])), begin + 1)
            if hi[end - 1] == hi[end]:
                end = int(np.searchsorted(hi, hi[end], side="right"))
        yield rows.slice(begin, end - begin)
        begin = end


def merge_ranges(runs: Sequence[Run], combine: Callable[[pa.RecordBatch], pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows of several runs as the pages of one; `combine` sorts and adds up what shares a range of hashes.

    The hashes are uniform, so equal ranges hold about equally many rows.
    """
    total = sum(run.rows for run in runs)
    ranges = max(1, -(-total // (PAGE_ROWS // 2)))
    step = -(-(1 << 64) // ranges)
    for low in range(0, 1 << 64, step):
        pieces = [piece for run in runs for piece in run.between(low, low + step)]
        if pieces:
            yield from paged(combine(pa.concat_batches(pieces)))


def map_run(path: Path, name: str) -> Run:
    """A run mapped from its file."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        return Run((reader.get_batch(index) for index in range(reader.num_record_batches)), name)


def tier_to_merge(rows: Sequence[int]) -> list[int]:
    """Which of the runs with these numbers of rows to merge now: the smallest full size class, or none.

    A size class is a power of `TIER_RUNS`; merging a class makes one run of the next, so every row is rewritten once
    for each class and there are at most `TIER_RUNS` - 1 runs of each.
    """
    classes: dict[int, list[int]] = {}
    for index, count in enumerate(rows):
        classes.setdefault(max(count, 1).bit_length() // 2, []).append(index)
    for size in sorted(classes):
        if len(classes[size]) >= TIER_RUNS:
            return classes[size]
    return []

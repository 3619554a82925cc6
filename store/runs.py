"""Sorted runs: immutable tables keyed by 128-bit hashes, in memory or mapped from a file, looked up in bulk.

A run is a list of pages (record batches of at most `PAGE_ROWS` rows whose first columns are `hi` and `lo`), sorted by
hash over all of them; equal hashes never lie on two pages. In a file it is an uncompressed Arrow IPC file that is
mapped, not loaded: what is looked up often stays in the page cache, and memory does not grow with what is stored. A
look-up computes all its hashes side by side over all pages, so that it costs by hash and not by page.

Runs are merged in tiers, as in an LSM tree, a range of hashes at a time, so that a merge needs the memory of a few
pages whatever the size of the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from store import kernels
from store.hashing import U64
from store.mapped import MappedPages

__all__ = ["PAGE_ROWS", "Run", "map_run", "merge_ranges", "tier_to_merge"]

PAGE_ROWS = 1 << 20
TIER_RUNS = 4
"""Runs of one size class that are left side by side before they are merged into one of the next."""

I64 = npt.NDArray[np.int64]

_SLICED = 8
"""So many rows are sliced out one by one in less time than they are taken in one call."""

_FILTERED_ROWS = 4_096
_FILTER_BITS = 3
"""A run in memory of so many rows has a filter of 8 to 16 flags a row: of new hashes one in ten passes it."""

_NONE = np.zeros(0, np.int64)
_BLOCK = 1 << 14
"""So many hashes are looked up at once without the C: what is computed for them stays in the cache."""


class Run:
    """An immutable sorted run. `name` is that of its file relative to the data directory, empty in memory.

    A run in memory is one page; `words` is the mapped file of several, as the 64-bit words that it consists of.
    """

    def __init__(self, pages: Iterable[pa.RecordBatch], name: str = "", words: U64 | None = None) -> None:
        self.name = name
        self._pages = [page for page in pages if page.num_rows]
        self._mapped = None if words is None else MappedPages(self._pages, words)
        self.rows = sum(page.num_rows for page in self._pages)
        hi, lo = ([page.column(name).to_numpy() for page in self._pages] for name in ("hi", "lo"))
        self._his, self._los = hi, lo
        if self._mapped is None:
            assert len(self._pages) <= 1
            self._hi = hi[0] if hi else np.zeros(0, np.uint64)
            self._lo = lo[0] if lo else np.zeros(0, np.uint64)
            self._hi_at = self._lo_at = np.zeros(len(hi), np.int64)
        else:
            self._hi = self._lo = words
            self._hi_at, self._lo_at = self._mapped.begins("hi"), self._mapped.begins("lo")
        self._sizes = np.array([len(page) for page in hi], np.int64)
        self._ends = self._hi_at + self._sizes
        self._first = np.array([page[0] for page in hi], np.uint64)
        last = np.array([page[-1] for page in hi], np.uint64)
        self._density = self._sizes / np.maximum((last - self._first).astype(np.float64), 1.0)

    def touch(self) -> None:
        """Read a mapped run once, so that the first look-ups do not wait for its pages."""
        if self._mapped is not None:
            self._mapped.touch()

    def find(self, hi: U64, lo: U64) -> Iterator[tuple[I64, pa.RecordBatch]]:
        """All rows with one of the hashes, some at a time, as (index of the hash, row). `hi` must ascend."""
        for needles, pages, rows in self.places(hi, lo):
            yield needles, self.taken(pages, rows)

    def places(self, hi: U64, lo: U64) -> Iterator[tuple[I64, I64, I64]]:
        """Where these rows are, as (index of the hash, page, row of the page)."""
        if not self._pages:
            return
        if self._filter is None:
            yield from self._places(hi, lo)
            return
        shift, flags = self._filter
        likely = np.flatnonzero(flags[hi >> shift])
        for needles, pages, rows in self._places(hi[likely], lo[likely]):
            yield likely[needles], pages, rows

    def numbers(self, name: str, pages: I64, rows: I64) -> U64:
        """A column of 64-bit words at these places."""
        if self._mapped is None:
            return np.asarray(self._pages[0].column(name).to_numpy()[rows])
        return self._mapped.numbers(name, pages, rows)

    @cached_property
    def _in_c(self) -> kernels.Pages:
        facts = (self._hi_at, self._lo_at, self._sizes, self._first, self._density)
        return kernels.Pages(self._hi, self._lo, *facts)

    @cached_property
    def _filter(self) -> tuple[np.uint64, npt.NDArray[np.bool_]] | None:
        """Of a run in memory: by how much to shift a hash, and whether one that begins with these bits is here.

        Asking it costs a tenth of a search, and hashes that ascend go through it in order.
        """
        if len(self._hi) < _FILTERED_ROWS or self.name:
            return None
        bits = len(self._hi).bit_length() + _FILTER_BITS
        shift = np.uint64(64 - bits)
        flags = np.zeros(1 << bits, np.bool_)
        flags[self._hi >> shift] = True
        return shift, flags

    def _places(self, hi: U64, lo: U64) -> Iterator[tuple[I64, I64, I64]]:
        begin = int(np.searchsorted(hi, self._first[0]))
        step = max(len(hi), 1) if kernels.available() else _BLOCK
        for at in range(begin, len(hi), step):
            needles, pages, rows = self._matches(hi[at : at + step], lo[at : at + step])
            if len(needles):
                yield needles + at, pages, rows

    def _matches(self, hi: U64, lo: U64) -> tuple[I64, I64, I64]:
        """(index of the hash, page, row of the page) of every match, by pages.

        A hash may match several rows, which lie side by side on one page.
        """
        if kernels.available() and (in_c := kernels.find_hashes(hi, lo, self._in_c)) is not None:
            return in_c
        page = np.searchsorted(self._first, hi, side="right") - 1
        at, end = self._seek(page, hi), self._ends[page]
        needle = np.flatnonzero((self._hi[np.minimum(at, end - 1)] == hi) & (at < end))
        found = []
        while len(needle):
            row = at[needle] - self._hi_at[page[needle]]
            same = self._lo[self._lo_at[page[needle]] + row] == lo[needle]
            found.append((needle[same], page[needle][same], row[same]))
            at = at + 1
            needle = needle[at[needle] < end[needle]]
            needle = needle[self._hi[at[needle]] == hi[needle]]
        if not found:
            return _NONE, _NONE, _NONE
        needles, pages, rows = (np.concatenate(columns) for columns in zip(*found, strict=True))
        order = np.argsort(pages, kind="stable")
        return needles[order], pages[order], rows[order]

    def taken(self, pages: I64, rows: I64) -> pa.RecordBatch:
        """These rows of pages, in this order."""
        if len(rows) <= _SLICED:
            found = zip(pages.tolist(), rows.tolist(), strict=True)
            return pa.concat_batches([self._pages[page].slice(row, 1) for page, row in found])
        if self._mapped is None:
            return self._pages[0].take(pa.array(rows))
        return self._mapped.taken(pages, rows)

    def _seek(self, page: I64, hi: U64) -> I64:
        """Where in `_hi` the first hash of the page is that is not below each.

        Hashes are uniform, so their places are known but for a few rows: reading one and correcting by what is found
        leaves little to search, in few pages of memory. Where that is wrong, the whole page is searched.
        """
        if page[0] == page[-1]:
            return np.asarray(self._hi_at[page[0]] + np.searchsorted(self._his[page[0]], hi))
        size, begin, end, density = (facts[page] for facts in (self._sizes, self._hi_at, self._ends, self._density))
        guess = begin + np.minimum((hi - self._first[page]) * density, size - 1).astype(np.int64)
        step = np.clip((hi.view(np.int64) - self._hi[guess].view(np.int64)) * density, -size, size)
        reach = 4 * np.sqrt(np.abs(step)) + 8
        low = np.clip(guess + (step - reach).astype(np.int64), begin, end)
        high = np.clip(guess + (step + reach).astype(np.int64), begin, end)
        low = np.where((low > begin) & (self._hi[np.maximum(low - 1, begin)] >= hi), begin, low)
        high = np.where((high < end) & (self._hi[np.minimum(high, end - 1)] < hi), end, high)
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high) >> 1
            below = (middle < high) & (self._hi[np.minimum(middle, end - 1)] < hi)
            low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
        return low

    def between(self, low: int, high: int) -> Iterator[pa.RecordBatch]:
        """The rows with `low <= hi < high`."""
        for page, hi in zip(self._pages, self._his, strict=True):
            if int(hi[0]) >= high:
                return
            begin = int(np.searchsorted(hi, np.uint64(low)))
            end = len(hi) if high > 0xFFFFFFFFFFFFFFFF else int(np.searchsorted(hi, np.uint64(high)))
            if begin < end:
                yield page.slice(begin, end - begin)

    def batches(self) -> list[pa.RecordBatch]:
        """The pages as they are."""
        return self._pages


def _paged(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
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
            yield from _paged(combine(pa.concat_batches(pieces)))


def map_run(path: Path, name: str) -> Run:
    """A run mapped from its file."""
    with pa.memory_map(str(path)) as source:
        data = source.read_buffer()
    reader = pa.ipc.open_file(data)
    words = np.frombuffer(data, np.uint64, count=data.size // 8)
    return Run((reader.get_batch(index) for index in range(reader.num_record_batches)), name, words)


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

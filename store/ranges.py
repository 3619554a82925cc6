"""Sorted runs merged: in tiers, as in an LSM tree, a range of hashes at a time.

A merge needs the memory of a few pages, whatever the size of the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from store.runs import HASHES, Run

__all__ = ["PAGE_ROWS", "RANGE_ROWS", "TIER_RUNS", "merge_ranges", "tier_to_merge"]

PAGE_ROWS = 1 << 20
RANGE_ROWS = 1 << 17
"""Rows that are merged at once, and become a page: they are copied some times on the way."""

TIER_RUNS = 4
"""Runs of one size class that are left side by side before they are merged into one of the next."""


def merge_ranges(runs: Sequence[Run], combine: Callable[[pa.RecordBatch], pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows of several runs as the pages of one; `combine` sorts and adds up what shares a range of hashes.

    The hashes are uniform, so equal ranges hold about equally many rows. There are 2, 4, 8, … of them, so that pages
    of large runs end at the same hashes.
    """
    total = sum(run.rows for run in runs)
    step = HASHES >> max(0, -(-total // RANGE_ROWS) - 1).bit_length()
    for low in range(0, HASHES, step):
        pieces = [piece for run in runs for piece in run.between(low, low + step)]
        if pieces:
            yield from _paged(combine(pa.concat_batches(pieces)))


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

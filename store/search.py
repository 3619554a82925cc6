"""Looking into sorted runs: all rows of several of them with one of many hashes, and their columns.

In C all runs are searched in one call and a column of what was found is gathered in another, so that a look-up costs by
hash, and little by run or page. Without it each page is searched by NumPy and taken from by Arrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from store import kernels
from store.arrays import I64, U64
from store.runs import Run

__all__ = ["Found", "search"]


@dataclass(frozen=True)
class Found:
    """Rows of runs: `needle` is the position of their hash in the question, `page` is counted through all runs."""

    runs: Sequence[Run]
    needle: I64
    page: I64
    row: I64

    def __len__(self) -> int:
        return len(self.needle)

    def in_order(self) -> Found:
        """The same in order of the needles."""
        order = kernels.argsort(self.needle.view(np.uint64))
        return replace(self, needle=self.needle[order], page=self.page[order], row=self.row[order])

    def column(self, name: str) -> pa.Array:
        """A column of the rows."""
        runs = [run for run in self.runs if run.pages]
        kind = runs[0].pages[0].schema.field(name).type
        places = np.concatenate([run.places(name) for run in runs], axis=1)
        found = kernels.gathered(kind, self.page, self.row, places)
        return self._taken(name, [page for run in runs for page in run.pages]) if found is None else found

    def numbers(self, name: str) -> U64:
        """A column of 64-bit words."""
        return np.asarray(self.column(name).to_numpy())

    def _taken(self, name: str, pages: Sequence[pa.RecordBatch]) -> pa.Array:
        """Page by page, and then in the order that is asked for."""
        order = np.argsort(self.page, kind="stable")
        starts = np.flatnonzero(np.diff(self.page[order], prepend=-1))
        pieces = [
            pages[self.page[members[0]]].column(name).take(pa.array(self.row[members]))
            for members in np.split(order, starts[1:])
        ]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_arrays(pieces).take(pa.array(back))


def search(runs: Sequence[Run], hi: U64, lo: U64) -> Found:
    """All rows of the runs with one of the hashes; `hi` must ascend."""
    found = kernels.find_hashes(hi, lo, [run.searched for run in runs]) if kernels.available() else None
    return Found(runs, *(_by_numpy(runs, hi, lo) if found is None else found))


def _by_numpy(runs: Sequence[Run], hi: U64, lo: U64) -> tuple[I64, I64, I64]:
    """Page by page: a hash may match several rows, which lie side by side on one page."""
    found = [np.zeros((3, 0), np.int64)]
    pages = [pair for run in runs for pair in zip(run.hi, run.lo, strict=True)]
    for number, (page_hi, page_lo) in enumerate(pages):
        begin, end = np.searchsorted(hi, page_hi[0]), np.searchsorted(hi, page_hi[-1], side="right")
        asked = hi[begin:end]
        first, after = np.searchsorted(page_hi, asked), np.searchsorted(page_hi, asked, side="right")
        needle = np.repeat(np.arange(len(asked)), after - first)
        row = np.arange(len(needle)) - np.repeat(np.cumsum(after - first) - after, after - first)
        same = page_lo[row] == lo[begin:end][needle]
        found.append(np.stack([needle[same] + begin, np.full(np.count_nonzero(same), number), row[same]]))
    needle, page, row = np.concatenate(found, axis=1)
    return needle, page, row

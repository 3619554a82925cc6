"""Hot rows: what is committed and not yet in the Parquet, with its part of the index and of the summaries.

A `Hot` is a value: adding a commit makes a new one, so a reader keeps what it has. A commit is added in two steps: its
rows can be read at once, so that clients need not wait for more; `settled` makes its runs, before the next commit
looks into them. Small commits are settled many at a time (`store.fresh`), and small pieces are merged into larger ones
on the way, so that thousands of single POSTs do not become thousands of pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pyarrow as pa

from store import index, summaries
from store.fresh import Committed, CommittedRows, Fresh
from store.runs import Run

__all__ = ["Hot"]

_MERGE_RATIO = 4
"""A piece is merged with the one before it while that one is less than this many times as large."""

_MERGE_ROWS = 16_384
"""Merging does not make larger pieces: looking into a few more costs less than merging what bulk commits bring."""

T = TypeVar("T")


@dataclass(frozen=True)
class Hot:
    """Rows in order of seq, dense, and the runs over them. `bytes` counts the rows' Arrow buffers, or their texts.

    `fresh` are commits whose rows are not in `settled_tables` yet, nor in the runs; so are the first `small_commits` of
    `small`, which the `Hot`s that follow each other share. There are never both.
    """

    settled_tables: tuple[pa.Table, ...] = ()
    index: tuple[Run, ...] = ()
    summaries: tuple[Run, ...] = ()
    rows: int = 0
    bytes: int = 0
    fresh: tuple[Committed, ...] = ()
    small: Fresh = field(default_factory=Fresh)
    small_commits: int = 0
    small_rows: int = 0

    @property
    def tables(self) -> tuple[pa.Table, ...]:
        """All rows."""
        return (*self.settled_tables, *(committed.rows for committed in self._unsettled()))

    def _unsettled(self) -> tuple[Committed, ...]:
        return (self.small.committed(self.small_commits),) if self.small_commits else self.fresh

    def added(self, committed: Committed | CommittedRows) -> Hot:
        """With the records of one more commit, to be settled; for the newest of the `Hot`s that share `small`."""
        if isinstance(committed, CommittedRows):
            hot = self.settled() if self.fresh else self
            assert len(hot.small.commits) == hot.small_commits
            hot.small.add(committed)
            return replace(
                hot,
                rows=hot.rows + committed.count,
                bytes=hot.bytes + committed.bytes,
                small_commits=hot.small_commits + 1,
                small_rows=hot.small_rows + committed.count,
            )
        hot = self.settled() if self.small_commits else self
        return replace(
            hot,
            rows=hot.rows + committed.count,
            bytes=hot.bytes + committed.rows.nbytes,
            fresh=(*hot.fresh, committed),
        )

    def settled(self) -> Hot:
        """With all commits in the runs."""
        hot = self
        for committed in self._unsettled():
            hot = hot._with_runs_of(committed)
        return self if hot is self else replace(hot, fresh=(), small=Fresh(), small_commits=0, small_rows=0)

    def in_one_table(self) -> Hot:
        """The same, settled, with its rows one after another in memory: the pieces are free once nobody reads them."""
        return self if len(self.settled_tables) < 2 else replace(self, settled_tables=(_concatenated([*self.tables]),))

    def _with_runs_of(self, committed: Committed) -> Hot:
        rows = committed.rows
        entries, sums = committed.runs
        return replace(
            self,
            settled_tables=_merged((*self.settled_tables, rows), lambda table: table.num_rows, _concatenated),
            index=_merged(
                (*self.index, entries),
                lambda run: run.rows,
                lambda runs: combined(runs, index.sorted_entries),
            ),
            summaries=_merged(
                (*self.summaries, sums),
                lambda run: run.rows,
                lambda runs: combined(runs, summaries.merged),
            ),
        )


def combined(runs: list[Run], combine: Callable[[pa.RecordBatch], pa.RecordBatch]) -> Run:
    """Several runs in memory as one."""
    pieces = [page for run in runs for page in run.pages]
    return Run([combine(pa.concat_batches(pieces))] if pieces else [])


def _merged(pieces: tuple[T, ...], size: Callable[[T], int], merge: Callable[[list[T]], T]) -> tuple[T, ...]:
    """The pieces with the last ones merged, so that each is a few times as large as the one after it."""
    keep = len(pieces) - 1
    total = size(pieces[-1])
    while keep > 0 and size(pieces[keep - 1]) < _MERGE_RATIO * total and size(pieces[keep - 1]) + total <= _MERGE_ROWS:
        keep -= 1
        total += size(pieces[keep])
    if keep == len(pieces) - 1:
        return pieces
    return (*pieces[:keep], merge(list(pieces[keep:])))


def _concatenated(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks()

"""What changes together in a store, as one immutable value: a commit or a flush exchanges it for another."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from store import index, summaries
from store.hashing import U64
from store.hot import Hot
from store.index import Hits
from store.rollups import Rollup
from store.runs import I64, Run
from store.snapshot import SealedFile, Snapshot

__all__ = ["View"]


@dataclass(frozen=True)
class View:
    """`frozen` is being flushed, `active` takes commits; runs are those on disk."""

    seq: int
    flushed: int
    files: tuple[SealedFile, ...]
    frozen: Hot
    active: Hot
    index: tuple[Run, ...]
    summaries: tuple[Run, ...]
    rollups: tuple[Rollup, ...]

    @property
    def hot_rows(self) -> int:
        """Committed records that are not in the Parquet yet."""
        return self.frozen.rows + self.active.rows

    @property
    def hot_bytes(self) -> int:
        """What they take in memory."""
        return self.frozen.bytes + self.active.bytes

    def find_ids(self, hi: U64, lo: U64) -> Hits:
        """Index rows that share a hash with one of these; `hi` must ascend."""
        return index.find((*self.active.index, *self.frozen.index, *self.index), hi, lo)

    def find_summaries(self, hi: U64, lo: U64) -> tuple[I64, pa.RecordBatch]:
        """What is known of keys by unit, as (position in the question, row of `SUMMARY_SCHEMA`); `hi` must ascend."""
        return summaries.find((*self.active.summaries, *self.frozen.summaries, *self.summaries), hi, lo)

    def snapshot(self) -> Snapshot:
        """What a read sees of it."""
        return Snapshot(self.seq, self.flushed, self.files, self.frozen.tables + self.active.tables, self.rollups)

"""What changes together in a store, as one immutable value: a commit or a flush exchanges it for another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from store import index, summaries
from store.arrays import I64, U64
from store.hot import Hot
from store.index import Hits
from store.rollups import Rollup
from store.runs import Run
from store.snapshot import SealedFile, Snapshot
from store.summaries import Summary

__all__ = ["View"]

_FEW_UNITS = 64
"""Rows of summaries, beside two for each key, that are looked at one by one."""


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

    def settled(self) -> View:
        """The same with the runs of all commits."""
        active = self.active.settled()
        return self if active is self.active else replace(self, active=active)

    def merged(self, kind: str, gone: Collection[str], runs: Sequence[Any]) -> View:
        """The same with these runs of a kind in place of those with these names."""
        kept = [old for old in getattr(self, kind) if old.name not in gone]
        changed: dict[str, Any] = {kind: (*kept, *runs)}
        return replace(self, **changed)

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

    def find_each_id(self, ids: Sequence[int]) -> list[tuple[int, int, int]]:
        """(hash, seq, fingerprint) of what shares a 128-bit hash with one of these few."""
        small = self.active.small.ids
        found = [(id_, *small[id_]) for id_ in ids if id_ in small]
        others = [id_ for id_ in ids if id_ not in small] if found else ids
        return found + index.find_each((*self.active.index, *self.frozen.index, *self.index), others)

    def find_each_summary(self, keys: Collection[int]) -> dict[int, Summary] | None:
        """What is known of a few keys, by their 128-bit hashes, to go on with.

        None where they have so many units that they are better looked at in columns.
        """
        small = self.active.small.summaries
        mine = {key: small[key].copy() for key in keys if key in small}
        others = [key for key in keys if key not in small] if mine else keys
        limit = _FEW_UNITS + 2 * len(keys) - sum(len(summary.totals) for summary in mine.values())
        if limit < 0:
            return None
        runs = (*self.active.summaries, *self.frozen.summaries, *self.summaries)
        found = summaries.find_each(runs, others, limit)
        return None if found is None else found | mine

    def snapshot(self) -> Snapshot:
        """What a read sees of it."""
        return Snapshot(self.seq, self.flushed, self.files, self.frozen.tables + self.active.tables, self.rollups)

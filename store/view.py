"""What changes together in a store, as one immutable value: a commit or a flush exchanges it for another."""

from __future__ import annotations

from dataclasses import dataclass

from store.hot import Hot
from store.rollups import Rollup
from store.runs import Run
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

    def snapshot(self) -> Snapshot:
        """What a read sees of it."""
        return Snapshot(self.seq, self.flushed, self.files, self.frozen.tables + self.active.tables, self.rollups)

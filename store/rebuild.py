"""`oncelake rebuild`: index, summaries, rollups and, where it is lost, the catalog anew from the records."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from store.files import Disk
from store.kinds import KINDS
from store.recovery import open_catalog
from store.remake import check_sums, remade
from store.stopped import stopped_store
from store.tiers import unnamed

__all__ = ["Rebuilt", "rebuild"]


@dataclass(frozen=True)
class Rebuilt:
    """What was made anew: it stands for `flushed` records in so many Parquet files."""

    flushed: int
    files: int
    seconds: float


def rebuild(root: Path, disk: Disk) -> Rebuilt:
    """Make everything derived anew. What is there stays until all of the new is complete, whatever interrupts it.

    `StoreInUseError` while a service has the directory; `CorruptionError` where the records themselves are damaged.
    """
    started = time.monotonic()
    with stopped_store(disk, root) as (hasher, contents):
        state = open_catalog(disk, root, hasher, contents)
        try:
            runs = state.runs
            if not state.is_new:
                check_sums(root, state.files)
                runs = remade(disk, root, hasher, state.files, state.flushed, KINDS)
                state.catalog.exchange_kinds(list(KINDS), runs)
            for path in unnamed(root, runs):
                disk.remove(path)
        finally:
            state.catalog.close()
    return Rebuilt(state.flushed, len(state.files), time.monotonic() - started)

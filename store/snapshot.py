"""A snapshot: what one read sees, taken in one step and unchanged by whatever is committed or flushed meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from store.rollups import Rollup

__all__ = ["Condition", "SealedFile", "Snapshot"]


@dataclass
class Condition:
    """What this process knows of the bytes of a file (`store.rot`): proven, damaged, or not read yet."""

    is_proven: bool = False
    damage: str | None = None


@dataclass(frozen=True)
class SealedFile:
    """An immutable Parquet file of one partition. Times are microseconds since the epoch, `day` days since it.

    `path` is where this process reads it (it lives until the last reader has gone); `name` is relative to the data
    directory, as in the catalog.
    """

    path: Path
    name: str
    day: int
    rows: int
    min_seq: int
    max_seq: int
    min_time_us: int
    max_time_us: int
    bytes: int
    sum: str
    condition: Condition = field(default_factory=Condition, compare=False, repr=False)


@dataclass(frozen=True)
class Snapshot:
    """Rows with `seq <= flushed` are in `files`, rows with `flushed < seq <= seq` in `hot` (schema `STORED`).

    A file may hold rows above `flushed` and a hot table rows at or below it: readers filter by seq on both sides.
    `rollups` stand for flushed records; they may be missing.
    """

    seq: int
    flushed: int
    files: tuple[SealedFile, ...]
    hot: tuple[pa.Table, ...]
    rollups: tuple[Rollup, ...] = ()

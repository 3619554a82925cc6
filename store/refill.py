"""Holes among the Parquet files where the catalog is lost with them, filled from the notification log.

Nothing says any more which files there were, and what their checksums must be. Those that can be read, and agree with
the log where it has their records, tell which seqs they hold; what is lacking up to the newest flushed seq comes from
the log. When the catalog is made anew afterwards, all of it is held against the log once more (`store.recovery`).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from store.catalog import FileRow
from store.files import Disk, overlapped, remove_directory
from store.gathering import Group, Lost, gather, joined
from store.hashing import Hasher
from store.links import link_name
from store.log import lines_after, parse_notifications
from store.mend import kept
from store.parquet import day_directory, day_of, describe, flush_of
from store.remake import REMAKE
from store.rot import quarantined
from store.schema import STORED
from store.segments import LogSegment

__all__ = ["Refilled", "refill"]

_NAME = re.compile(r"^([0-9]{20})-([0-9]{20})(\.|$)")


@dataclass(frozen=True)
class Refilled:
    """The files that are there now, the newest flushed seq, and what is lacking, in words."""

    files: list[FileRow]
    flushed: int
    hopeless: list[str]


@dataclass
class _Found:
    files: list[FileRow]
    bad: list[str]
    flushed: int


def refill(
    disk: Disk, root: Path, hasher: Hasher, log: Sequence[LogSegment], seq: int, tell: Callable[[str], None]
) -> Refilled:
    """Make files of all records that no good file holds; those that are not good go into quarantine then."""
    found = _read(root, seq)
    _compare(root, hasher, log, found)
    lost = Lost(1, found.flushed)
    lost.add(1, found.flushed)
    for row in found.files:
        lost.discard(pq.read_table(root / row.name, columns=["seq"], partitioning=None).column("seq").to_numpy())
    seqs = lost.within(1, found.flushed)
    groups: dict[int, Group] = {}
    remove_directory(disk, root / REMAKE)
    disk.make_directory(root / REMAKE)
    try:
        gather(root, lambda day: [groups.setdefault(day, Group(day, 1, found.flushed))], lost, log, 1, found.flushed)
        left = len(seqs) - sum(group.found for group in groups.values())
        if left:
            names = (
                f"; these cannot be read, or hold other records than the log: {', '.join(found.bad)}"
                if found.bad
                else ""
            )
            lacking = (
                f"records/ lacks {len(seqs)} records of seqs {seqs[0]} to {seqs[-1]}, and the notification log lacks "
                f"{left} of them{names}"
            )
            return Refilled(found.files, found.flushed, [lacking])
        _place(disk, root, found, list(groups.values()), tell)
    finally:
        remove_directory(disk, root / REMAKE)
    return Refilled(_read(root, seq).files, found.flushed, [])


def _compare(root: Path, hasher: Hasher, log: Sequence[LogSegment], found: _Found) -> None:
    """Files that hold other records than the log are not good."""
    with tempfile.TemporaryFile(prefix="oncelake-mend-") as file:
        prints = np.memmap(file, np.uint64, "w+", shape=(found.flushed + 1,))
        is_known = np.zeros(found.flushed + 1, dtype=bool)
        for segment in log:
            if segment.damage is None and segment.first <= found.flushed:
                for _, data in lines_after(root, [(segment.path, segment.bytes)], segment.first - 1):
                    rows, seqs = _upto(found.flushed, parse_notifications(data))
                    prints[seqs], is_known[seqs] = hasher.fingerprint(rows), True
        for row in list(found.files):
            with pq.ParquetFile(root / row.name) as parquet:
                for group in range(parquet.num_row_groups):
                    rows, seqs = _upto(found.flushed, parquet.read_row_group(group).cast(STORED))
                    if (is_known[seqs] & (prints[seqs] != hasher.fingerprint(rows))).any():
                        found.files.remove(row)
                        found.bad.append(row.name)
                        break


def _upto(last: int, rows: pa.Table) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Those rows, and their seqs."""
    seqs = rows.column("seq").to_numpy()
    rows = rows.filter(pa.array((seqs >= 1) & (seqs <= last)))
    return rows.combine_chunks(), rows.column("seq").to_numpy()


def _read(root: Path, seq: int) -> _Found:
    """What the files below `records/` hold, as far as they can be read, and up to where they were flushed."""
    found = _Found([], [], 0)
    for path in sorted(root.glob("records/**/*.parquet")):
        name = str(path.relative_to(root))
        try:
            with pq.ParquetFile(path) as parquet:
                for group in range(parquet.num_row_groups):
                    parquet.read_row_group(group)
        except (OSError, pa.ArrowException):
            found.bad.append(name)
            if (said := _NAME.match(path.stem)) is not None:
                found.flushed = max(found.flushed, int(said[2]))
            continue
        found.flushed = max(found.flushed, flush_of(path)[1])
        found.files.append(describe(path, name, day_of(path)))
    found.flushed = min(found.flushed, seq)  # where they reach beyond it, the end of the journal was lost
    return found


def _place(disk: Disk, root: Path, found: _Found, groups: list[Group], tell: Callable[[str], None]) -> None:
    staged: list[tuple[Path, Path, str]] = []
    for group in groups:
        path = root / REMAKE / f"{group.day}.parquet"
        made = joined(disk, root, group, path, "")
        stem = f"{day_directory(group.day)}/{made.min_seq:020d}-{made.max_seq:020d}.{made.rows}.mended"
        names = [f"{stem}.parquet", *(f"{stem}{number}.parquet" for number in range(2, 100))]
        name = next(each for each in names if not (root / each).exists())
        staged.append((path, root / name, f"{name} ({made.rows} records of seqs {made.min_seq} to {made.max_seq})"))
    overlapped(disk.sync_file, [path for path, _, _ in staged])
    for name in found.bad:
        where = quarantined(disk, root, root / name, link_name(name))
        tell(f"{name} could not be read, or held other records than the log{kept(where)}")
    disk.make_directories([target.parent for _, target, _ in staged])
    for path, target, what in staged:
        disk.rename(path, target)
        disk.sync_directory(target.parent)
        tell(f"records that no Parquet file held are made again from the notification log, in {what}")

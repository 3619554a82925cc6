"""Records out of the notification log, by day, as one new Parquet file for each group of them.

Sound segments have what was committed; of damaged ones only records are taken that are proven (`store.salvage`). They
go into small files on the way, so that memory stays bounded whatever a group holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from store.arrays import I64
from store.catalog import FileRow
from store.files import Disk
from store.limits import DAY_US
from store.log import lines_after, parse_notifications
from store.merging import Merging, merge
from store.parquet import describe, partitions, write_partition
from store.remake import REMAKE
from store.salvage import Salvage
from store.segments import LogSegment
from store.snapshot import SealedFile

__all__ = ["Group", "Lost", "gather", "joined"]

_ROWS = 1 << 18
"""Records that are held in memory before they go into small files."""

_FAN_IN = 64
"""Pieces that are merged at once: each is an open file with some thousand records in hand."""

_MEMORY = 128_000_000


class Lost:
    """Which seqs of a range are lost: all that are said to be, and not said to be held."""

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self._flags = np.zeros(max(last - first, -1) + 2, dtype=bool)

    def add(self, first: int, last: int) -> None:
        """These may be lost."""
        self._flags[first - self.first : last - self.first + 1] = True

    def discard(self, seqs: I64) -> None:
        """A sound file holds these."""
        inside = seqs[(seqs >= self.first) & (seqs <= self.last)]
        self._flags[inside - self.first] = False

    def among(self, seqs: I64) -> npt.NDArray[np.bool_]:
        """Which of these are lost."""
        inside = (seqs >= self.first) & (seqs <= self.last)
        return inside & self._flags[np.where(inside, seqs - self.first, len(self._flags) - 1)]

    def within(self, first: int, last: int) -> I64:
        """The lost ones of a range."""
        begin = max(first, self.first)
        return np.flatnonzero(self._flags[begin - self.first : max(last - self.first + 1, 0)]) + begin


@dataclass
class Group:
    """Lost records of one day with seqs `first` to `last`. `span` goes into the footer: None for their own seqs.

    `doubtful` are the damaged segments that some of its records come from.
    """

    day: int
    first: int
    last: int
    span: tuple[int, int] | None = None
    found: int = 0
    waiting: list[pa.Table] = field(default_factory=list)
    pieces: list[SealedFile] = field(default_factory=list)
    doubtful: list[LogSegment] = field(default_factory=list)


def gather(
    root: Path,
    groups_of: Callable[[int], Sequence[Group]],
    lost: Lost,
    log: Sequence[LogSegment],
    first: int,
    last: int,
    salvage: Salvage | None = None,
) -> None:
    """Put the lost records of seqs `first` to `last` into the groups of their day, as far as the log has them."""
    waiting = 0
    touched: dict[int, Group] = {}
    for segment, rows in _logged(root, lost, log, (first, last), salvage):
        seqs = rows.column("seq").to_numpy()
        days = rows.column("time").cast(pa.int64()).to_numpy() // DAY_US
        for day in np.unique(days).tolist():
            for group in groups_of(day):
                mask = (days == day) & (seqs >= group.first) & (seqs <= group.last)
                if segment.damage is not None and mask.any() and segment not in group.doubtful:
                    group.doubtful.append(segment)
                group.waiting.append(rows.filter(pa.array(mask)))
                group.found += int(mask.sum())
                waiting += int(mask.sum())
                touched[id(group)] = group
        if waiting >= _ROWS:
            _write_pieces(root, touched.values())
            waiting = 0
    _write_pieces(root, touched.values())


def joined(disk: Disk, root: Path, group: Group, path: Path, name: str) -> FileRow:
    """All records of a group in one new file, sorted and compared, not synced. It will be called `name`."""
    pieces = group.pieces
    for level in itertools.count():
        if len(pieces) <= _FAN_IN:
            return _merged(disk, pieces, path, name)
        merged = []
        for number in range(0, len(pieces), _FAN_IN):
            between = f"{REMAKE}/{group.day}-{group.first}.{level}-{number}.parquet"
            row = _merged(disk, pieces[number : number + _FAN_IN], root / between, between)
            merged.append(SealedFile(root / between, *msgspec.structs.astuple(row)))
        pieces = merged
    raise AssertionError


def _merged(disk: Disk, pieces: Sequence[SealedFile], path: Path, name: str) -> FileRow:
    """Pieces as one file, and removed."""
    made = merge(pieces, path, name, Merging(disk, _MEMORY, lambda: None))
    for piece in pieces:
        disk.remove(piece.path)
    return made


def _logged(
    root: Path, lost: Lost, log: Sequence[LogSegment], seqs: tuple[int, int], salvage: Salvage | None
) -> Iterator[tuple[LogSegment, pa.Table]]:
    """The lost records of these seqs, each with the segment that has it."""
    for segment in log:
        begin, end = max(segment.first, seqs[0]), min(segment.last, seqs[1])
        if begin > end or not len(lost.within(begin, end)):
            continue
        for rows in _records(root, segment, begin, end, salvage):
            found = rows.column("seq").to_numpy()
            mask = lost.among(found) & (found >= begin) & (found <= end)
            if mask.any():
                yield segment, rows.filter(pa.array(mask))


def _records(root: Path, segment: LogSegment, first: int, last: int, salvage: Salvage | None) -> Iterator[pa.Table]:
    """The records of a segment, some of which have seqs `first` to `last`."""
    if segment.damage is None:
        for at, data in lines_after(root, [(segment.path, segment.bytes)], first - 1):
            if at > last:
                break
            yield parse_notifications(data)
    elif salvage is not None:
        yield from salvage.records(segment)


def _write_pieces(root: Path, groups: Iterable[Group]) -> None:
    for group in groups:
        tables = [table for table in group.waiting if table.num_rows]
        group.waiting = []
        if tables:
            (partition,) = partitions(pa.concat_tables(tables))
            rows = partition.rows()
            seqs = pc.min_max(rows.column("seq")).as_py()
            path = root / REMAKE / f"{group.day}-{group.first}.{len(group.pieces)}.parquet"
            write_partition(rows, path, group.span or (seqs["min"], seqs["max"]))
            row = describe(path, str(path.relative_to(root)), group.day)
            group.pieces.append(SealedFile(path, *msgspec.structs.astuple(row)))

"""Several Parquet files of a partition as one: sorted as a flush sorts, with the same records and no others.

Each of them is sorted, so they are merged while they are read, a range of records at a time, and memory is bounded
whatever they hold. What was written is read back: its records are compared with those that were read, by their number,
their ranges and sums of a hash over all columns.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from store.catalog import FileRow
from store.errors import MEND, CorruptionError
from store.files import Disk, Growing
from store.flush import checksum_of
from store.hashing import Hasher
from store.memory import give_back_memory
from store.parquet import flush_of, partition_writer, partitions
from store.schema import STORED
from store.snapshot import SealedFile
from store.whole import whole

__all__ = ["Merging", "merge"]

_IN_HAND = 16
"""One part in so many of the memory is for what is read and not yet sorted: it is copied some times on its way."""

_DECODED = 8
"""A record takes about so many times as many bytes in memory as it does in a file."""

_READ_BYTES = 1 << 16
"""Of a column at once."""

_LEAST_ROWS = 1_024
_MOST_ROWS = 32_768
"""Records that are read at once."""

_FEW_VALUES = ("sourceId", "destinationId", "type", "unit")
"""Columns that are read as dictionaries, in a third of the time; that of `reference` may be as long as the column."""

_HASHER = Hasher(b"")

_Key = tuple[bytes, int, int]


@dataclass(frozen=True)
class Merging:
    """How merges are made: on `disk`, within about so many bytes of `memory`.

    `go_on` is called before each step, and may give the merge up by an exception.
    """

    disk: Disk
    memory: int
    go_on: Callable[[], None]


def merge(files: Sequence[SealedFile], path: Path, name: str, how: Merging) -> FileRow:
    """Write the records of these files to a new file, whose last bytes are not synced. It will be called `name`.

    `CorruptionError` where the bytes of a file are not those that the catalog says (rot would be copied), or what was
    written is not what they hold.
    """
    for file in files:
        how.go_on()
        _check(file)
    how.go_on()  # before a file is made: whoever wanted it may be gone
    before, after = _Facts(), _Facts()
    with partition_writer(path, _span(files)) as writer:
        growing = Growing(how.disk, path)
        for rows in _merged(files, before, how):
            writer.write(rows)
            growing.grown()
    for rows in _stored(path, _MOST_ROWS):
        how.go_on()
        after.add(rows)
    give_back_memory()
    if before != after or after.rows != sum(file.rows for file in files):
        raise CorruptionError(f"{name} would hold {after}, the files that it stands for hold {before}")
    seqs, times = (after.min_seq, after.max_seq), (after.min_time, after.max_time)
    return FileRow(name, files[0].day, after.rows, *seqs, *times, *checksum_of(path))


@dataclass
class _Facts:
    """What is said of records, in whatever order: the same of two lots of them only where the records are the same."""

    rows: int = 0
    min_seq: int = (1 << 63) - 1
    max_seq: int = 0
    min_time: int = (1 << 63) - 1
    max_time: int = 0
    seqs: int = 0
    processed: int = 0

    def add(self, rows: pa.Table) -> None:
        """Some more. A hash of each record is weighed with its seq, and with the time at which it was processed."""
        prints = _HASHER.hashes(rows)[-1]
        numbers = (whole(rows.column(name)).cast(pa.int64()) for name in ("seq", "time", "processedAt"))
        seqs, times, processed = (column.to_numpy() for column in numbers)
        self.rows += rows.num_rows
        self.min_seq, self.max_seq = min(self.min_seq, int(seqs.min())), max(self.max_seq, int(seqs.max()))
        self.min_time, self.max_time = min(self.min_time, int(times.min())), max(self.max_time, int(times.max()))
        self.seqs = (self.seqs + int((prints * (2 * seqs + 1).view(np.uint64)).sum())) % (1 << 64)
        self.processed = (self.processed + int((prints * (2 * processed + 1).view(np.uint64)).sum())) % (1 << 64)


class _Source:
    """The records of a file in their order. Some are in hand, at least one until its end; `rows` are read at once."""

    def __init__(self, file: SealedFile, rows: int, facts: _Facts) -> None:
        self._file = file
        self._facts = facts
        self._few = rows // 2
        self._stored = _stored(file.path, rows)
        self._keep(STORED.empty_table())
        self._take_next()

    @property
    def rows(self) -> int:
        """How many are in hand."""
        return int(self._rest.num_rows)

    def last(self) -> _Key:
        """The key of the last one in hand."""
        return self._key(self.rows - 1)

    def until(self, bound: _Key) -> pa.Table:
        """Give away what is in hand up to a key."""
        end = bisect_right(range(self.rows), bound, key=self._key)
        given = self._rest.slice(0, end)
        self._keep(self._rest.slice(end))
        if self.rows <= self._few:  # before the last one is given away, or ranges would be cut into slivers
            self._take_next()
        return given

    def close(self) -> None:
        """Close the file."""
        self._stored.close()

    def _take_next(self) -> None:
        try:
            rows = next(self._stored, None)
        except (OSError, pa.ArrowException) as error:
            raise CorruptionError(f"{self._file.name} cannot be read: {error}") from error
        if rows is not None:
            self._facts.add(rows)
            self._keep(pa.concat_tables([self._rest, rows]).combine_chunks() if self.rows else rows)

    def _keep(self, rows: pa.Table) -> None:
        self._rest = rows
        self._sorted_by = [whole(rows.column(name)) for name in ("destinationId", "time", "seq")]

    def _key(self, row: int) -> _Key:
        """What a record in hand is sorted by."""
        destination, time, seq = (column[row] for column in self._sorted_by)
        return destination.as_py().encode(), time.value, seq.as_py()


def _merged(files: Sequence[SealedFile], facts: _Facts, how: Merging) -> Iterator[pa.Table]:
    """The records of all files in their order, a range at a time: up to the least of what each has in hand last."""
    share = how.memory / _IN_HAND / (_DECODED * sum(file.bytes for file in files))
    with contextlib.ExitStack() as opened:
        sources = []
        for file in files:
            rows = min(max(int(share * file.rows), _LEAST_ROWS), _MOST_ROWS)
            sources.append(opened.enter_context(contextlib.closing(_Source(file, rows, facts))))
        while sources := [source for source in sources if source.rows]:
            how.go_on()
            bound = min(source.last() for source in sources)
            given = pa.concat_tables([source.until(bound) for source in sources])
            if not given.num_rows:
                raise CorruptionError(f"one of {', '.join(file.name for file in files)} is not sorted: {MEND}")
            (partition,) = partitions(given)
            yield partition.rows()


def _stored(path: Path, rows: int) -> Generator[pa.Table, None, None]:
    """What a file holds, so many records at a time, without the rest of it in memory."""
    few = list(_FEW_VALUES)
    with pq.ParquetFile(path, read_dictionary=few, pre_buffer=False, buffer_size=_READ_BYTES) as parquet:
        for batch in parquet.iter_batches(rows, use_threads=False):
            yield pa.Table.from_batches([batch]).cast(STORED)


def _span(files: Sequence[SealedFile]) -> tuple[int, int]:
    """From the first flush to the last one whose records the files hold."""
    spans = [flush_of(file.path) for file in files]
    return min(first for first, _ in spans), max(last for _, last in spans)


def _check(file: SealedFile) -> None:
    try:
        found = checksum_of(file.path)
    except OSError as error:
        raise CorruptionError(f"{file.name} cannot be read: {error}") from error
    if found != (file.bytes, file.sum):
        raise CorruptionError(
            f"{file.name} has {found[0]} bytes with checksum {found[1]}, the catalog says {file.bytes} with "
            f"{file.sum}: stop the service, {MEND}"
        )

"""Writing hot rows as Parquet: one immutable file for each partition of a flush, sorted inside for pruning.

Rows are sorted by destinationId, time and seq, the order in which aggregations list them. A file carries the seq
range of its flush in its footer, so that a lost catalog can be made anew from the files alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from store import kernels
from store.arrays import I64
from store.catalog import FileRow
from store.codes import changes, folded, numbers, order_of, ranks
from store.errors import MEND, CorruptionError
from store.limits import DAY_US
from store.schema import STORED

__all__ = [
    "FLUSH_KEY",
    "Partition",
    "PartitionWriter",
    "day_directory",
    "day_of",
    "describe",
    "flush_of",
    "partition_writer",
    "partitions",
    "write_partition",
]

FLUSH_KEY = b"oncelake.flush"
_ROW_GROUP_ROWS = 131_072
_SAMPLE_ROWS = 4_096
_REPEATING = ("sourceId", "destinationId", "type", "unit", "reference", "processedAt")
"""Columns whose values may repeat, in the order of the schema."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Partition:
    """The rows of one day (days since the epoch): those at `order` of `table`."""

    day: int
    table: pa.Table
    order: I64

    def rows(self) -> pa.Table:
        """A copy of them, sorted by destinationId, time, seq."""
        return kernels.taken(self.table, self.order)


def day_directory(day: int) -> str:
    """The partition's directory relative to the data directory."""
    return f"records/date={(_EPOCH + timedelta(days=day)).date().isoformat()}"


def partitions(rows: pa.Table) -> list[Partition]:
    """Cut rows by the UTC date of their time. The rows of a part are copied when they are asked for."""
    if not rows.num_rows:
        return []
    rows = rows.combine_chunks()  # once, and not for each part
    order, days = _sorted(rows)
    starts = changes(days)
    ends = np.r_[starts[1:], len(days)]
    return [
        Partition(int(days[start]), rows, order[start:end])
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


def _sorted(rows: pa.Table) -> tuple[I64, I64]:
    """The rows by day, destinationId, time and seq, and the days in that order."""
    times = rows.column("time").cast(pa.int64()).to_numpy()
    day = times // DAY_US
    days, first = numbers(day)
    destinations, _ = ranks(rows.column("destinationId"))
    key = folded(days, destinations, (times - day * DAY_US, DAY_US))
    order, seqs = order_of(key), rows.column("seq").to_numpy()
    equal = np.flatnonzero(key[order[1:]] == key[order[:-1]])
    if (seqs[order[equal]] > seqs[order[equal + 1]]).any():  # not in a flush, whose rows come by seq
        order = np.lexsort((seqs, key))
    return order, days[0][order] + first


def write_partition(rows: pa.Table, path: Path, flush: tuple[int, int]) -> None:
    """Write the sorted rows of a day to a new file, not synced. `flush` is the seq range that it belongs to."""
    with partition_writer(path, flush) as writer:
        writer.write(rows)


class PartitionWriter:
    """Rows of one day, in their order, into one file; row groups are filled whatever comes at once."""

    def __init__(self, path: Path, flush: tuple[int, int]) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._schema = STORED.with_metadata({FLUSH_KEY: f"{flush[0]}-{flush[1]}".encode()})
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def write(self, rows: pa.Table) -> None:
        """The next rows."""
        self._waiting.append(rows)
        self._rows += rows.num_rows
        if self._rows >= _ROW_GROUP_ROWS:
            whole = self._rows - self._rows % _ROW_GROUP_ROWS
            table = pa.concat_tables(self._waiting)
            self._write(table.slice(0, whole))
            self._waiting = [table.slice(whole)]
            self._rows -= whole

    def finish(self) -> None:
        """The last row group."""
        if self._rows:
            self._write(pa.concat_tables(self._waiting))

    def close(self) -> None:
        """Write the end of the file and close it."""
        with self._file:
            if self._writer is not None:
                self._writer.close()

    def _write(self, rows: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._file,
                self._schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=_repeated(rows),
                column_encoding={"seq": "DELTA_BINARY_PACKED", "time": "DELTA_BINARY_PACKED"},
                write_page_index=True,
            )
        self._writer.write_table(rows.cast(self._schema), row_group_size=_ROW_GROUP_ROWS)


def _repeated(rows: pa.Table) -> list[str]:
    """The columns that are written with a dictionary: a sample has each of their values twice or more, in the mean.

    A dictionary of values that hardly repeat takes three times as long to write, and more room.
    """
    sample = rows.take(np.arange(0, rows.num_rows, max(1, rows.num_rows // _SAMPLE_ROWS)))
    return [name for name in _REPEATING if 2 * len(sample.column(name).unique()) <= len(sample)]


@contextlib.contextmanager
def partition_writer(path: Path, flush: tuple[int, int]) -> Iterator[PartitionWriter]:
    """A new file for the rows of one day, not synced. `flush` goes into the footer (see `flush_of`)."""
    partition = PartitionWriter(path, flush)
    with contextlib.closing(partition):
        yield partition
        partition.finish()


def flush_of(path: Path) -> tuple[int, int]:
    """The seq range in a file's footer: of its flush, or from the first to the last flush that was merged into it.

    `CorruptionError` where there is none, or the file cannot be read.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        first, last = metadata[FLUSH_KEY].decode().split("-")
        return int(first), int(last)
    except KeyError:
        raise CorruptionError(f"{path} was not written by oncelake: move it out of records/") from None
    except (OSError, pa.ArrowException, ValueError) as error:
        raise CorruptionError(f"{path} is damaged ({error}): {MEND}") from error


def day_of(path: Path) -> int:
    """The day (since the epoch) of a file's rows, which are all of one."""
    times = pc.min_max(pq.read_table(path, columns=["time"], partitioning=None).column("time").cast(pa.int64()))
    return int(times["min"].as_py() // DAY_US)


def describe(path: Path, name: str, day: int) -> FileRow:
    """Read a written file back: its rows, seqs, times and checksum. `CorruptionError` where it cannot be."""
    try:
        data = path.read_bytes()
        with pq.ParquetFile(pa.BufferReader(data)) as parquet:
            rows = parquet.read(["seq", "time"], use_threads=parquet.num_row_groups > 1)
    except (OSError, pa.ArrowException) as error:
        raise CorruptionError(f"{path} cannot be read back: {error}") from error
    seqs = pc.min_max(rows.column("seq")).as_py()
    times = pc.min_max(rows.column("time").cast(pa.int64())).as_py()
    return FileRow(
        name=name,
        day=day,
        rows=rows.num_rows,
        min_seq=seqs["min"],
        max_seq=seqs["max"],
        min_time=times["min"],
        max_time=times["max"],
        bytes=len(data),
        sum=xxhash.xxh3_64_hexdigest(data),
    )

"""Writing hot rows as Parquet: one immutable file for each partition of a flush, sorted inside for pruning.

Rows are sorted by destinationId, time and seq, the order in which aggregations list them. A file carries the seq
range of its flush in its footer, so that a lost catalog can be made anew from the files alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from store.catalog import FileRow
from store.errors import CorruptionError

__all__ = ["FLUSH_KEY", "Partition", "day_directory", "describe", "partitions", "write_partition"]

FLUSH_KEY = b"oncelake.flush"
_DAY_US = 86_400_000_000
_ROW_GROUP_ROWS = 131_072
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Partition:
    """The rows of one day (days since the epoch), sorted by destinationId, time, seq."""

    day: int
    rows: pa.Table


def day_directory(day: int) -> str:
    """The partition's directory relative to the data directory."""
    return f"records/date={(_EPOCH + timedelta(days=day)).date().isoformat()}"


def partitions(rows: pa.Table) -> list[Partition]:
    """Cut rows into partitions by the UTC date of their time, each sorted.

    polars sorts strings on all cores and holds no interpreter lock.
    """
    if not rows.num_rows:
        return []
    frame = pl.DataFrame(
        {
            "destination": pl.from_arrow(rows.column("destinationId")),
            "time": pl.from_arrow(rows.column("time").cast(pa.int64())),
            "seq": pl.from_arrow(rows.column("seq")),
        }
    )
    frame = frame.with_columns(day=pl.col("time") // _DAY_US).with_row_index("row")
    order = frame.sort("day", "destination", "time", "seq")
    days = order.get_column("day").to_numpy()
    # decimal sorting in polars is not asked for: rows are taken by position
    ordered = rows.take(order.get_column("row").to_arrow())
    starts = np.flatnonzero(np.r_[True, days[1:] != days[:-1]])
    ends = np.r_[starts[1:], len(days)]
    return [
        Partition(int(days[start]), ordered.slice(start, end - start))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


def write_partition(partition: Partition, path: Path, flush: tuple[int, int]) -> None:
    """Write a partition to a new file, not synced. `flush` is the seq range of the flush that it belongs to."""
    metadata = {FLUSH_KEY: f"{flush[0]}-{flush[1]}".encode()}
    pq.write_table(
        partition.rows.replace_schema_metadata(metadata),
        path,
        compression="zstd",
        compression_level=1,
        row_group_size=_ROW_GROUP_ROWS,
        use_dictionary=["sourceId", "destinationId", "type", "unit", "reference", "processedAt"],
        column_encoding={"seq": "DELTA_BINARY_PACKED", "time": "DELTA_BINARY_PACKED"},
        write_page_index=True,
    )


def describe(path: Path, name: str, day: int) -> FileRow:
    """Read a written file back: its rows, seqs, times and checksum. `CorruptionError` where it cannot be."""
    try:
        data = path.read_bytes()
        rows = pq.read_table(pa.BufferReader(data), columns=["seq", "time"])
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

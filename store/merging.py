"""Several Parquet files of a partition as one: sorted as a flush sorts, with the same records and no others.

DuckDB sorts within a memory limit, on the thread that asks, and spills what does not fit. The rows of the new file are
compared with those of the old ones by their number, their ranges and the sum of a hash over all columns.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from store.catalog import FileRow
from store.errors import CorruptionError
from store.flush import checksum_of
from store.parquet import flush_of, partition_writer
from store.schema import STORED
from store.snapshot import SealedFile

__all__ = ["MergeStoppedError", "checked", "merge"]

_BATCH_ROWS = 1 << 16

_SORTED = """
    SELECT seq, recordId, time, sourceId, destinationId, type, value, unit, reference, processedAt
    FROM read_parquet($files, hive_partitioning = false)
    ORDER BY destinationId, time, seq
"""

_FACTS = """
    SELECT
        count(*),
        min(seq),
        max(seq),
        min(epoch_us(time)),
        max(epoch_us(time)),
        sum(hash(seq, recordId, time, sourceId, destinationId, type, value, unit, reference, processedAt)::HUGEINT)
    FROM read_parquet($files, hive_partitioning = false)
"""


def checked(file: SealedFile) -> None:
    """The bytes of a file are those that the catalog says; `CorruptionError` where rot would be copied."""
    try:
        found = checksum_of(file.path)
    except OSError as error:
        raise CorruptionError(f"{file.name} cannot be read: {error}") from error
    if found != (file.bytes, file.sum):
        raise CorruptionError(
            f"{file.name} has {found[0]} bytes with checksum {found[1]}, the catalog says {file.bytes} with "
            f"{file.sum}: restore it from a backup"
        )


class MergeStoppedError(Exception):
    """A merge was given up because the service stops."""


def merge(
    files: Sequence[SealedFile], path: Path, name: str, temp: Path, memory: str, stopping: threading.Event
) -> FileRow:
    """Write the records of these files to a new file, not synced. It will be called `name`.

    `CorruptionError` where what it holds is not what they hold; `duckdb.Error` where they cannot be read;
    `MergeStoppedError` where `stopping` was set meanwhile.
    """
    paths = [str(file.path) for file in files]
    flushes = [flush_of(file.path) for file in files]
    config: dict[str, Any] = {"memory_limit": memory, "threads": 1, "temp_directory": str(temp)}
    with contextlib.closing(duckdb.connect(":memory:", config=config)) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        with partition_writer(path, (min(first for first, _ in flushes), max(last for _, last in flushes))) as writer:
            for batch in connection.sql(_SORTED, params={"files": paths}).to_arrow_reader(_BATCH_ROWS):
                if stopping.is_set():
                    raise MergeStoppedError
                writer.write(pa.Table.from_batches([batch.cast(STORED)]))
        before = _facts(connection, paths)
        after = _facts(connection, [str(path)])
    rows, min_seq, max_seq, min_time, max_time, _ = after
    if before != after or rows != sum(file.rows for file in files):
        raise CorruptionError(f"{name} would hold {after}, the files that it stands for hold {before}")
    return FileRow(name, files[0].day, rows, min_seq, max_seq, min_time, max_time, *checksum_of(path))


def _facts(connection: duckdb.DuckDBPyConnection, paths: list[str]) -> tuple[int, ...]:
    return tuple(connection.sql(_FACTS, params={"files": paths}).fetchall()[0])

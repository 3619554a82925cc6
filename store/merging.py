"""Several Parquet files of a partition as one: sorted as a flush sorts, with the same records and no others.

Few records are sorted in memory, and what was written is read back and compared. Many are sorted by DuckDB within a
memory limit, on the thread that asks, and spilled where they do not fit; the rows of the new file are then compared
with those of the old ones by their number, their ranges and the sum of a hash over all columns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from store.catalog import FileRow
from store.engine import Stop
from store.errors import MEND, CorruptionError
from store.files import Disk, Growing
from store.flush import checksum_of
from store.memory import give_back_memory
from store.parquet import describe, flush_of, partition_writer, partitions, write_partition
from store.schema import STORED
from store.snapshot import SealedFile

__all__ = ["Merging", "merge"]

_SMALL_ROWS = 1 << 15
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


@dataclass(frozen=True)
class Merging:
    """How merges are made: on `disk`, within `memory`, spilling to `temp`, until `stop` is set."""

    disk: Disk
    temp: Path
    memory: str
    stop: Stop


def merge(files: Sequence[SealedFile], path: Path, name: str, how: Merging) -> FileRow:
    """Write the records of these files to a new file, whose last bytes are not synced. It will be called `name`.

    `CorruptionError` where the bytes of a file are not those that the catalog says (rot would be copied), or what was
    written is not what they hold; `duckdb.Error` where DuckDB cannot do it, `duckdb.InterruptException` after a stop.
    """
    how.stop.check()
    if sum(file.rows for file in files) <= _SMALL_ROWS:
        return _merge_small(files, path, name)
    return _merge_large(files, path, name, how)


def _merge_small(files: Sequence[SealedFile], path: Path, name: str) -> FileRow:
    tables = []
    for file in files:
        data = _bytes(file)
        _check(file, (len(data), xxhash.xxh3_64_hexdigest(data)))
        with pq.ParquetFile(pa.BufferReader(data)) as parquet:
            tables.append(parquet.read(use_threads=False).cast(STORED))
    (partition,) = partitions(pa.concat_tables(tables))
    merged = partition.rows()
    write_partition(merged, path, _span(files))
    row = describe(path, name, files[0].day)
    with pq.ParquetFile(path) as parquet:
        if not parquet.read(use_threads=False).equals(merged) or row.rows != sum(file.rows for file in files):
            raise CorruptionError(f"{name} was read back with other records than were written")
    return row


def _merge_large(files: Sequence[SealedFile], path: Path, name: str, how: Merging) -> FileRow:
    for file in files:
        _check(file, _checksum(file))
    paths = [str(file.path) for file in files]
    config: dict[str, Any] = {"memory_limit": how.memory, "threads": 1, "temp_directory": str(how.temp)}
    with contextlib.closing(duckdb.connect(":memory:", config=config)) as connection, how.stop.over(connection):
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_progress_bar = false")
        with partition_writer(path, _span(files)) as writer:
            growing = Growing(how.disk, path)
            for batch in _fetched(connection.sql(_SORTED, params={"files": paths}), how.stop):
                writer.write(pa.Table.from_batches([batch.cast(STORED)]))
                growing.grown()
        before = _facts(connection, paths)
        after = _facts(connection, [str(path)])
    give_back_memory()
    rows, min_seq, max_seq, min_time, max_time, _ = after
    if before != after or rows != sum(file.rows for file in files):
        raise CorruptionError(f"{name} would hold {after}, the files that it stands for hold {before}")
    return FileRow(name, files[0].day, rows, min_seq, max_seq, min_time, max_time, *checksum_of(path))


def _fetched(rows: duckdb.DuckDBPyRelation, stop: Stop) -> Iterator[pa.RecordBatch]:
    try:
        for batch in rows.to_arrow_reader(_BATCH_ROWS):
            stop.check()
            yield batch
    except OSError as error:  # what DuckDB meets while rows are fetched comes as an error of Arrow's
        stop.check()
        raise duckdb.OperationalError(str(error)) from error


def _facts(connection: duckdb.DuckDBPyConnection, paths: list[str]) -> tuple[int, ...]:
    return tuple(connection.sql(_FACTS, params={"files": paths}).fetchall()[0])


def _span(files: Sequence[SealedFile]) -> tuple[int, int]:
    """From the first flush to the last one whose records the files hold."""
    spans = [flush_of(file.path) for file in files]
    return min(first for first, _ in spans), max(last for _, last in spans)


def _bytes(file: SealedFile) -> bytes:
    try:
        return file.path.read_bytes()
    except OSError as error:
        raise CorruptionError(f"{file.name} cannot be read: {error}") from error


def _checksum(file: SealedFile) -> tuple[int, str]:
    try:
        return checksum_of(file.path)
    except OSError as error:
        raise CorruptionError(f"{file.name} cannot be read: {error}") from error


def _check(file: SealedFile, found: tuple[int, str]) -> None:
    if found != (file.bytes, file.sum):
        raise CorruptionError(
            f"{file.name} has {found[0]} bytes with checksum {found[1]}, the catalog says {file.bytes} with "
            f"{file.sum}: stop the service, {MEND}"
        )

"""DuckDB as the service queries with it: in memory, bounded, and locked down to the data directory.

Values are bound and names come from fixed lists; the connection can read the data directory and nothing else, installs
nothing and cannot be reconfigured, so that no question can do more than read records.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

__all__ = ["Engine", "Stop", "as_tables"]

BATCH_ROWS = 16_384


class Stop:
    """Ends the queries of one question from another thread: whoever asked has gone.

    A query that is stopped raises `duckdb.InterruptException`, and one that begins afterwards does as well.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[duckdb.DuckDBPyConnection] = []
        self._is_set = False

    def set(self) -> None:
        """Interrupt what runs and refuse what comes."""
        with self._lock:
            self._is_set = True
            for cursor in self._running:
                cursor.interrupt()

    def check(self) -> None:
        """Raise if it is set; an interrupt between two fetches is lost on DuckDB."""
        if self._is_set:
            raise duckdb.InterruptException("the question was withdrawn")

    @contextlib.contextmanager
    def over(self, cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """While a query runs on this cursor."""
        with self._lock:
            self.check()
            self._running.append(cursor)
        try:
            yield
        finally:
            with self._lock:
                self._running.remove(cursor)


class Engine:
    """One DuckDB instance; every query has a cursor of its own, so that queries run beside each other."""

    def __init__(self, root: Path, temp: Path, *, memory: str = "192MB", threads: int = 2) -> None:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": memory,
            "threads": str(threads),
            "temp_directory": str(temp),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "preserve_insertion_order": "false",
        }
        self._connection = duckdb.connect(":memory:", config=config)
        for statement in (
            f"SET allowed_directories = ['{str(root.resolve()).replace(chr(39), chr(39) * 2)}/']",
            "SET python_enable_replacements = false",
            "SET enable_external_access = false",
            "SET TimeZone = 'UTC'",
            "SET lock_configuration = true",
        ):
            self._connection.execute(statement).fetchall()

    @contextlib.contextmanager
    def query(
        self, sql: str, parameters: Mapping[str, Any], tables: Mapping[str, pa.Table], stop: Stop | None = None
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        """Run one query over the data directory and the given tables, streamed as record batches.

        Leaving the context ends the query, also one that has not given all its rows; `stop` ends it from elsewhere.
        """
        stop = stop or Stop()
        cursor = self._connection.cursor()
        try:
            for name, table in tables.items():
                cursor.register(name, table)
            with stop.over(cursor), cursor.sql(sql, params=dict(parameters)).to_arrow_reader(BATCH_ROWS) as reader:
                yield _batches(reader, stop)
        finally:
            with contextlib.suppress(duckdb.Error):
                cursor.interrupt()
            cursor.close()

    def close(self) -> None:
        """Close the instance."""
        self._connection.close()


def _batches(reader: pa.RecordBatchReader, stop: Stop) -> Iterator[pa.RecordBatch]:
    for batch in reader:
        stop.check()
        if batch.num_rows:
            yield batch


def as_tables(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Several tables as one, without copying."""
    return pa.concat_tables(tables) if tables else schema.empty_table()

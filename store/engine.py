"""DuckDB as the service queries with it: in memory, bounded, and locked down to the data directory.

Values are bound and names come from fixed lists; the connection can read the data directory and nothing else, installs
nothing and cannot be reconfigured, so that no question can do more than read records.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

__all__ = ["Engine"]

BATCH_ROWS = 16_384


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
        self, sql: str, parameters: Mapping[str, Any], tables: Mapping[str, pa.Table]
    ) -> Iterator[pa.RecordBatchReader]:
        """Run one query over the data directory and the given tables, streamed as record batches.

        Leaving the context ends the query, also one that has not given all its rows.
        """
        cursor = self._connection.cursor()
        try:
            for name, table in tables.items():
                cursor.register(name, table)
            with cursor.sql(sql, params=dict(parameters)).to_arrow_reader(BATCH_ROWS) as reader:
                yield reader
        finally:
            with contextlib.suppress(duckdb.Error):
                cursor.interrupt()
            cursor.close()

    def table(self, sql: str, parameters: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> pa.Table:
        """The whole answer of a query."""
        with self.query(sql, parameters, tables) as reader:
            return reader.read_all()

    def close(self) -> None:
        """Close the instance."""
        self._connection.close()


def as_tables(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Several tables as one, without copying."""
    return pa.concat_tables(tables) if tables else schema.empty_table()

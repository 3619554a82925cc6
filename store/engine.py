"""DuckDB as the service queries with it: in memory, bounded, and locked down to the data directory.

Values are bound and names come from fixed lists; the connection can read the data directory and nothing else, installs
nothing and cannot be reconfigured, so that no question can do more than read records.

DuckDB's memory limit holds for an instance, and two large sorts at once do not share it well: one of them fails, where
each alone would have spilled. So an instance runs one query at a time, to its end, and the answer waits in a spool.
There are two instances, so that small questions do not stand behind large ones.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from store.errors import DiskFullError, QueryMemoryError, QueryTimeError
from store.spool import spooled

__all__ = ["Engine", "Stop", "as_tables"]

_BATCH_ROWS = 2_048

_SMALL_ROWS = 200_000
"""A question that reads no more rows than this is a small one: sorting them fits into the memory below."""

_SMALL_MEMORY = "64MB"

_TURN_S = 0.05
"""How often one that waits for its turn looks whether it is still asked for."""


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

    @property
    def is_set(self) -> bool:
        """Whether it is to end."""
        return self._is_set

    def check(self) -> None:
        """Raise if it is set: DuckDB forgets an interrupt that comes between two fetches."""
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
    """Runs queries over the data directory at `root`; what does not fit into `memory` goes to `temp`.

    A query may run for `time_s` once it has its turn (None: for ever). `also` is another directory that may be read.
    """

    def __init__(
        self,
        root: Path,
        temp: Path,
        *,
        memory: str = "192MB",
        threads: int = 2,
        also: Path | None = None,
        time_s: float | None = None,
        observe: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._temp = temp
        self._time_s = time_s
        self._observe = observe
        self._memory = memory
        readable = [root.resolve(), *([also] if also else [])]
        self._large = _Lane(readable, temp, memory, threads)
        self._small = _Lane(readable, temp, _SMALL_MEMORY, threads)

    @contextlib.contextmanager
    def query(
        self,
        sql: str,
        parameters: Mapping[str, Any],
        tables: Mapping[str, pa.Table],
        *,
        rows: int,
        stop: Stop | None = None,
        watch: Callable[[pa.RecordBatch], None] | None = None,
        spent_s: float = 0.0,
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        """Run one query over the data directory and the given tables, and give its answer in record batches.

        `rows` is how many it reads at most. The query is over when the context begins, and `watch` has seen all its
        batches; what it raises ends the query. What can go wrong goes wrong there: `DiskFullError` where there is no
        room to spill, `QueryMemoryError` where even spilling did not help, `QueryTimeError`. A question of several
        queries has `spent_s` of its time already.
        """
        left_s = None if self._time_s is None else max(self._time_s - spent_s, 0.0)
        lane = self._small if rows <= _SMALL_ROWS else self._large
        with contextlib.ExitStack() as stack:
            late = threading.Event()
            began = time.monotonic()
            try:
                with lane.running(sql, parameters, tables, stop or Stop(), left_s, late) as batches:
                    answer = stack.enter_context(spooled(_watched(batches, watch) if watch else batches, self._temp))
            except (duckdb.Error, OSError) as error:
                if late.is_set():
                    raise QueryTimeError(
                        f"the question takes more than {self._time_s:g} s (store.query_timeout_s): "
                        "ask for a shorter time or fewer destinations, or raise that key"
                    ) from error
                raise self._explained(error) from error
            self._observe(time.monotonic() - began)
            yield answer

    def _explained(self, error: Exception) -> Exception:
        text = str(error)
        # Out of memory while rows are fetched comes as an OSError of Arrow's.
        if isinstance(error, duckdb.OutOfMemoryException) or text.startswith("Out of Memory Error"):
            return QueryMemoryError(
                f"the question needs more memory than store.query_memory ({self._memory}) gives it: "
                "ask for a shorter time or fewer destinations, or raise that key"
            )
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:
            return DiskFullError(f"{self._temp}: there is no room for what the query spills")
        return error

    def close(self) -> None:
        """Close the instances."""
        self._large.close()
        self._small.close()


class _Lane:
    """One DuckDB instance, which runs one query at a time."""

    def __init__(self, readable: Sequence[Path], temp: Path, memory: str, threads: int) -> None:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": memory,
            "threads": str(threads),
            "temp_directory": str(temp),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "preserve_insertion_order": "false",
        }
        self._turn = threading.Lock()
        self._connection = duckdb.connect(":memory:", config=config)
        allowed = ", ".join(f"'{str(directory).replace(chr(39), chr(39) * 2)}/'" for directory in readable)
        for statement in (
            f"SET allowed_directories = [{allowed}]",
            "SET python_enable_replacements = false",
            "SET enable_external_access = false",
            "SET TimeZone = 'UTC'",
            "SET lock_configuration = true",
        ):
            self._connection.execute(statement).fetchall()

    @contextlib.contextmanager
    def running(
        self,
        sql: str,
        parameters: Mapping[str, Any],
        tables: Mapping[str, pa.Table],
        stop: Stop,
        time_s: float | None,
        late: threading.Event,
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        """The query as it runs; leaving the context ends it, also one that has not given all its rows.

        After `time_s` it is interrupted, and `late` says so.
        """
        while not self._turn.acquire(timeout=_TURN_S):
            stop.check()
        try:
            with (
                contextlib.closing(self._connection.cursor()) as cursor,
                stop.over(cursor),
                _interrupted_after(time_s, cursor, late),
            ):
                for name, table in tables.items():
                    cursor.register(name, table)
                with cursor.sql(sql, params=dict(parameters)).to_arrow_reader(_BATCH_ROWS) as reader:
                    yield _batches(reader, stop, late)
        finally:
            self._turn.release()

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def _interrupted_after(
    time_s: float | None, cursor: duckdb.DuckDBPyConnection, late: threading.Event
) -> Iterator[None]:
    if time_s is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        if done.wait(time_s):
            return
        late.set()
        while not done.wait(_TURN_S):  # DuckDB forgets an interrupt that comes before the query runs
            cursor.interrupt()

    watcher = threading.Thread(target=watch, name="query-time", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watched(batches: Iterator[pa.RecordBatch], watch: Callable[[pa.RecordBatch], None]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        watch(batch)
        yield batch


def _batches(reader: pa.RecordBatchReader, stop: Stop, late: threading.Event) -> Iterator[pa.RecordBatch]:
    for batch in reader:
        stop.check()
        if late.is_set():
            raise duckdb.InterruptException("the question took too long")
        if batch.num_rows:
            yield batch


def as_tables(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Several tables as one, without copying."""
    return pa.concat_tables(tables) if tables else schema.empty_table()

"""The flusher: the thread that puts hot rows into Parquet, beside the commits."""

from __future__ import annotations

import time
from collections.abc import Callable

from ingest.worker import Worker
from store.memory import give_back_memory
from store.store import Store
from store.threads import give_way

__all__ = ["Flusher"]

_WORTH_ROWS = 32_768
"""Fewer rows wait for the interval: a source that drops small files all day should not make a file of each."""


class Flusher(Worker):
    """Flushes a store every `interval_s`, or as soon as it holds `rows` or `size` bytes of hot rows.

    `after` is called after each flush. A stop flushes what is left. While `is_waited_for` says that others need the
    cores, a flush keeps to one.
    """

    def __init__(
        self,
        store: Store,
        interval_s: float,
        rows: int,
        size: int,
        after: Callable[[], object] = lambda: None,
        is_waited_for: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(store, "flusher", "flush")
        self._after = after
        self._is_waited_for = is_waited_for
        self._interval_s = interval_s
        self._rows = rows
        self._bytes = size
        self._passed = time.monotonic()
        self._loaded = False
        self.done = (0, 0, 0.0)
        """Flushes since the start, their records and seconds."""

    @property
    def overdue_s(self) -> float:
        """For how long hot rows have waited beyond the interval for a flush to end."""
        late = time.monotonic() - self._passed - self._interval_s
        return max(late, 0.0) if self._store.hot_rows else 0.0

    def committed(self) -> None:
        """Told after each commit: wakes the flush when enough is hot."""
        if self._store.hot_rows >= self._rows or self._store.hot_bytes >= self._bytes:
            self._wakeup.set()

    def caught_up(self) -> None:
        """Told when all files are done: wakes the flush when enough is hot to be worth files of its own."""
        if self._store.hot_rows >= _WORTH_ROWS:
            self._wakeup.set()

    def run_once(self) -> int:
        """One flush, and what comes after it. How many records were flushed."""
        began = time.monotonic()
        rows = self._store.flush_once(self._is_waited_for)
        if rows:
            flushes, records, seconds = self.done
            self.done = (flushes + 1, records + rows, seconds + time.monotonic() - began)
        if rows >= _WORTH_ROWS:
            self._loaded = True
            give_back_memory()
        elif self._loaded:  # what a bulk load would use again, nobody does
            self._loaded = False
            give_back_memory(above=0)
        self.problem = None
        self._after()
        self._passed = time.monotonic()
        if rows:
            self._logger.info("flushed %d records in %.2f s", rows, self._passed - began)
        return rows

    def _run(self) -> None:
        give_way()
        goes_on = True
        while goes_on:
            self._wait(self._interval_s)
            is_last = self._stopping.is_set()  # asked before it: what a flush under way leaves is flushed as well
            goes_on = self._tried(self.run_once) and not is_last

"""The flusher: the thread that puts hot rows into Parquet, beside the commits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from store.errors import DiskFullError
from store.memory import give_back_memory
from store.store import Store
from store.threads import give_way

__all__ = ["Flusher"]

logger = logging.getLogger("oncelake.flusher")

_RETRY_S = 1.0

_WORTH_ROWS = 32_768
"""Fewer rows wait for the interval: a source that drops small files all day should not make a file of each."""


class Flusher:
    """Flushes a store every `interval_s`, or as soon as it holds `rows` or `size` bytes of hot rows.

    `after` is called after each flush.
    """

    def __init__(
        self, store: Store, interval_s: float, rows: int, size: int, after: Callable[[], object] = lambda: None
    ) -> None:
        self._store = store
        self._after = after
        self._interval_s = interval_s
        self._rows = rows
        self._bytes = size
        self._wakeup = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="flusher", daemon=True)
        self._passed = time.monotonic()
        self._loaded = False
        self.problem: str | None = None
        self.done = (0, 0, 0.0)
        """Flushes since the start, their records and seconds."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Flush what is left and end the thread."""
        self._stopping = True
        self._wakeup.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether hot rows are still flushed."""
        return self._thread.is_alive()

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
        rows = self._store.flush_once()
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
        return rows

    def _run(self) -> None:
        give_way()
        while True:
            self._wakeup.wait(self._interval_s)
            self._wakeup.clear()
            started = time.monotonic()
            try:
                rows = self.run_once()
            except DiskFullError as error:
                self.problem = str(error)
                logger.warning("%s; it is tried again", error)
                if not self._stopping:
                    time.sleep(_RETRY_S)
                    self._wakeup.set()
            except Exception as error:
                self.problem = f"the flush failed: {error}"
                self._store.failure = self._store.failure or error
                logger.critical("the flush failed, the service must be started again", exc_info=True)
                return
            else:
                if rows:
                    logger.info("flushed %d records in %.2f s", rows, time.monotonic() - started)
            if self._stopping:
                return

"""The compactor: the thread that makes few Parquet files of many, behind everything else."""

from __future__ import annotations

import contextlib
import os
import threading
import time

from ingest.worker import Worker
from store.store import Store

__all__ = ["Compactor"]

_NICE = 10
"""The kernel gives the thread what the others leave."""


class Compactor(Worker):
    """Compacts a store whenever something is worth it, looking every `interval_s`.

    Where that is not wanted it only removes what compactions before it left.
    """

    def __init__(self, store: Store, interval_s: float, *, is_wanted: bool = True) -> None:
        super().__init__(store, "compactor", "compaction", interval_s)
        self._interval_s = interval_s
        self._is_wanted = is_wanted

    def stop(self) -> None:
        """End the thread; a merge under way is given up, and the next start makes it anew."""
        self._store.compaction.stop()
        super().stop()

    def run_once(self) -> int:
        """Rounds until nothing is worth it any more, or it is to stop; how many partitions were compacted."""
        done = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            partitions = self._store.compaction.run_once()
            self.problem = None
            if not partitions:
                break
            self._logger.info("compacted %d partitions in %.2f s", partitions, time.monotonic() - started)
            done += partitions
        return done

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            self._store.compaction.remove_retired()
        except OSError as error:
            self._logger.warning("old directories could not be removed, the next start tries again: %s", error)
        if not self._is_wanted:
            return
        lacks = self._store.compaction.probe()
        if lacks is not None:
            self._logger.warning("partitions are not compacted: the file system of %s: %s", self._store.root, lacks)
            return
        while not self._stopping.is_set():
            self._wait(self._interval_s)
            if not self._tried(self.run_once):
                return

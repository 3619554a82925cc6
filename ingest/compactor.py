"""The compactor: the thread that makes few Parquet files of many, behind everything else."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time

from store.errors import DiskFullError
from store.store import Store

__all__ = ["Compactor"]

logger = logging.getLogger("oncelake.compactor")

_NICE = 10
"""The kernel gives the thread what the others leave."""


class Compactor:
    """Compacts a store whenever something is worth it, looking every `interval_s`.

    Where that is not wanted it only removes what compactions before it left.
    """

    def __init__(self, store: Store, interval_s: float, *, is_wanted: bool = True) -> None:
        self._store = store
        self._interval_s = interval_s
        self._is_wanted = is_wanted
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="compactor", daemon=True)
        self.problem: str | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a merge under way is given up, and the next start makes it anew."""
        self._stopping.set()
        self._store.compaction.stop()
        if self._thread.is_alive():
            self._thread.join()

    def run_once(self) -> int:
        """Rounds until nothing is worth it any more, or it is to stop; how many partitions were compacted."""
        done = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            partitions = self._store.compaction.run_once()
            self.problem = None
            if not partitions:
                break
            logger.info("compacted %d partitions in %.2f s", partitions, time.monotonic() - started)
            done += partitions
        return done

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            self._store.compaction.remove_retired()
        except OSError as error:
            logger.warning("old directories could not be removed, the next start tries again: %s", error)
        if not self._is_wanted:
            return
        lacks = self._store.compaction.probe()
        if lacks is not None:
            logger.warning("partitions are not compacted: the file system of %s: %s", self._store.root, lacks)
            return
        while not self._stopping.wait(self._interval_s):
            try:
                self.run_once()
            except DiskFullError as error:
                self.problem = str(error)
                logger.warning("%s; it is tried again", error)
            except Exception as error:
                self.problem = f"the compaction failed: {error}"
                self._store.failure = self._store.failure or error
                logger.critical("the compaction failed, the service must be started again", exc_info=True)
                return

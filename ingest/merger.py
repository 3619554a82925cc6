"""The merger: the thread that merges runs, beside commits and flushes."""

from __future__ import annotations

import logging
import threading

from store.errors import DiskFullError
from store.memory import give_back_memory
from store.store import Store
from store.threads import give_way

__all__ = ["Merger"]

logger = logging.getLogger("oncelake.merger")

_RETRY_S = 1.0


class Merger:
    """Merges the runs of a store whenever some are due: at its start, and after a flush."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._wakeup = threading.Event()
        self._wakeup.set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="merger", daemon=True)
        self.problem: str | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a merge under way is given up, and the next start makes it anew."""
        self._stopping.set()
        self._store.tiers.stop()
        self._wakeup.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether runs are still merged."""
        return self._thread.is_alive()

    def flushed(self) -> None:
        """Told after each flush."""
        self._wakeup.set()

    def run_once(self) -> int:
        """Merges until none is due, or it is to stop; how many."""
        done = 0
        while not self._stopping.is_set() and self._store.tiers.merge_once():
            give_back_memory()
            done += 1
        self.problem = None
        return done

    def _run(self) -> None:
        give_way()
        while not self._stopping.is_set():
            self._wakeup.wait()
            self._wakeup.clear()
            try:
                self.run_once()
            except DiskFullError as error:
                self.problem = str(error)
                logger.warning("%s; it is tried again", error)
                self._stopping.wait(_RETRY_S)
                self._wakeup.set()
            except Exception as error:
                self.problem = f"the merge failed: {error}"
                self._store.failure = self._store.failure or error
                logger.critical("the merge failed, the service must be started again", exc_info=True)
                return

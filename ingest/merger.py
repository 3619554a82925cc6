"""The merger: the thread that merges runs, beside commits and flushes."""

from __future__ import annotations

from ingest.worker import Worker
from store.memory import give_back_memory
from store.store import Store
from store.threads import give_way

__all__ = ["Merger"]


class Merger(Worker):
    """Merges the runs of a store whenever some are due: at its start, and after a flush.

    A stop gives up the merge under way; the next start makes it anew.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store, "merger", "merge")
        self.flushed()

    def stop(self) -> None:
        """End the thread."""
        self._store.tiers.stop()
        super().stop()

    def flushed(self) -> None:
        """Told after each flush."""
        self._wakeup.set()

    def run_once(self) -> None:
        """Merges until none is due, or it is to stop."""
        while self._store.tiers.merge_once():
            self.problem = None
            give_back_memory()
        self.problem = None

    def _run(self) -> None:
        self._store.ask_ahead()
        give_way()
        if not self._tried(self._store.tiers.gather_filters):
            return
        while not self._stopping.is_set():
            self._wait()
            if not self._tried(self.run_once):
                return

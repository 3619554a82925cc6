"""The scrubber: the thread that reads everything again, to find rot before it is needed.

Right after a start it reads the runs, at a pace of their own; from then on runs and Parquet files, one pass in every
`interval_s`, evenly.
"""

from __future__ import annotations

from ingest.worker import Worker
from store.errors import CorruptionError
from store.rot import Pace, condemned, prove
from store.store import Store

__all__ = ["Scrubber"]

_REST_S = 60.0
"""Between two passes at least."""

_RUNS_BYTES_S = 256 << 20
"""At which runs are read behind a start: what commits need of a cold disk goes before."""


class Scrubber(Worker):
    """Scrubs a store. `passes` counts the passes that are done, `problem` is what the last one could not read."""

    def __init__(self, store: Store, interval_s: float) -> None:
        super().__init__(store, "scrubber", "scrub")
        self._interval_s = interval_s
        self.passes = 0

    def check_runs(self, pace: Pace) -> OSError | None:
        """Read all runs. A damaged one ends the service: the next start makes it anew. Why one could not be read."""
        unread: OSError | None = None
        for row in self._store.tiers.rows:
            try:
                error = condemned(self._store.disk, self._store.root, row, pace)
            except OSError as found:
                unread = found
                continue
            if error is not None:
                self._fail(error)
                break
        return unread

    def check_files(self, pace: Pace) -> OSError | None:
        """Read all Parquet files. A damaged one is remembered, and shown in the health. Why one could not be read."""
        unread: OSError | None = None
        for file in self._store.files:
            if pace.is_over:
                break
            try:
                prove(file, pace)
            except FileNotFoundError:
                continue  # compacted meanwhile
            except OSError as found:
                unread = found
        return unread

    def run_once(self) -> None:
        """One pass, at the pace that ends it with the interval."""
        size = sum(row.bytes for row in self._store.tiers.rows) + sum(file.bytes for file in self._store.files)
        pace = Pace(max(size / self._interval_s, 1.0), self._stopping)
        unread = [self.check_runs(pace), self.check_files(pace)]
        self._store.tiers.gather_filters()
        self.passes += 1
        self._tell(next(filter(None, unread), None))

    def _fail(self, error: CorruptionError) -> None:
        self._logger.critical("%s", error)
        self._store.failure = self._store.failure or error

    def _run(self) -> None:
        self._tell(self.check_runs(Pace(_RUNS_BYTES_S, self._stopping)))
        self._store.keep_runs()
        while not self._stopping.wait(_REST_S):
            try:
                self.run_once()
            except Exception as error:  # the next pass may find more than this one
                self.problem = f"the scrub failed: {error}"
                self._logger.exception("the scrub failed, it is tried again")

    def _tell(self, unread: OSError | None) -> None:
        self.problem = None if unread is None else f"the scrub cannot read: {unread}"
        if unread is not None:
            self._logger.warning("%s", self.problem)

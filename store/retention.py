"""Retention: segments of the logs go when all of their lines are older than they need be, and in the Parquet.

A floor goes up first, in a frame of the journal; files below it are removed afterwards, and again at a start. Nothing
waits for those who have not read them: lines of the feeds are made again from the Parquet (`outbox.remake`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from store.errors import CorruptionError
from store.log import begun_at, number_of
from store.recovery import remove_below
from store.store import Store

__all__ = ["Retention"]

logger = logging.getLogger("oncelake.retention")


class Retention:
    """The retention of a store's logs, as its settings say. One thread calls it.

    `raise_floors` has them committed: by log, the number below which its segments are kept no more.
    """

    def __init__(
        self,
        store: Store,
        raise_floors: Callable[[Mapping[str, int]], None],
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._store = store
        self._raise_floors = raise_floors
        self._now_us = now_us
        self._removed: dict[str, int] = {}
        self._damaged: set[Path] = set()

    def run_once(self) -> list[str]:
        """Remove what the floors in force allow, and ask for higher ones. The segments that were removed."""
        gone: list[str] = []
        kept = dict(self._store.state.kept)
        if kept != self._removed:
            gone = remove_below(self._store.disk, self._store.root, kept)
            self._removed = kept
            if gone:
                logger.info("removed %d segments that are kept no more, up to %s", len(gone), gone[-1])
        floors = {log: floor for log in self._store.settings.retention_us if (floor := self._floor(log)) is not None}
        if floors:
            self._raise_floors(floors)
        return gone

    def _floor(self, log: str) -> int | None:
        """The number of the first segment that must stay, where one before it may go."""
        store = self._store
        flushed, state = store.flushed, store.state
        until = self._now_us() - store.settings.retention_us[log]
        segments, end = list(state.segments[log]), state.ends.get(log)
        paths = [segment.path for segment in segments] + ([end.path] if end is not None else [])
        floor = None
        for segment, after in zip(segments, paths[1:], strict=False):
            if segment.last_seq is not None and segment.last_seq > flushed:
                break
            if self._begun(store.root / after) > until:  # it was begun when the last line before it was written
                break
            floor = number_of(after)
        return floor

    def _begun(self, path: Path) -> int:
        """As `begun_at`; what cannot be told is kept."""
        try:
            return begun_at(path)
        except CorruptionError as error:
            if path not in self._damaged:
                logger.error("nothing before it is removed: %s", error)
                self._damaged.add(path)
            return self._now_us()

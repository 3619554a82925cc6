"""All sinks of a configuration, a thread each: one that is slow or dead delays no other."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from outbox.forwarder.settings import Forward
from outbox.forwarder.shipper import Shipper
from outbox.forwarder.sink import Source
from outbox.forwarder.sinks.making import make_sink
from outbox.forwarder.status import SinkStatus
from store.files import Disk

__all__ = ["Forwarder"]

logger = logging.getLogger("oncelake.forwarder")


class Forwarder:
    """Started and stopped as a whole. `open_source` gives the reader of a feed, one for each sink."""

    def __init__(
        self,
        tables: Sequence[Forward],
        open_source: Callable[[str], Source],
        root: Path,
        store_id: str,
        disk: Disk,
    ) -> None:
        self.shippers = [
            Shipper(
                table, open_source(table.feed), partial(make_sink, table, store_id, disk), root, store_id, disk
            )
            for table in tables
        ]  # fmt: skip
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(shipper,), name=f"forward-{shipper.table.name}", daemon=True)
            for shipper in self.shippers
        ]

    def start(self) -> None:
        """Start shipping."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 0.0) -> None:
        """Take nothing more; wait so long for requests under way. What they carry is sent again by the next start."""
        self._stop.set()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))

    @property
    def is_alive(self) -> bool:
        """Whether every sink has its thread."""
        return all(thread.is_alive() for thread in self._threads)

    def statuses(self) -> list[SinkStatus]:
        """The state of each sink, in the order of the configuration; from any thread."""
        return [shipper.status() for shipper in self.shippers]

    def _run(self, shipper: Shipper) -> None:
        try:
            while not self._stop.is_set():
                if wait := advance(shipper):
                    self._stop.wait(wait)
        finally:
            shipper.close()


def advance(shipper: Shipper) -> float:
    """One step. What a client library raises unforeseen is a failure of that sink, and ends nothing."""
    try:
        return shipper.step()
    except Exception as error:
        logger.exception("forward %s: unforeseen", shipper.table.name)
        return shipper.broke(error)

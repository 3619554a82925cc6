"""`oncelake forward`: the forwarder alone, beside a running service or without one."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from outbox.feed import Feed, source_beside
from outbox.forwarder.forwarder import Forwarder, advance
from outbox.forwarder.settings import Forward
from outbox.forwarder.shipper import Shipper
from service.config import Config
from service.logs import configure_logging
from store.errors import ConfigError, OncelakeError
from store.files import Disk
from store.identity import load_identity

__all__ = ["forward"]

logger = logging.getLogger("oncelake.forwarder")

_TRIES = 4
"""Failures in a row after which `--once` gives a sink up."""

_STANDSTILL_S = 30.0
"""How long `--once` waits for another process that ships and gets nowhere."""

_LOOK_S = 0.2


def forward(config: Config, *, once: bool, retry: bool, names: Sequence[str]) -> int:
    """Ship until a signal, or with `once` or `retry` until what is committed now is with its sink (1 where not)."""
    configure_logging(config.log.level, config.log.format)
    tables = _chosen(config.forward, names)
    root = Path(config.store.data_dir)
    identity = load_identity(root)
    if identity is None:
        raise OncelakeError(f"{root} is no data directory of oncelake")
    disk = Disk(fsync=config.store.fsync)
    temp = root / "internal" / "tmp"  # where lines that are kept no more are made again
    disk.make_directory(temp)
    forwarder = Forwarder(
        tables, lambda feed: Feed(feed, source_beside(root, feed, temp)), root, identity.store_id, disk
    )
    if retry:
        for shipper in forwarder.shippers:
            shipper.desk.ask_to_retry()
    return _once(forwarder) if once or retry else _until_signal(forwarder)


def _chosen(tables: Sequence[Forward], names: Sequence[str]) -> list[Forward]:
    if not tables:
        raise ConfigError("there is no [[forward]] table in the configuration: nothing can be sent anywhere")
    known = [table.name for table in tables]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"there is no sink {unknown[0]!r}; known are {', '.join(known)}")
    return [table for table in tables if not names or table.name in names]


def _until_signal(forwarder: Forwarder) -> int:
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, frame: stop.set())
    forwarder.start()
    print(f"oncelake forwards to {', '.join(shipper.table.name for shipper in forwarder.shippers)}", flush=True)
    stop.wait()
    forwarder.stop(5.0)
    return 0


def _once(forwarder: Forwarder) -> int:
    """Each sink in a thread, so that a dead one does not keep the others waiting; a line for each on the way out."""
    results: dict[str, str] = {}

    def run(shipper: Shipper) -> None:
        results[shipper.table.name] = _drained(shipper)

    threads = [threading.Thread(target=run, args=(shipper,), daemon=True) for shipper in forwarder.shippers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for shipper in forwarder.shippers:
        problem = results.get(shipper.table.name, "it ended without an answer")
        status = shipper.status()
        told = f"failed at seq {status.seq}: {problem}" if problem else f"seq {status.seq}, {status.delivered} sent"
        print(f"{shipper.table.name}: {told}", file=sys.stderr if problem else sys.stdout)
    return int(any(results.get(shipper.table.name, "x") for shipper in forwarder.shippers))


def _drained(shipper: Shipper) -> str:
    """Ship everything that is committed now; what went wrong, or nothing."""
    shipper.drain = True
    target = shipper.newest()
    seen, since = -1, time.monotonic()
    try:
        while True:
            wait = advance(shipper)
            status = shipper.status()
            if status.state == "disabled":
                return status.problem
            if status.state == "elsewhere":
                if status.seq >= target and not shipper.desk.is_asked_to_retry():
                    return ""
                if status.seq != seen:
                    seen, since = status.seq, time.monotonic()
                elif time.monotonic() - since > _STANDSTILL_S:
                    return f"{status.problem}, and gets nowhere"
                wait = _LOOK_S
            elif status.state == "ok" and shipper.is_drained(target):
                return ""
            elif shipper.failures_in_row >= _TRIES:
                return status.problem
            time.sleep(wait)
    finally:
        shipper.close()

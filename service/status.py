"""`oncelake status`: what a data directory holds and whether a service has it; it only reads."""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from outbox.feed import Feed, source_beside, state_beside
from outbox.forwarder.checkpoint import Desk
from outbox.forwarder.settings import Forward
from outbox.forwarder.waiting import age_s, filter_of, oldest_waiting
from service.config import Config
from store.errors import CorruptionError, OncelakeError
from store.files import Disk
from store.identity import load_identity
from store.reading import catalog_beside
from store.recovery import JournalState

__all__ = ["status"]


def status(config: Config, options: argparse.Namespace) -> int:
    """Print the status."""
    root = Path(config.store.data_dir)
    found = _status(root, config)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return 0
    table = Table(show_header=False, box=None)
    sinks = found.pop("sinks")
    for name, value in (found | {f"sink {sink}": of_sink for sink, of_sink in sinks.items()}).items():
        table.add_row(name, _told(value))
    Console().print(table)
    return 0


def _status(root: Path, config: Config) -> dict[str, Any]:
    identity = load_identity(root)
    if identity is None:
        raise OncelakeError(f"{root} is no data directory of oncelake")
    state = state_beside(root)
    flushed, files = catalog_beside(root)
    owner = _owner(root / "lock")
    return {
        "data": str(root.absolute()),
        "storeId": identity.store_id,
        "format": identity.format,
        "service": f"runs (pid {owner})" if owner else "does not run",
        "seq": state.seq,
        "flushedSeq": min(flushed, state.seq),
        "parquet": {
            "files": len(files),
            "days": len({file.day for file in files}),
            "bytes": sum(file.bytes for file in files),
        },
        "closedSegments": {log: len(segments) for log, segments in state.segments.items()},
        "inbox": _files_below(root / "inbox"),
        "failed": _files_below(root / "failed", ".receipt.json"),
        "inputsUnderWay": len(state.inputs),
        "sinks": {table.name: _sink(root, table, state) for table in config.forward},
    }


def _sink(root: Path, table: Forward, state: JournalState) -> dict[str, Any]:
    """How far a sink is behind, by its checkpoint and its feed, and how it went with whoever ships or was the last to.

    A line that no segment holds any more would be made again for its age alone: the oldest that is kept stands for it.
    """
    desk = Desk(root, table.name, Disk())
    feed = Feed(table.feed, source_beside(root, table.feed, root / "internal" / "tmp"))
    try:
        done = desk.load()
        if done is None:
            return {"state": "not begun"}
        oldest = oldest_waiting(feed, max(done.seq, state.kept_from(table.feed) - 1), filter_of(table))
    except CorruptionError as error:
        return {"state": "damaged", "problem": str(error)}
    owner = _owner(desk.lock_path)
    return {
        "state": "stopped" if owner is None else "disabled" if done.disabled else done.state or "starting",
        "seq": done.seq,
        "lagSeqs": max(0, state.seq - done.seq),
        "lagSeconds": age_s(oldest, datetime.now(UTC)),
        "attempts": done.attempts,
        "failures": done.failures,
        "problem": done.disabled or done.problem,
        "deadLetterBytes": desk.letter_bytes(),
        "pid": owner,
    }


def _files_below(directory: Path, but: str = "\0") -> int:
    return sum(
        not name.startswith(".") and not name.endswith((".tmp", ".part", but))
        for _, _, names in os.walk(directory)
        for name in names
    )


def _owner(path: Path) -> str | None:
    """The process that holds the lock, as the kernel lists it; asking for the lock would get in a service's way."""
    try:
        found = path.stat()
        locks = Path("/proc/locks").read_text()
        device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        if any(device in line and "FLOCK" in line for line in locks.splitlines()):
            return path.read_text().strip() or "unknown"
    except OSError:
        return None
    return None


def _told(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(inner)}" for key, inner in value.items() if inner not in ("", None))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

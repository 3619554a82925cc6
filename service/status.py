"""`oncelake status`: what a data directory holds and whether a service has it; it only reads."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from outbox.feed import state_beside
from service.config import Config
from store.errors import OncelakeError
from store.identity import load_identity
from store.reading import catalog_beside

__all__ = ["status"]


def status(config: Config, options: argparse.Namespace) -> int:
    """Print the status."""
    root = Path(config.store.data_dir)
    found = _status(root, config)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return 0
    table = Table(show_header=False, box=None)
    for name, value in found.items():
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
        "sinks": {table.name: _lag(root, table.name, state.seq) for table in config.forward},
    }


def _lag(root: Path, name: str, seq: int) -> str:
    """How far a sink is behind, by its checkpoint."""
    try:
        done = int(msgspec.json.decode((root / "internal" / "forward" / f"{name}.json").read_bytes(), type=dict)["seq"])
    except (OSError, KeyError, msgspec.MsgspecError):
        return "not begun"
    return f"at seq {done}, {max(0, seq - done)} behind"


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
        return ", ".join(f"{key} {_told(inner)}" for key, inner in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

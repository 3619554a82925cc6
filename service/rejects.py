"""`oncelake rejected`: the dead letters, newest first."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from outbox.feed import state_beside
from service.config import Config
from store.errors import OncelakeError
from store.identity import load_identity
from store.letters import Letters, Wanted
from store.recovery import committed

__all__ = ["rejected"]


def rejected(config: Config, options: argparse.Namespace) -> int:
    """List dead letters as a table, or as the lines that they are."""
    root = Path(config.store.data_dir)
    if load_identity(root) is None:
        raise OncelakeError(f"{root} is no data directory of oncelake")
    letters = Letters(root, lambda: committed(state_beside(root), "rejected"))
    wanted = Wanted(options.status, options.source_id, options.file)
    found = list(itertools.islice(letters.newest_first(wanted), options.limit))
    if options.json:
        for letter in found:
            print(msgspec.json.encode(letter).decode())
        return 0
    table = Table("time", "id", "status", "recordId", "why", "from")
    for letter in found:
        table.add_row(
            letter["time"], letter["id"], letter["status"], letter["recordId"] or "", _why(letter), _from(letter)
        )
    Console().print(table)
    return 0


def _why(letter: dict[str, Any]) -> str:
    if letter["status"] == "resolved":
        return f"{letter['source']['letter']} was sent again and is stored as seq {letter['seq']}"
    if letter["status"] == "conflict":
        return f"differs from seq {letter['seq']} in {', '.join(letter['fields'])}"
    return "; ".join(error["message"] for error in letter["errors"] or ())


def _from(letter: dict[str, Any]) -> str:
    source = letter["source"]
    if source.get("file"):
        return f"{source['file']}:{source['line']}" if source.get("line") else str(source["file"])
    return f"request {source.get('request')}"

"""`oncelake rejected`: the dead letters, newest first."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from service.config import Config
from store.errors import OncelakeError
from store.identity import load_identity

__all__ = ["rejected"]


def rejected(config: Config, options: argparse.Namespace) -> int:
    """List dead letters as a table, or as the lines that they are."""
    root = Path(config.store.data_dir)
    if load_identity(root) is None:
        raise OncelakeError(f"{root} is no data directory of oncelake")
    found: list[tuple[bytes, dict[str, Any]]] = []
    for raw, letter in _newest_first(root / "rejected"):
        if len(found) == options.limit:
            break
        if _matches(letter, options):
            found.append((raw, letter))
    if options.json:
        for raw, _ in found:
            sys.stdout.buffer.write(raw + b"\n")
        return 0
    table = Table("time", "id", "status", "recordId", "why", "from")
    for _, letter in found:
        table.add_row(
            letter["time"], letter["id"], letter["status"], letter["recordId"] or "", _why(letter), _from(letter)
        )
    Console().print(table)
    return 0


def _newest_first(directory: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for path in sorted(directory.glob("*.jsonl"), reverse=True):
        for raw in reversed(path.read_bytes().splitlines()):
            try:
                yield raw, msgspec.json.decode(raw, type=dict[str, Any])
            except msgspec.DecodeError:
                continue  # the end of a commit that is being written


def _matches(letter: dict[str, Any], options: argparse.Namespace) -> bool:
    if options.status and letter["status"] != options.status:
        return False
    if options.file and (letter["source"] or {}).get("file") != options.file:
        return False
    if options.source_id:
        try:
            record = msgspec.json.decode(letter["record"] or "", type=dict[str, Any])
        except msgspec.DecodeError:
            return False
        return bool(record.get("sourceId") == options.source_id)
    return True


def _why(letter: dict[str, Any]) -> str:
    if letter["status"] == "conflict":
        return f"differs from seq {letter['seq']} in {', '.join(letter['fields'])}"
    return "; ".join(error["message"] for error in letter["errors"] or ())


def _from(letter: dict[str, Any]) -> str:
    source = letter["source"]
    if source.get("file"):
        return f"{source['file']}:{source['line']}" if source.get("line") else str(source["file"])
    return f"request {source.get('request')}"

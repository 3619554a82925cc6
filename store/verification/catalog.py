"""The catalog, read anew from a private copy, so that nothing is written beside it (SQLite makes `-shm` files)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Container
from dataclasses import dataclass, field, replace
from pathlib import Path

from store.verification.report import VanishedError

__all__ = ["CatalogDamageError", "CatalogView", "ParquetRow", "RunRow", "read_catalog"]

_NAME = "internal/catalog.sqlite"
_TRIES = 20


class CatalogDamageError(Exception):
    """The catalog cannot be read."""


@dataclass(frozen=True)
class ParquetRow:
    """What the catalog says of a Parquet file."""

    name: str
    day: int
    rows: int
    min_seq: int
    max_seq: int
    min_time: int
    max_time: int
    bytes: int
    sum: str


@dataclass(frozen=True)
class RunRow:
    """What the catalog says of a run of the index or of the summaries."""

    name: str
    kind: str
    rows: int
    min_seq: int
    max_seq: int
    bytes: int
    sum: str


@dataclass(frozen=True)
class CatalogView:
    """The catalog in one state. `frame` is -1 where it names none yet."""

    frame: int = -1
    digest: str = ""
    flushed: int = 0
    files: tuple[ParquetRow, ...] = ()
    runs: tuple[RunRow, ...] = ()
    targets: frozenset[str] = field(default_factory=frozenset)
    """Names that a flush under way is giving: such a file may be there or not."""
    swaps: tuple[tuple[frozenset[str], ParquetRow], ...] = ()
    """Compactions under way: the files that go, and the one that stands for them."""

    def settled(self, there: Container[str]) -> CatalogView:
        """With the compactions that have been made, by the names of the Parquet files that are there."""
        files = self.files
        for gone, merged in self.swaps:
            if merged.name in there:
                files = (*(row for row in files if row.name not in gone), merged)
        return replace(self, files=files)


def read_catalog(root: Path, scratch: Path) -> CatalogView | None:
    """The catalog; None where there is none. `CatalogDamageError` where it cannot be read."""
    copy = scratch / "catalog.sqlite"
    if not _copied(root / _NAME, copy):
        return None
    try:
        database = sqlite3.connect(copy)
        try:
            return _view(database)
        finally:
            database.close()
    except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
        raise CatalogDamageError(f"{type(error).__name__}: {error}") from error


def _copied(path: Path, copy: Path) -> bool:
    """Copy the database with its write-ahead log, as they were at one moment.

    Pages reach the database only from the log, and the log is begun anew only after all of it is there. So a log that
    is the same before and after the database was read makes the copy whole.
    """
    log, log_copy = path.with_name(path.name + "-wal"), copy.with_name(copy.name + "-wal")
    for left in (copy, log_copy, copy.with_name(copy.name + "-shm")):
        left.unlink(missing_ok=True)
    for _ in range(_TRIES):
        before, database, after = _bytes(log), _bytes(path), _bytes(log)
        if before == after:
            break
    else:
        raise VanishedError(f"{path} keeps changing")
    if database is None:
        return False
    copy.write_bytes(database)
    if before:
        log_copy.write_bytes(before)
    return True


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _view(database: sqlite3.Connection) -> CatalogView:
    check = database.execute("PRAGMA integrity_check").fetchone()[0]
    if check != "ok":
        raise CatalogDamageError(str(check))
    if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return CatalogView()  # made, and its first transaction is still to come
    meta = dict(database.execute("SELECT key, value FROM meta").fetchall())
    files = database.execute(
        "SELECT name, day, rows, min_seq, max_seq, min_time, max_time, bytes, sum FROM files ORDER BY min_seq, name"
    ).fetchall()
    runs = database.execute(
        "SELECT name, kind, rows, min_seq, max_seq, bytes, sum FROM runs ORDER BY min_seq, name"
    ).fetchall()
    intents = [
        (kind, json.loads(body)) for kind, body in database.execute("SELECT kind, body FROM intents ORDER BY id")
    ]
    return CatalogView(
        frame=int(meta["frame"]) if meta else -1,
        digest=meta["digest"] if meta else "",
        flushed=int(meta["flushed"]) if meta else 0,
        files=tuple(ParquetRow(*row) for row in files),
        runs=tuple(RunRow(*row) for row in runs),
        targets=frozenset(move["to"] for kind, intent in intents if kind == "flush" for move in intent["moves"]),
        swaps=tuple(
            (frozenset(swap["gone"]), ParquetRow(**swap["file"]))
            for kind, intent in intents
            if kind == "compaction"
            for swap in intent
        ),
    )

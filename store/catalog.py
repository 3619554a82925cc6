"""The catalog: a SQLite database of what is derived. It can be lost and is made anew from journal and footers.

It holds the sealed Parquet files, the runs of the index and of the summaries, and the moves of a flush under way, and
names the journal frame that it stands for. Each change is one synced transaction.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from store.errors import TransientError

__all__ = ["Catalog", "CatalogDamagedError", "FileRow", "Intent", "Move", "RunKind", "RunRow", "Swap"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    name TEXT PRIMARY KEY, day INTEGER NOT NULL, rows INTEGER NOT NULL, min_seq INTEGER NOT NULL,
    max_seq INTEGER NOT NULL, min_time INTEGER NOT NULL, max_time INTEGER NOT NULL, bytes INTEGER NOT NULL,
    sum TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (
    name TEXT PRIMARY KEY, kind TEXT NOT NULL, rows INTEGER NOT NULL, min_seq INTEGER NOT NULL,
    max_seq INTEGER NOT NULL, bytes INTEGER NOT NULL, sum TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS intents (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL);
"""

_NOT_DAMAGE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM}
"""Reasons for which a catalog that is whole cannot be opened: making it anew reads every record."""


Sum = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$")]
RunKind = Literal["index", "summaries", "rollups"]
Row = TypeVar("Row", bound=msgspec.Struct)


class CatalogDamagedError(Exception):
    """The catalog cannot be read or does not fit the journal."""


class FileRow(msgspec.Struct, frozen=True):
    """A sealed Parquet file. Times in microseconds since the epoch, `sum` is xxh3-64 of the file in hex."""

    name: str
    day: int
    rows: int
    min_seq: int
    max_seq: int
    min_time: int
    max_time: int
    bytes: int
    sum: Sum


class RunRow(msgspec.Struct, frozen=True):
    """A run of a kind, which covers these seqs."""

    name: str
    kind: RunKind
    rows: int
    min_seq: int
    max_seq: int
    bytes: int
    sum: Sum


class Move(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    """A staged file and the name that it gets; both relative to the data directory."""

    source: str
    target: str


class Intent(msgspec.Struct, frozen=True, rename="camel"):
    """A flush that may be half done: all files are staged and synced, and are renamed one by one."""

    first_seq: int
    last_seq: int
    moves: list[Move]
    files: list[FileRow]
    runs: list[RunRow]


class Swap(msgspec.Struct, frozen=True):
    """A partition that is being compacted: `file` in the place of those that are `gone`.

    `directory` (of the partition) and `staged` are exchanged in one step; all names are relative to the data directory.
    """

    directory: str
    staged: str
    gone: list[str]
    file: FileRow


@dataclass(frozen=True)
class _Meta:
    frame: int
    digest: str
    flushed: int


class Catalog:
    """The open catalog. After the start it is used by flushes, merges and compactions, one at a time."""

    def __init__(self, path: Path, *, fsync: bool = True) -> None:
        self.path = path
        self._turn = threading.Lock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise CatalogDamagedError(f"{path}: {error}") from error
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'OFF'}")
            self._db.executescript(_SCHEMA)
            check = self._db.execute("PRAGMA quick_check").fetchone()[0]
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the other one: of a damaged message of SQLite
            self._db.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_DAMAGE:
                raise TransientError(f"{path} cannot be opened now: {error}") from error
            raise CatalogDamagedError(f"{path}: {error}") from error
        if check != "ok":
            self._db.close()
            raise CatalogDamagedError(f"{path}: {check}")

    def read(self) -> tuple[_Meta | None, list[FileRow], list[RunRow], list[Intent]]:
        """All that it holds; the meta is None in a new catalog."""
        try:
            meta = dict(self._db.execute("SELECT key, value FROM meta").fetchall())
            files = [_row(row, FileRow) for row in self._db.execute("SELECT * FROM files ORDER BY min_seq, name")]
            runs = [_row(row, RunRow) for row in self._db.execute("SELECT * FROM runs ORDER BY min_seq, name")]
            intents = [
                msgspec.json.decode(body, type=Intent)
                for (body,) in self._db.execute("SELECT body FROM intents WHERE kind = 'flush' ORDER BY id")
            ]
            found = _Meta(int(meta["frame"]), meta["digest"], int(meta["flushed"])) if meta else None
        except (sqlite3.DatabaseError, msgspec.MsgspecError, KeyError, ValueError) as error:
            raise CatalogDamagedError(f"{self.path}: {error}") from error
        return found, files, runs, intents

    def intend(self, intent: Intent) -> None:
        """Remember the moves of a flush before the first of them."""
        body = msgspec.json.encode(intent).decode()
        with self._turn:
            self._db.execute("INSERT INTO intents (kind, body) VALUES ('flush', ?)", (body,))

    def seal(self, intent: Intent, frame: int, digest: str) -> None:
        """The flush is done: its files and runs count from here on, and its intent is gone."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?,?)", [_values(row) for row in intent.files]
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO runs VALUES (?,?,?,?,?,?,?)", [_values(row) for row in intent.runs]
            )
            self._db.execute("DELETE FROM intents WHERE kind = 'flush'")
            self._set_meta(frame, digest, intent.last_seq)

    def exchange_runs(self, old: list[str], new: RunRow) -> None:
        """One run takes the place of those that were merged into it."""
        with self._transaction():
            self._db.executemany("DELETE FROM runs WHERE name = ?", [(name,) for name in old])
            self._db.execute("INSERT INTO runs VALUES (?,?,?,?,?,?,?)", _values(new))

    def exchange_kinds(self, kinds: list[str], new: list[RunRow]) -> None:
        """These runs take the place of all of their kinds."""
        with self._transaction():
            self._db.executemany("DELETE FROM runs WHERE kind = ?", [(kind,) for kind in kinds])
            self._db.executemany("INSERT INTO runs VALUES (?,?,?,?,?,?,?)", [_values(row) for row in new])

    def swaps(self) -> list[Swap]:
        """The compactions that may be half done."""
        try:
            bodies = self._db.execute("SELECT body FROM intents WHERE kind = 'compaction' ORDER BY id").fetchall()
            return [swap for (body,) in bodies for swap in msgspec.json.decode(body, type=list[Swap])]
        except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
            raise CatalogDamagedError(f"{self.path}: {error}") from error

    def intend_swaps(self, swaps: list[Swap]) -> None:
        """Remember the exchanges of a compaction before the first of them."""
        body = msgspec.json.encode(swaps).decode()
        with self._turn:
            self._db.execute("INSERT INTO intents (kind, body) VALUES ('compaction', ?)", (body,))

    def swapped(self, swaps: list[Swap]) -> None:
        """These exchanges are made and durable: their files count from here on; no compaction is under way."""
        with self._transaction():
            for swap in swaps:
                self._db.executemany("DELETE FROM files WHERE name = ?", [(name,) for name in swap.gone])
                self._db.execute("INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?,?)", _values(swap.file))
            self._db.execute("DELETE FROM intents WHERE kind = 'compaction'")

    def make_anew(self, files: list[FileRow], runs: list[RunRow], frame: int, digest: str, flushed: int) -> None:
        """Replace everything."""
        with self._transaction():
            for table in ("meta", "files", "runs", "intents"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608  (names from the list above)
            self._db.executemany("INSERT INTO files VALUES (?,?,?,?,?,?,?,?,?)", [_values(row) for row in files])
            self._db.executemany("INSERT INTO runs VALUES (?,?,?,?,?,?,?)", [_values(row) for row in runs])
            self._set_meta(frame, digest, flushed)

    def close(self) -> None:
        """Close the database, its write-ahead log folded in."""
        self._db.close()

    def _set_meta(self, frame: int, digest: str, flushed: int) -> None:
        values = [("frame", str(frame)), ("digest", digest), ("flushed", str(flushed))]
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._turn:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite has rolled back by itself where the disk is full
                    self._db.execute("ROLLBACK")
                raise


def _row(values: tuple[Any, ...], kind: type[Row]) -> Row:
    """A row as its type says; SQLite has no checksums, so that a damaged one may come as anything."""
    return msgspec.convert(dict(zip(kind.__struct_fields__, values, strict=True)), kind)


def _values(row: msgspec.Struct) -> tuple[object, ...]:
    return msgspec.structs.astuple(row)

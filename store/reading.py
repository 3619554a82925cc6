"""Reading a data directory without owning it: beside a running service, or straight after a kill.

Takes the journal, the catalog and the log as they are on disk and makes the snapshot of the last commit. Nothing is
locked and nothing is written. The Parquet files are kept open, so that a compaction does not take them away.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import msgspec

from store.catalog import FileRow, Swap
from store.errors import CorruptionError, OncelakeError
from store.holding import Holding
from store.identity import load_identity
from store.journal import read_journal
from store.log import lines_after, parse_notifications
from store.recovery import committed, state_of
from store.rollups import Rollup, map_rollup
from store.snapshot import SealedFile, Snapshot

__all__ = ["catalog_beside", "read_snapshot"]

_TRIES = 20


def read_snapshot(root: Path, holding: Holding) -> Snapshot:
    """The records as of the last commit, in files that `holding` keeps.

    Tried again where a flush, a compaction or a new journal file comes in between.
    """
    if load_identity(root) is None:
        raise OncelakeError(f"{root} is no data directory of oncelake")
    for attempt in range(_TRIES):
        try:
            return _snapshot(root, holding)
        except (FileNotFoundError, CorruptionError, sqlite3.OperationalError):
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.05)
    raise AssertionError


def _snapshot(root: Path, holding: Holding) -> Snapshot:
    # the catalog first: what it says is flushed is committed, and the journal read after it covers that and more
    flushed, rows, rollups = _catalog(root)
    holding.close()
    holding.hold(row.name for row in rows)
    files = tuple(SealedFile(holding.path(row.name), *msgspec.structs.astuple(row)) for row in rows)
    contents = read_journal(root / "internal" / "journal")
    if contents is None:
        return Snapshot(0, 0, (), ())
    state = state_of(contents)
    hot = tuple(parse_notifications(data) for _, data in lines_after(root, committed(state), flushed))
    if sum(table.num_rows for table in hot) != state.seq - flushed:
        raise CorruptionError(f"{root}: the notification log does not hold seqs {flushed + 1} to {state.seq}")
    return Snapshot(state.seq, flushed, files, hot, rollups)


def catalog_beside(root: Path) -> tuple[int, list[FileRow]]:
    """The newest flushed seq and the Parquet files, as the catalog says."""
    for attempt in range(_TRIES):
        try:
            flushed, files, _ = _catalog(root)
        except (FileNotFoundError, sqlite3.OperationalError):
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.05)
        else:
            return flushed, files
    raise AssertionError


def _catalog(root: Path) -> tuple[int, list[FileRow], tuple[Rollup, ...]]:
    path = root / "internal" / "catalog.sqlite"
    if not path.exists():
        return 0, [], ()
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0, isolation_level=None)
    try:
        database.execute("BEGIN")
        row = database.execute("SELECT value FROM meta WHERE key = 'flushed'").fetchone()
        found = database.execute(
            "SELECT name, day, rows, min_seq, max_seq, min_time, max_time, bytes, sum FROM files ORDER BY min_seq, name"
        ).fetchall()
        swaps = database.execute("SELECT body FROM intents WHERE kind = 'compaction'").fetchall()
        runs = database.execute("SELECT name, min_seq, max_seq FROM runs WHERE kind = 'rollups'").fetchall()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "no such table" not in str(error):
            raise
        raise CorruptionError(f"{path}: {error}: start the service once, it makes the catalog anew") from error
    finally:
        database.close()
    files = {name: FileRow(name, *rest) for name, *rest in found}
    for (body,) in swaps:
        for swap in msgspec.json.decode(body, type=list[Swap]):
            if (root / swap.file.name).exists():  # exchanged, and not in the catalog yet
                for name in swap.gone:
                    files.pop(name, None)
                files[swap.file.name] = swap.file
    return (
        int(row[0]) if row else 0,
        list(files.values()),
        tuple(map_rollup(root / name, name, *seqs) for name, *seqs in runs),
    )

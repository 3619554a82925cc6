"""Index, summaries and rollups anew from the Parquet files, in bounded memory.

Records are read some hundred thousand at a time; each time gives a small run on disk, and those are merged, a range of
hashes at a time, into the new one. What stood before is left alone: whoever asked for it exchanges the runs in the
catalog in one transaction, and removes the old ones then.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store import index, rollups
from store.catalog import FileRow, RunRow
from store.errors import MEND, CorruptionError
from store.files import Disk, remove_directory
from store.flush import checksum_of, write_run
from store.fresh import Committed
from store.hashing import Hasher
from store.hot import Hot
from store.kinds import KINDS
from store.log import lines_after, parse_notifications
from store.runs import OlderRunError, Run
from store.schema import STORED
from store.whole import whole

__all__ = ["OLDER", "REMAKE", "check_sums", "hashed", "prove_by_log", "remade", "why_broken"]

logger = logging.getLogger("oncelake.recovery")

REMAKE = "internal/remake"

OLDER = "they are of an older format"
"""Why runs cannot be used behind an upgrade, which is no damage."""

_ROWS = 1 << 18
_CHECKED_BYTES = 128 << 20
"""Of the runs of a kind, the smallest ones, that a start reads to prove them; the scrubber does the others."""

_FAN_IN = 64
"""Small runs that are merged at once: each takes a few pages of memory."""


def remade(
    disk: Disk, root: Path, hasher: Hasher, files: Collection[FileRow], flushed: int, kinds: Collection[str]
) -> list[RunRow]:
    """New runs of these kinds, one each, in place and durable; none where nothing is flushed."""
    remove_directory(disk, root / REMAKE)
    if not flushed:
        return []
    disk.make_directory(root / REMAKE)
    try:
        made = []
        hashes = [kind for kind in ("index", "summaries") if kind in kinds]
        pieces = _pieces(disk, root, hasher, files, hashes) if hashes else {}
        for kind in hashes:
            runs = [KINDS[kind].map(root / row.name, row) for row in _few(disk, root, kind, pieces[kind])]
            made.append(_placed(disk, root, kind, KINDS[kind].merged(runs), flushed))
        if "rollups" in kinds:
            made.append(_placed(disk, root, "rollups", _rollup_pages(root, files), flushed))
        return made
    finally:
        remove_directory(disk, root / REMAKE)


def check_sums(root: Path, files: Collection[FileRow]) -> None:
    """`CorruptionError` where Parquet files are not those that the catalog says: nothing is made from rot."""
    wrong = [row for row in files if checksum_of(root / row.name) != (row.bytes, row.sum)]
    if wrong:
        row = wrong[0]
        raise CorruptionError(
            f"{root / row.name} is damaged ({len(wrong)} Parquet files are); it holds {row.rows} records of seqs "
            f"{row.min_seq} to {row.max_seq}. Stop the service, {MEND}; `oncelake verify` names all of them."
        )


def why_broken(root: Path, kind: str, rows: Collection[RunRow], flushed: int) -> str | None:
    """Why the runs of a kind cannot be used, as far as a start can tell at once; None where they can."""
    budget = _CHECKED_BYTES
    for row in sorted(rows, key=lambda row: row.bytes):
        path = root / row.name
        if not path.exists() or path.stat().st_size != row.bytes:
            return f"{row.name} is missing or of another size"
        try:
            KINDS[kind].map(path, row)
        except OlderRunError:
            return OLDER
        except (OSError, pa.ArrowException, LookupError, ValueError) as error:  # its own schema may be damaged
            return f"{row.name} cannot be read: {error}"
        budget -= row.bytes
        if (budget >= 0 or kind == "rollups") and checksum_of(path) != (row.bytes, row.sum):
            return f"{row.name} is damaged"
    covered = {
        "index": sum(row.rows for row in rows),
        "summaries": max((row.max_seq for row in rows), default=0),
        "rollups": sum(row.max_seq - row.min_seq + 1 for row in rows),
    }
    return None if covered[kind] == flushed else f"they stand for {covered[kind]} of {flushed} records"


def hashed(hasher: Hasher, rows: pa.Table) -> Committed:
    """Stored rows with the hashes that index and summaries keep."""
    id_hi, id_lo = hasher.identify(whole(rows.column("recordId")))
    key_hi, key_lo = hasher.keys(whole(rows.column("destinationId")), whole(rows.column("reference")))
    return Committed(rows, id_hi, id_lo, hasher.fingerprint(rows), key_hi, key_lo)


def prove_by_log(root: Path, hasher: Hasher, segments: list[tuple[str, int]], run: RunRow, flushed: int) -> int:
    """Hold an index that was made from the Parquet against the notification log, as far back as that is kept.

    All eight fields of each record are compared by their fingerprint. Returns the first seq that was proven, or
    `flushed` + 1 where the log has none. `segments` are (path, committed length), in order; their bytes were checked.
    """
    first = int(Path(segments[0][0]).stem) if segments else flushed + 1
    known = KINDS["index"].map(root / run.name, run)
    for begin, data in lines_after(root, segments, first - 1):
        if begin > flushed:
            break
        rows = parse_notifications(data)
        rows = rows.filter(pc.less_equal(rows.column("seq"), flushed)).combine_chunks()
        if rows.num_rows:
            _compare(hashed(hasher, rows), known)
    return min(first, flushed + 1)


def _compare(logged: Committed, known: Run) -> None:
    """Every record of the log is in the index, with the same fields."""
    seqs = logged.rows.column("seq").to_numpy()
    order = np.lexsort((logged.id_lo, logged.id_hi))
    hits = index.find([known], logged.id_hi[order], logged.id_lo[order])
    wanted = seqs[order][hits.needle]
    same = (hits.seq == wanted) & (hits.fp == logged.fingerprint[order][hits.needle])
    lost = np.setdiff1d(seqs, wanted[same])
    if len(lost):
        raise CorruptionError(
            f"the Parquet does not hold the records that the notification log has: {len(lost)} differ, the first is "
            f"seq {lost[0]}. A file under records/ was changed, and its checksum was lost with the catalog: {MEND}"
        )


def _pieces(
    disk: Disk, root: Path, hasher: Hasher, files: Collection[FileRow], kinds: list[str]
) -> dict[str, list[RunRow]]:
    """Small runs on disk, of some hundred thousand records each."""
    made: dict[str, list[RunRow]] = {kind: [] for kind in kinds}
    for number, rows in enumerate(_records(root, files)):
        hot = Hot().added(hashed(hasher, rows)).settled()
        for kind, runs in (("index", hot.index), ("summaries", hot.summaries)):
            if kind in made:
                name = f"{REMAKE}/{kind}.{number}.arrow"
                made[kind].append(write_run(disk, root / name, kind, name, KINDS[kind].merged(runs), (0, 0)))
    return made


def _few(disk: Disk, root: Path, kind: str, rows: list[RunRow]) -> list[RunRow]:
    """Merge runs until there are not many."""
    for level in itertools.count():
        if len(rows) <= _FAN_IN:
            return rows
        merged = []
        for number in range(0, len(rows), _FAN_IN):
            chosen = rows[number : number + _FAN_IN]
            runs = [KINDS[kind].map(root / row.name, row) for row in chosen]
            name = f"{REMAKE}/{kind}.{level}-{number}.arrow"
            merged.append(write_run(disk, root / name, kind, name, KINDS[kind].merged(runs), (0, 0)))
            for row in chosen:
                disk.remove(root / row.name)
        rows = merged
    raise AssertionError


def _records(root: Path, files: Collection[FileRow]) -> Iterator[pa.Table]:
    """The records of all files, some hundred thousand at a time."""
    waiting: list[pa.Table] = []
    rows = 0
    for _, group in _groups(root, files, STORED.names):
        waiting.append(group.cast(STORED))
        rows += group.num_rows
        if rows >= _ROWS:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, rows = [], 0
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()


def _groups(root: Path, files: Collection[FileRow], columns: list[str]) -> Iterator[tuple[FileRow, pa.Table]]:
    """Row group by row group. `CorruptionError` where a file cannot be read."""
    for row in files:
        try:
            with pq.ParquetFile(root / row.name) as parquet:
                for group in range(parquet.num_row_groups):
                    yield row, parquet.read_row_group(group, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise CorruptionError(
                f"{root / row.name} cannot be read ({error}); it holds {row.rows} records of seqs {row.min_seq} to "
                f"{row.max_seq}. Stop the service, {MEND}."
            ) from error


def _rollup_pages(root: Path, files: Collection[FileRow]) -> Iterator[pa.RecordBatch]:
    """The rollup of all records, a day at a time."""
    columns = ["time", "destinationId", "unit", "type", "value"]
    for _, of_day in itertools.groupby(sorted(files, key=lambda row: row.day), key=lambda row: row.day):
        pieces: list[rollups.Rollup] = []
        for row, group in _groups(root, list(of_day), columns):
            pages = list(rollups.pages(rollups.of_records([group])))
            pieces.append(rollups.Rollup(pages, row.name, row.min_seq, row.max_seq))
        yield from rollups.merged(pieces)


def _placed(disk: Disk, root: Path, kind: str, pages: Iterator[Any], flushed: int) -> RunRow:
    """The new run under its name, which no other one has."""
    directory = root / "internal" / kind
    disk.make_directory(directory)
    stem = f"{1:020d}-{flushed:020d}.rebuilt"
    names = itertools.chain([f"{stem}.arrow"], (f"{stem}{number}.arrow" for number in itertools.count(2)))
    target = next(directory / name for name in names if not (directory / name).exists())
    staged = root / REMAKE / f"{kind}.arrow"
    row = write_run(disk, staged, kind, f"internal/{kind}/{target.name}", pages, (1, flushed))
    disk.rename(staged, target)
    disk.sync_directory(directory)
    return row

"""What a start finds on disk, made whole: from the journal, the one truth, to everything that is derived from it.

Only bytes that no frame covers are cut (nobody was ever answered for them), and they go into `internal/quarantine/`,
not away. Committed bytes that are missing or changed stop the start with a message that names them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store import rollups
from store.catalog import Catalog, CatalogDamagedError, FileRow, RunRow
from store.compaction import clear_compaction, recover_swaps
from store.errors import CorruptionError
from store.files import Disk
from store.flush import STAGING, PartitionLocks, clear_staging, move_into_place, write_run
from store.hashing import Hasher
from store.hot import Committed, Hot
from store.journal import Checkpoint, FileEnd, Frame, InputState, JournalContents, RulesFrom, Segment
from store.kinds import KINDS
from store.log import checked, closed_segment, lines_after, parse_notifications
from store.outcomes import MAX_PROBLEMS
from store.parquet import day_directory, describe, flush_of
from store.runs import Run
from store.schema import STORED

__all__ = ["JournalState", "committed", "open_catalog", "quarantine_tails", "recover_hot", "state_of"]

logger = logging.getLogger("oncelake.recovery")

QUARANTINE = "internal/quarantine"
LOGS = ("outbox/notifications", "outbox/alerts", "rejected")


@dataclass
class JournalState:
    """What the frames say, folded: where every file ends, the rules by seq, the input files under way."""

    seq: int = 0
    processed_at: int = 0
    segments: dict[str, list[Segment]] = field(default_factory=lambda: {log: [] for log in LOGS})
    ends: dict[str, FileEnd] = field(default_factory=dict)
    rules: list[RulesFrom] = field(default_factory=list)
    inputs: dict[str, InputState] = field(default_factory=dict)

    def checkpoint(self) -> Checkpoint:
        """All of it, for the first frame of a journal file."""
        segments = [segment for log in LOGS for segment in self.segments[log]]
        return Checkpoint(segments, self.rules, list(self.inputs.values()), list(self.ends.values()))

    def apply(self, frame: Frame) -> None:
        """One more frame."""
        if frame.checkpoint is not None:
            self._restore(frame.checkpoint)
        for end in frame.files:
            log = str(Path(end.path).parent)
            before = self.ends.get(log)
            if before is not None and before.path != end.path:
                self.segments[log].append(closed_segment(before, frame.first_seq - 1))
            self.ends[log] = end
        for path in frame.closed:
            self.inputs.pop(path, None)
        for state in frame.inputs:
            self.inputs[state.path] = added(self.inputs.get(state.path), state)
        if frame.rules is not None:
            self.rules.append(RulesFrom(frame.first_seq, frame.rules))
        self.seq, self.processed_at = frame.last_seq, frame.processed_at

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.segments = {log: [] for log in LOGS}
        for segment in checkpoint.segments:
            self.segments[str(Path(segment.path).parent)].append(segment)
        self.ends = {str(Path(end.path).parent): end for end in checkpoint.files}
        self.rules = list(checkpoint.rules)
        self.inputs = {state.path: state for state in checkpoint.inputs}


def added(before: InputState | None, step: InputState) -> InputState:
    """An input's state after a commit whose frame holds `step`: counts are totals there, problems only the new ones."""
    if before is None or before.sha256 != step.sha256 or before.started_at_us != step.started_at_us:
        return step
    problems = (before.answer.problems + step.answer.problems)[:MAX_PROBLEMS]
    truncated = step.answer.conflict + step.answer.rejected > len(problems)
    answer = msgspec.structs.replace(step.answer, problems=problems, problems_truncated=truncated)
    return msgspec.structs.replace(step, answer=answer)


def state_of(contents: JournalContents) -> JournalState:
    """The frames of a journal file, folded."""
    state = JournalState()
    for frame in contents.frames:
        state.apply(frame)
    return state


def committed(state: JournalState) -> list[tuple[str, int]]:
    """The notification segments in order: path relative to the data directory, committed length."""
    log = "outbox/notifications"
    segments = [(segment.path, segment.bytes) for segment in state.segments[log]]
    return segments + ([(state.ends[log].path, state.ends[log].end)] if log in state.ends else [])


def quarantine_tails(disk: Disk, root: Path, state: JournalState, journal_tail: bytes) -> None:
    """Copy what no frame covers into quarantine and cut it off the logs."""
    if journal_tail:
        _quarantine(disk, root, f"journal-{state.seq}.tail", journal_tail)
    for log in LOGS:
        known = {segment.path: segment.bytes for segment in state.segments[log]}
        if log in state.ends:
            known[state.ends[log].path] = state.ends[log].end
        for path in sorted((root / log).glob("*.jsonl")):
            end = known.get(str(path.relative_to(root)), 0)
            size = path.stat().st_size
            if size > end:
                with path.open("rb") as file:
                    file.seek(end)
                    _quarantine(disk, root, f"{log.replace('/', '-')}-{path.stem}-{end}-{size}.tail", file.read())
            if end == 0:
                disk.remove(path)
            elif size > end:
                appender = disk.appender(path, end)
                appender.cut(end)
                appender.close()


def _quarantine(disk: Disk, root: Path, name: str, data: bytes) -> None:
    logger.warning("%d bytes that no commit covers go to %s/%s", len(data), QUARANTINE, name)
    disk.make_directory(root / QUARANTINE)
    disk.write(root / QUARANTINE / name, data)
    disk.sync_directory(root / QUARANTINE)


@dataclass(frozen=True)
class CatalogState:
    """The open catalog and what it holds."""

    catalog: Catalog
    flushed: int
    files: list[FileRow]
    runs: list[RunRow]


def open_catalog(disk: Disk, root: Path, hasher: Hasher, contents: JournalContents) -> CatalogState:
    """Open the catalog, roll a half-done flush forward, and make it anew where it is lost or does not fit."""
    path = root / "internal" / "catalog.sqlite"
    state: CatalogState | None = None
    fresh = not path.exists()
    catalog: Catalog | None = None
    try:
        catalog = Catalog(path, fsync=disk.fsync)
        state = _fitting(disk, root, catalog, contents)
    except CatalogDamagedError as error:
        if catalog is not None:
            catalog.close()
        if not (fresh and contents.frames[-1].last_seq == 0):
            logger.error("the catalog is made anew from the journal and the Parquet files: %s", error)
    clear_compaction(disk, root)
    if state is not None:
        clear_staging(disk, root)
        return _with_rollups(disk, root, state)
    for suffix in ("", "-wal", "-shm"):
        if (damaged := path.with_name(path.name + suffix)).exists():
            disk.remove(damaged)
    return _made_anew(disk, root, hasher, Catalog(path, fsync=disk.fsync), contents)


def _fitting(disk: Disk, root: Path, catalog: Catalog, contents: JournalContents) -> CatalogState:
    """What the catalog holds if it fits the journal and the files; `CatalogDamagedError` if not."""
    recover_swaps(disk, root, catalog)
    meta, files, runs, intents = catalog.read()
    if meta is None:
        raise CatalogDamagedError("it is empty")
    last = contents.frames[-1]
    if meta.frame > last.number or meta.flushed > last.last_seq:
        raise CorruptionError(
            f"the journal ends with commit {last.number} (seq {last.last_seq}), but the catalog knows commit "
            f"{meta.frame} (seq {meta.flushed}): the end of the journal was lost. Restore internal/journal from a "
            "backup; the records are still in records/ and outbox/."
        )
    at = meta.frame - contents.frames[0].number
    if 0 <= at < len(contents.digests) and contents.digests[at].hex() != meta.digest:
        raise CorruptionError(
            f"the journal and the catalog of {root} are of different histories: commit {meta.frame} is not the "
            "one that the catalog names. Restore internal/ as a whole from one backup."
        )
    for intent in intents:
        if intent.last_seq > last.last_seq:
            raise CorruptionError(
                f"a flush up to seq {intent.last_seq} was under way, but the journal ends at seq {last.last_seq}: its "
                "end was lost. Restore internal/journal from a backup; the records are in internal/staging and outbox/."
            )
        move_into_place(disk, root, intent, PartitionLocks())
        catalog.seal(intent, last.number, contents.digest.hex())
    if intents:
        meta, files, runs, intents = catalog.read()
        assert meta is not None
    _check_files(root, files)
    for run in runs:
        if not (root / run.name).exists() or (root / run.name).stat().st_size != run.bytes:
            raise CatalogDamagedError(f"{run.name} is missing or of another size")
    for kind in KINDS:
        for orphan in set((root / "internal" / kind).glob("*.arrow")) - {root / run.name for run in runs}:
            disk.remove(orphan)
    return CatalogState(catalog, meta.flushed, files, runs)


def _check_files(root: Path, files: list[FileRow]) -> None:
    """`CorruptionError` where a Parquet file is gone, `CatalogDamagedError` where the catalog is behind the files.

    A catalog that lost its newest transaction may name the files that a compaction has merged since.
    """
    on_disk = {str(path.relative_to(root)) for path in root.glob("records/**/*.parquet")}
    missing = [row for row in files if row.name not in on_disk]
    extra = sorted(on_disk - {row.name for row in files})
    if missing and sum(row.rows for row in missing) != sum(_rows_in(root / name) for name in extra):
        raise CorruptionError(
            f"{root / missing[0].name} is missing ({len(missing)} Parquet files are): restore it from a backup"
        )
    if extra:
        raise CatalogDamagedError(f"{extra[0]} is not in it ({len(extra)} such files)")


def _rows_in(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise CorruptionError(f"{path} is damaged ({error}): restore it from a backup") from error


def _made_anew(disk: Disk, root: Path, hasher: Hasher, catalog: Catalog, contents: JournalContents) -> CatalogState:
    """The catalog from the footers of the Parquet files, the index and the summaries from their rows.

    A flush that was cut in the middle is completed from the staging directory.
    """
    flushes: dict[tuple[int, int], list[FileRow]] = {}
    staged: dict[tuple[int, int], list[tuple[Path, int]]] = {}
    for path in sorted((root / STAGING).glob("*.parquet")):
        with contextlib.suppress(CorruptionError):  # cut off while it was written: nothing of its flush has a name
            staged.setdefault(flush_of(path), []).append((path, _day_of(path)))
    for path in sorted(root.glob("records/**/*.parquet")):
        name = str(path.relative_to(root))
        flushes.setdefault(flush_of(path), []).append(describe(path, name, _day_of(path)))
    files: list[FileRow] = []
    flushed = 0
    for (first, last), rows in _joined(flushes):
        missing = last - first + 1 - sum(row.rows for row in rows)
        if missing:
            rows.extend(_completed(disk, root, (first, last), rows, staged.get((first, last), [])))
        if first != flushed + 1 or sum(row.rows for row in rows) != last - first + 1:
            raise CorruptionError(
                f"the Parquet files hold seqs 1 to {flushed} and {first} to {last}: between them, or among them, "
                "records are missing. Restore records/ from a backup."
            )
        flushed = last
        files.extend(rows)
    if flushed > contents.frames[-1].last_seq:
        raise CorruptionError(
            f"the Parquet files reach seq {flushed}, the journal only {contents.frames[-1].last_seq}: the end of the "
            "journal was lost. Restore internal/journal from a backup."
        )
    clear_staging(disk, root)
    runs = rebuild_runs(disk, root, hasher, files, flushed)
    catalog.make_anew(files, runs, contents.frames[-1].number, contents.digest.hex(), flushed)
    return CatalogState(catalog, flushed, files, runs)


def _joined(flushes: dict[tuple[int, int], list[FileRow]]) -> list[tuple[tuple[int, int], list[FileRow]]]:
    """Flushes, and spans of flushes whose files were compacted together, that hold all seqs of their range."""
    joined: list[tuple[tuple[int, int], list[FileRow]]] = []
    for (first, last), rows in sorted(flushes.items()):
        if joined and first <= joined[-1][0][1]:
            (begin, end), before = joined.pop()
            joined.append(((begin, max(end, last)), [*before, *rows]))
        else:
            joined.append(((first, last), rows))
    return joined


def _completed(
    disk: Disk, root: Path, seqs: tuple[int, int], rows: list[FileRow], staged: list[tuple[Path, int]]
) -> list[FileRow]:
    """Move those partitions of a half-renamed flush into place that are still staged."""
    moved = []
    have = {row.day for row in rows}
    for path, day in staged:
        if day not in have:
            name = f"{day_directory(day)}/{seqs[0]:020d}-{seqs[1]:020d}.parquet"
            disk.make_directory((root / name).parent)
            disk.rename(path, root / name)
            disk.sync_directory((root / name).parent)
            moved.append(describe(root / name, name, day))
    return moved


def rebuild_runs(disk: Disk, root: Path, hasher: Hasher, files: list[FileRow], flushed: int) -> list[RunRow]:
    """Index and summaries anew from the Parquet files, a file at a time."""
    disk.make_directory(root / STAGING)
    for kind in KINDS:
        disk.make_directory(root / "internal" / kind)
        for old in (root / "internal" / kind).glob("*.arrow"):
            disk.remove(old)
    if not flushed:
        return []
    pieces: dict[str, list[Run]] = {"index": [], "summaries": []}
    for row in files:
        rows = pq.read_table(root / row.name, columns=STORED.names, partitioning=None).cast(STORED)
        hot = Hot().added(hashed(hasher, rows.combine_chunks())).settled()
        pieces["index"].extend(hot.index)
        pieces["summaries"].extend(hot.summaries)
    made = [_rebuilt(disk, root, kind, KINDS[kind].merged(runs), flushed) for kind, runs in pieces.items()]
    made.append(_rebuilt(disk, root, "rollups", _rollup_pages(root, files), flushed))
    return made


def _rebuilt(disk: Disk, root: Path, kind: str, pages: Iterable[pa.RecordBatch], flushed: int) -> RunRow:
    name = f"internal/{kind}/{1:020d}-{flushed:020d}.rebuilt.arrow"
    staged = root / STAGING / Path(name).name
    row = write_run(disk, staged, kind, name, pages, (1, flushed))
    disk.rename(staged, root / name)
    disk.sync_directory((root / name).parent)
    return row


def _rollup_pages(root: Path, files: list[FileRow]) -> Iterator[pa.RecordBatch]:
    """The rollup of all records, a day at a time."""
    columns = ["time", "destinationId", "unit", "type", "value"]
    for _, of_day in itertools.groupby(sorted(files, key=lambda row: row.day), key=lambda row: row.day):
        pieces = []
        for row in of_day:
            records = pq.read_table(root / row.name, columns=columns, partitioning=None)
            rows = rollups.of_records([records])
            pieces.append(rollups.Rollup(list(rollups.pages(rows)), row.name, row.min_seq, row.max_seq))
        yield from rollups.merged(pieces)


def _with_rollups(disk: Disk, root: Path, state: CatalogState) -> CatalogState:
    """The catalog with rollups of all that is flushed: a store that was made before there were any has none."""
    kept = [row for row in state.runs if row.kind != "rollups"]
    if sum(row.max_seq - row.min_seq + 1 for row in state.runs if row.kind == "rollups") == state.flushed:
        return state
    logger.warning("the rollups do not stand for all records: they are made anew from the Parquet files")
    for old in (root / "internal" / "rollups").glob("*.arrow"):
        disk.remove(old)
    disk.make_directory(root / STAGING)
    row = _rebuilt(disk, root, "rollups", _rollup_pages(root, state.files), state.flushed)
    state.catalog.exchange_runs([row.name for row in state.runs if row.kind == "rollups"], row)
    return CatalogState(state.catalog, state.flushed, state.files, [*kept, row])


def hashed(hasher: Hasher, rows: pa.Table) -> Committed:
    """Stored rows with the hashes that index and summaries keep."""
    id_hi, id_lo = hasher.identify(rows.column("recordId").combine_chunks())
    key_hi, key_lo = hasher.keys(
        rows.column("destinationId").combine_chunks(), rows.column("reference").combine_chunks()
    )
    return Committed(rows, id_hi, id_lo, hasher.fingerprint(rows), key_hi, key_lo)


def recover_hot(root: Path, hasher: Hasher, state: JournalState, flushed: int) -> Hot:
    """The committed records that are not in the Parquet yet, from the notification log."""
    for segment in state.segments["outbox/notifications"]:
        if segment.last_seq is not None and segment.last_seq > flushed:
            checked(root, segment.path, segment.bytes, segment.sum)
    hot = Hot()
    expected = flushed + 1
    for first, data in lines_after(root, committed(state), flushed):
        rows = parse_notifications(data)
        seqs = rows.column("seq").to_numpy()
        if first != expected or not np.array_equal(seqs, np.arange(first, first + len(seqs))):
            raise CorruptionError(f"outbox/notifications: seq {expected} is missing or out of order near {first}")
        hot = hot.added(hashed(hasher, rows)).settled()
        expected += len(seqs)
    if expected != state.seq + 1:
        raise CorruptionError(
            f"outbox/notifications ends at seq {expected - 1}, seq {state.seq} is committed and {flushed} is in the "
            "Parquet: restore the segments from a backup"
        )
    return hot


def _day_of(path: Path) -> int:
    times = pc.min_max(pq.read_table(path, columns=["time"], partitioning=None).column("time").cast(pa.int64()))
    return int(times["min"].as_py() // 86_400_000_000)

"""What a start finds on disk, made whole: from the journal, the one truth, to everything that is derived from it.

Only bytes that no frame covers are cut (nobody was ever answered for them), and they go into `internal/quarantine/`,
not away. Committed bytes that are missing or changed stop the start with a message that names them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from store.catalog import Catalog, CatalogDamagedError, FileRow, RunRow
from store.compaction import recover_swaps
from store.errors import MEND, CorruptionError
from store.files import Disk, remove_directory
from store.flush import STAGING, PartitionLocks, clear_staging, move_into_place
from store.hashing import Hasher
from store.journal import Checkpoint, FileEnd, Frame, InputState, JournalContents, RulesFrom, Segment, added
from store.kinds import KINDS
from store.log import checked, closed_segment, number_of
from store.parquet import day_directory, day_of, describe, flush_of
from store.remake import OLDER, REMAKE, check_sums, prove_by_log, remade, why_broken
from store.rot import QUARANTINE

__all__ = [
    "CatalogState",
    "JournalState",
    "committed",
    "fitting",
    "open_catalog",
    "quarantine_tails",
    "state_of",
]

logger = logging.getLogger("oncelake.recovery")

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
    kept: dict[str, int] = field(default_factory=dict)
    """By log: segments below this number were removed by its retention."""

    def kept_from(self, feed: str) -> int:
        """The lines of a feed below this seq are not in its segments any more; 1 where all are."""
        return self.kept.get(f"outbox/{feed}", 1)

    def checkpoint(self) -> Checkpoint:
        """All of it, for the first frame of a journal file."""
        segments = [segment for log in LOGS for segment in self.segments[log]]
        return Checkpoint(segments, self.rules, list(self.inputs.values()), list(self.ends.values()), self.kept)

    def apply(self, frame: Frame) -> None:
        """One more frame."""
        if frame.checkpoint is not None:
            self._restore(frame.checkpoint)
        for end in frame.files:
            log = end.path.rpartition("/")[0]
            before = self.ends.get(log)
            if before is not None and before.path != end.path:
                self.segments[log].append(closed_segment(before, frame.first_seq - 1))
            self.ends[log] = end
        for path in frame.closed:
            self.inputs.pop(path, None)
        for state in frame.inputs:
            self.inputs[state.path] = added(self.inputs.get(state.path), state)
        for log, first in frame.kept.items():
            self.kept[log] = first
            self.segments[log] = [segment for segment in self.segments[log] if number_of(segment.path) >= first]
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
        self.kept = dict(checkpoint.kept)


def state_of(contents: JournalContents) -> JournalState:
    """The frames of a journal file, folded."""
    state = JournalState()
    for frame in contents.frames:
        state.apply(frame)
    return state


def committed(state: JournalState, log: str = "outbox/notifications") -> list[tuple[str, int]]:
    """The segments of a log in order: path relative to the data directory, committed length."""
    segments = [(segment.path, segment.bytes) for segment in state.segments[log]]
    end = state.ends.get(log)
    return segments if end is None else [*segments, (end.path, end.end)]


def quarantine_tails(disk: Disk, root: Path, state: JournalState, journal_tail: bytes) -> None:
    """Copy what no frame covers into quarantine and cut it off the logs."""
    if journal_tail:
        _quarantine(disk, root, f"journal-{state.seq}.tail", journal_tail)
    remove_below(disk, root, state.kept)
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
                appender.sync()  # what is cut must not come back between this segment and the next
                appender.close()


def remove_below(disk: Disk, root: Path, kept: Mapping[str, int]) -> list[str]:
    """Remove the segments of logs below their floors; which these were, relative to `root`."""
    gone = []
    for log, floor in kept.items():
        for path in sorted((root / log).glob("*.jsonl")):
            if path.stem.isdecimal() and number_of(path.name) < floor:
                disk.remove(path)
                gone.append(str(path.relative_to(root)))
    return gone


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
    is_new: bool = False
    """Whether all of it was made anew just now."""


def open_catalog(disk: Disk, root: Path, hasher: Hasher, contents: JournalContents) -> CatalogState:
    """Open the catalog, roll a half-done flush forward, and make it anew where it is lost or does not fit."""
    path = root / "internal" / "catalog.sqlite"
    state: CatalogState | None = None
    fresh = not path.exists()
    catalog: Catalog | None = None
    try:
        catalog = Catalog(path, fsync=disk.fsync)
        found = fitting(disk, root, catalog, contents)
        _check_files(root, found.files)
        state = found
    except CatalogDamagedError as error:
        if catalog is not None:
            catalog.close()
        if not (fresh and contents.frames[-1].last_seq == 0):
            logger.error("the catalog is made anew from the journal and the Parquet files: %s", error)
    remove_directory(disk, root / REMAKE)
    if state is not None:
        clear_staging(disk, root)
        return _with_whole_runs(disk, root, hasher, state)
    for suffix in ("", "-wal", "-shm"):
        if (damaged := path.with_name(path.name + suffix)).exists():
            disk.remove(damaged)
    return _made_anew(disk, root, hasher, Catalog(path, fsync=disk.fsync), contents)


def fitting(disk: Disk, root: Path, catalog: Catalog, contents: JournalContents, *, whole: bool = True) -> CatalogState:
    """What the catalog holds if it fits the journal, with what was under way; `CatalogDamagedError` if not.

    A flush under way must have all of its files, unless it need not be `whole`: what it lacks is missing then.
    """
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
        there = [move for move in intent.moves if (root / move.source).exists() or (root / move.target).exists()]
        move_into_place(disk, root, intent if whole else msgspec.structs.replace(intent, moves=there), PartitionLocks())
        catalog.seal(intent, last.number, contents.digest.hex())
    if intents:
        meta, files, runs, intents = catalog.read()
        assert meta is not None
    return CatalogState(catalog, meta.flushed, files, runs)


def _check_files(root: Path, files: list[FileRow]) -> None:
    """`CorruptionError` where a Parquet file is gone, `CatalogDamagedError` where the catalog is behind the files.

    A catalog that lost its newest transaction may name the files that a compaction has merged since.
    """
    on_disk = {str(path.relative_to(root)) for path in root.glob("records/**/*.parquet")}
    missing = [row for row in files if row.name not in on_disk]
    extra = sorted(on_disk - {row.name for row in files})
    if missing and sum(row.rows for row in missing) != sum(_rows_in(root / name) for name in extra):
        raise CorruptionError(f"{root / missing[0].name} is missing ({len(missing)} Parquet files are): {MEND}")
    for name in extra:
        flush_of(root / name)  # a file of somebody else is refused before anything is given up for it
    if extra:
        raise CatalogDamagedError(f"{extra[0]} is not in it ({len(extra)} such files)")


def _rows_in(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise CorruptionError(f"{path} is damaged ({error}): {MEND}") from error


def _made_anew(disk: Disk, root: Path, hasher: Hasher, catalog: Catalog, contents: JournalContents) -> CatalogState:
    """The catalog from the footers of the Parquet files, the index and the summaries from their rows.

    A flush that was cut in the middle is completed from the staging directory.
    """
    flushes: dict[tuple[int, int], list[FileRow]] = {}
    staged: dict[tuple[int, int], list[tuple[Path, int]]] = {}
    for path in sorted((root / STAGING).glob("*.parquet")):
        with contextlib.suppress(CorruptionError):  # cut off while it was written: nothing of its flush has a name
            staged.setdefault(flush_of(path), []).append((path, day_of(path)))
    for path in sorted(root.glob("records/**/*.parquet")):
        name = str(path.relative_to(root))
        flushes.setdefault(flush_of(path), []).append(describe(path, name, day_of(path)))
    files: list[FileRow] = []
    flushed = 0
    for (first, last), rows in _joined(flushes):
        missing = last - first + 1 - sum(row.rows for row in rows)
        if missing:
            rows.extend(_completed(disk, root, (first, last), rows, staged.get((first, last), [])))
        if first != flushed + 1 or sum(row.rows for row in rows) != last - first + 1:
            raise CorruptionError(
                f"the Parquet files hold seqs 1 to {flushed} and {first} to {last}: between them, or among them, "
                f"records are missing: {MEND}"
            )
        flushed = last
        files.extend(rows)
    if flushed > contents.frames[-1].last_seq:
        raise CorruptionError(
            f"the Parquet files reach seq {flushed}, the journal only {contents.frames[-1].last_seq}: the end of the "
            "journal was lost. Restore internal/journal from a backup."
        )
    clear_staging(disk, root)
    runs = remade(disk, root, hasher, files, flushed, KINDS)
    if flushed:
        _prove(root, hasher, contents, runs[0], flushed)
    catalog.make_anew(files, runs, contents.frames[-1].number, contents.digest.hex(), flushed)
    return CatalogState(catalog, flushed, files, runs, is_new=True)


def _prove(root: Path, hasher: Hasher, contents: JournalContents, index: RunRow, flushed: int) -> None:
    """The checksums of the Parquet files were lost with the catalog: the log tells whether they are what they were."""
    state = state_of(contents)
    log = "outbox/notifications"
    for segment in state.segments[log]:
        checked(root, segment.path, segment.bytes, segment.sum)
    if log in state.ends:
        checked(root, state.ends[log].path, state.ends[log].end, state.ends[log].sum)
    first = prove_by_log(root, hasher, committed(state), index, flushed)
    if first > 1:
        logger.warning(
            "the Parquet files have new checksums, because the old ones were lost with the catalog; seqs %d to %d were "
            "compared with the notification log, seqs 1 to %d are not in it any more and are taken as they are",
            first, flushed, min(first - 1, flushed),
        )  # fmt: skip


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


def _with_whole_runs(disk: Disk, root: Path, hasher: Hasher, state: CatalogState) -> CatalogState:
    """The catalog with runs that are there and stand for all that is flushed; kinds that do not are made anew."""
    broken: list[str] = []
    for kind in KINDS:
        why = why_broken(root, kind, [row for row in state.runs if row.kind == kind], state.flushed)
        if why is not None:
            level = logging.WARNING if why == OLDER else logging.ERROR
            logger.log(level, "the runs of the %s are made anew from the Parquet files: %s", kind, why)
            broken.append(kind)
    if broken:
        check_sums(root, state.files)
        made = remade(disk, root, hasher, state.files, state.flushed, broken)
        state.catalog.exchange_kinds(broken, made)
        kept = [row for row in state.runs if row.kind not in broken]
        state = CatalogState(state.catalog, state.flushed, state.files, [*kept, *made])
    return state

"""The store: one data directory, owned by one process, with its commit, its snapshots and its flushes.

The committer, or its writer, calls `commit`, the flusher `flush_once`; beside them runs are merged (`store.tiers`) and
partitions compacted. Readers take snapshots and never wait for any of them. What changes together is one immutable
`View`, exchanged in one step.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from store.catalog import Catalog, FileRow, Intent
from store.compaction import Compaction, CompactionSettings
from store.errors import CorruptionError, DiskFullError, OncelakeError, StoppingError
from store.files import Disk, Lock, is_disk_full
from store.flush import PartitionLocks, clear_staging, move_into_place, stage
from store.fresh import Committed, CommittedRows, runs_beside
from store.hashing import Hasher
from store.head import Commit, Head
from store.hot import Hot
from store.identity import Identity, load_identity
from store.journal import Checkpoint, Frame, Journal, read_journal
from store.kinds import KINDS, opened
from store.links import Links
from store.log import FEEDS, Log, check_committed
from store.lookup import rows_at
from store.recovery import LOGS, open_catalog, quarantine_tails, state_of
from store.rot import known_damage
from store.snapshot import SealedFile, Snapshot
from store.tiers import Tiers
from store.unflushed import read_unflushed
from store.upgrade import upgraded
from store.view import View

__all__ = ["Store", "StoreSettings"]

logger = logging.getLogger("oncelake.store")

_JOURNAL_BYTES = 1 << 20
"""A journal file is folded into a checkpoint beyond this."""

_SEGMENTS_OF_RETENTION = 8
"""A segment covers an eighth of its retention at most, so that lines are kept little longer than asked."""


@dataclass(frozen=True)
class StoreSettings:
    """How a store is kept. `retention_us` says by log how long its lines are kept; for ever where it says nothing."""

    root: Path
    fsync: bool = True
    segment_bytes: int = 256 << 20
    retention_us: Mapping[str, int] = field(default_factory=dict)
    compaction: CompactionSettings = field(default_factory=CompactionSettings)


class Store:
    """An open data directory. `Store(settings)` recovers what a crash left; see `store.recovery`."""

    def __init__(self, settings: StoreSettings, *, disk: Disk | None = None) -> None:
        self.settings = settings
        self.root = settings.root
        self.disk = disk or Disk(fsync=settings.fsync)
        self.disk.make_directory(self.root)
        self._lock = Lock(self.root / "lock")
        self._exchange = threading.Lock()
        self._room = threading.Condition(self._exchange)
        self.failure: BaseException | None = None
        self._committed_written = -1
        self._folded_bytes = 0
        self._intent: Intent | None = None
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="runs")
        try:
            identity = load_identity(self.root, self.disk)
            assert identity is not None
            self.identity: Identity = upgraded(self.disk, self.root, identity)
            self.hasher = Hasher(bytes.fromhex(identity.seed), identity.hash_bits)
            self._recover()
        except BaseException:
            self._lock.release()
            raise

    def _recover(self) -> None:
        directory = self.root / "internal" / "journal"
        for name in (*LOGS, "internal/journal", *(f"internal/{kind}" for kind in KINDS), "records"):
            self.disk.make_directory(self.root / name)
        contents = read_journal(directory)
        if contents is None:
            if any((self.root / "outbox").glob("*/*.jsonl")) or any(self.root.glob("records/**/*.parquet")):
                raise CorruptionError(f"{directory} is empty, and {self.root} holds records: restore it from a backup")
            contents = Journal.create(self.disk, directory, Frame(0, 1, 0, 0, checkpoint=Checkpoint()))
        self.state = state_of(contents)
        check_committed(self.root, self.state.seq)
        catalog = open_catalog(self.disk, self.root, self.hasher, contents)
        quarantine_tails(self.disk, self.root, self.state, contents.tail)
        self._logs: dict[str, Log] = {}
        for name in LOGS:
            keep = self.settings.retention_us.get(name)
            age = None if keep is None else keep // _SEGMENTS_OF_RETENTION
            self._logs[name] = Log(self.disk, self.root, name, self.settings.segment_bytes, age)
            self._logs[name].restore(self.state.ends.get(name))
        self._catalog: Catalog = catalog.catalog
        self._journal = Journal(self.disk, directory, contents)
        self._links = Links(self.disk, self.root)
        self._links.restore([row.name for row in catalog.files])
        runs: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        for row in catalog.runs:
            runs[row.kind].append(KINDS[row.kind].map(self.root / row.name, row))
        self._view = View(
            seq=self.state.seq,
            flushed=catalog.flushed,
            files=tuple(self._sealed(row) for row in catalog.files),
            frozen=Hot(),
            active=read_unflushed(self.root, self.hasher, self.state, catalog.flushed),
            **{kind: tuple(found) for kind, found in runs.items()},
        )
        for run in (*runs["index"], *runs["summaries"]):
            run.read_here_and_there()  # the page cache may be empty, and a device may read megabytes ahead
        self.tiers = Tiers(self.disk, self.root, self._catalog, catalog.runs, self)
        self._locks = PartitionLocks()
        self.compaction = Compaction(
            self.disk,
            self.root,
            self._catalog,
            self._links,
            self._locks,
            self.settings.compaction,
            self,
        )
        self.write_committed()

    # -- reading

    @property
    def seq(self) -> int:
        """The newest committed seq."""
        return self._view.seq

    @property
    def flushed(self) -> int:
        """The newest seq that is in the Parquet, and all before it."""
        return self._view.flushed

    @property
    def runs(self) -> dict[str, int]:
        """Runs on disk by kind."""
        return {kind: len({run.name for run in getattr(self._view, kind)}) for kind in KINDS}

    @property
    def hot_rows(self) -> int:
        """Committed records that are not in the Parquet yet."""
        return self._view.hot_rows

    @property
    def hot_bytes(self) -> int:
        """What they take in memory."""
        return self._view.hot_bytes

    def snapshot(self) -> Snapshot:
        """What a read sees, in one step."""
        return self.settle().snapshot()

    def settle(self, small_rows: int = 1) -> View:
        """Make the runs of what was committed last; the view with them.

        A commit leaves that undone: no client need wait. Small ones stay so until so many of their records wait.
        """
        view = self._view
        if not view.active.fresh and view.active.small_rows < small_rows:
            return view
        settled = view.settled()
        with self._exchange:
            if self._view.active is view.active:
                self._view = replace(self._view, active=settled.active)
        return settled

    def find(self, record_id: str) -> pa.Table | None:
        """The stored record with this recordId (one row, schema `STORED`), or None."""
        view = self.settle()
        hits = view.find_ids(*self.hasher.identify(pa.array([record_id], pa.string())))
        if not len(hits.seq):
            return None
        rows = rows_at(view.snapshot(), hits.day, hits.seq)
        rows = rows.filter(pc.equal(rows.column("recordId"), record_id))
        return rows if rows.num_rows else None

    @property
    def head(self) -> Head:
        """What the next commit is planned on, while none is under way."""
        state = self.state
        rules = state.rules[-1].rules if state.rules else None
        return Head(self._journal.number + 1, self.seq, state.processed_at, rules, state.inputs, self.settle)

    # -- committing (one thread at a time)

    def commit(self, commit: Commit) -> None:
        """Make one commit durable and visible: lines, then the journal frame, then memory.

        `DiskFullError`: nothing of it happened, and it may be tried again. `StoppingError`: its outcome is unknown
        until the next start, and no further commit is taken.
        """
        if self.failure is not None:
            raise StoppingError(f"the store stopped after a failed write: {self.failure}")
        rows = commit.committed.count if commit.committed else 0
        first = self._view.seq + 1
        ends = []
        touched: list[Log] = []
        try:
            for name, data, key in (
                ("outbox/notifications", commit.notifications, first),
                ("outbox/alerts", commit.alerts, commit.first_alert_seq),
                ("rejected", commit.dead_letters, self._journal.number + 1),
            ):
                if len(data):
                    touched.append(self._logs[name])
                    ends.append(self._logs[name].append(data, key, commit.processed_at_us))
        except BaseException as error:
            raise self._undone(touched, error) from error
        frame = Frame(
            number=self._journal.number + 1,
            first_seq=first,
            last_seq=first + rows - 1,
            processed_at=commit.processed_at_us,
            files=ends,
            inputs=list(commit.inputs),
            closed=list(commit.closed),
            rules=commit.rules,
            kept=dict(commit.kept),
        )
        runs = runs_beside(self._beside, commit.committed)
        try:
            for log in touched:
                log.sync()
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._journal.write(frame)
        except BaseException as error:
            raise self._undone(touched, error) from error
        try:
            self._journal.sync()
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._apply(frame, commit.committed, touched)
            runs.result()
            if self._journal.length > max(_JOURNAL_BYTES, 2 * self._folded_bytes):
                self._fold_journal()
        except BaseException as error:  # it is durable: whoever tried it again would commit it twice
            raise self._failed(error) from error

    def _apply(self, frame: Frame, committed: Committed | CommittedRows | None, touched: list[Log]) -> None:
        """What is durable becomes visible."""
        for log in touched:
            log.done()
        self.state.apply(frame)
        with self._exchange:
            view = self._view
            active = view.active.added(committed) if committed else view.active
            self._view = replace(view, seq=frame.last_seq, active=active)

    def _fold_journal(self) -> None:
        """Begin a new journal file with everything that is still needed. Without room for it the old one goes on."""
        frame = Frame(
            self._journal.number + 1,
            self.state.seq + 1,
            self.state.seq,
            self.state.processed_at,
            checkpoint=self.state.checkpoint(),
        )
        if self._journal.rotate(frame):
            self._folded_bytes = self._journal.length

    def _undone(self, touched: list[Log], error: BaseException) -> BaseException:
        """Take back lines that were written and not yet committed; the error to raise."""
        try:
            for log in touched:
                log.undo()
        except OSError as second:
            return self._failed(second)
        if not isinstance(error, OSError):
            return error
        if is_disk_full(error):
            return DiskFullError(f"no room on the device of {self.root}: nothing was stored, make room and try again")
        return self._failed(error)

    def _failed(self, error: BaseException) -> OncelakeError:
        logger.critical("a write of the store failed, it must be started again: %s", error)
        self.failure = error
        return StoppingError(f"a write to {self.root} failed ({error}): the outcome is known after a restart")

    def write_committed(self) -> None:
        """Let `committed.json` of both feeds follow the commits; called at least once a second."""
        seq = self._view.seq
        if seq == self._committed_written:
            return
        for feed in FEEDS:
            self.disk.replace(self.root / "outbox" / feed / "committed.json", b'{"seq": %d}\n' % seq)
        self._committed_written = seq

    # -- flushing (one thread)

    def flush_once(self, is_waited_for: Callable[[], bool] = lambda: False) -> int:
        """Put everything that is committed now into Parquet. Returns the number of records.

        While `is_waited_for` says that others need the cores, it keeps to one.
        Where it fails for want of room the hot rows stay and the next call tries again.
        """
        self.settle()  # before the lock, which the committer waits for
        with self._exchange:
            if not self._view.frozen.rows:
                if not self._view.active.rows:
                    return 0
                self._view = replace(self._view, frozen=self._view.active.settled(), active=Hot())
            frozen = self._view.frozen
        frozen = frozen.in_one_table()
        with self._exchange:
            self._view = replace(self._view, frozen=frozen)
        try:
            if self._intent is None:
                clear_staging(self.disk, self.root)
                staged = stage(self.disk, self.root, frozen, is_waited_for)
                self._catalog.intend(staged)
                self._intent = staged
            intent = self._intent
            move_into_place(self.disk, self.root, intent, self._locks)
            self._links.add(row.name for row in intent.files)
            number, digest = self._journal.last
            self._catalog.seal(intent, number, digest.hex())
        except (OSError, sqlite3.OperationalError) as error:
            if is_disk_full(error):
                raise DiskFullError(f"no room on the device of {self.root} to flush {frozen.rows} records") from error
            raise
        self._intent = None
        added = {row.kind: opened(self.disk, self.root, row) for row in intent.runs}
        with self._room:
            view = self._view
            self._view = replace(
                view,
                flushed=intent.last_seq,
                files=view.files + tuple(self._sealed(row) for row in intent.files),
                frozen=Hot(),
                index=(*view.index, added["index"]),
                summaries=(*view.summaries, added["summaries"]),
                rollups=(*view.rollups, added["rollups"]),
            )
            self._room.notify_all()
        self.tiers.add(intent.runs)  # last, because what is merged must be in the view
        return frozen.rows

    def _sealed(self, row: FileRow) -> SealedFile:
        return SealedFile(self._links.path(row.name), *msgspec.structs.astuple(row))

    @property
    def damage(self) -> str | None:
        """What is known to be damaged of the sealed files; see `store.rot`."""
        return known_damage(self.files)

    @property
    def files(self) -> tuple[SealedFile, ...]:
        """The sealed files."""
        return self._view.files

    def named_runs(self, kind: str, names: Collection[str]) -> list[Any]:
        """The runs of a kind with these names."""
        return [run for run in getattr(self._view, kind) if run.name in names]

    def exchange_runs(self, kind: str, gone: Collection[str], runs: Sequence[Any]) -> None:
        """Runs take the place of those (by name) whose rows they stand for."""
        with self._exchange:
            self._view = self._view.merged(kind, gone, runs)

    def exchange_files(self, gone: set[str], rows: list[FileRow]) -> None:
        """Files that a compaction has made take the place of those (by name) that they stand for."""
        added = tuple(self._sealed(row) for row in rows)
        with self._exchange:
            before = self._view.files
            self._view = replace(self._view, files=tuple(file for file in before if file.name not in gone) + added)
        self._links.retire(file for file in before if file.name in gone)

    def ask_ahead(self) -> None:
        """Behind a start: let the system read what every commit needs, before the first one waits for it."""
        runs = (*self._view.index, *self._view.summaries)
        for run in runs:
            run.ask_ahead()
        for run in runs:
            run.wait_for_ends()

    def keep_runs(self) -> None:
        """Told when the runs of a start have been read: what look-ups read of them is to stay in memory."""
        for run in (*self._view.index, *self._view.summaries):
            run.read_as_usual()

    def wait_for_room(self, rows: int, size: int, timeout_s: float) -> bool:
        """Wait until fewer than so many hot rows and bytes are left; False where the time is up first."""
        with self._room:
            return self._room.wait_for(lambda: self.hot_rows < rows and self.hot_bytes < size, timeout_s)

    def close(self) -> None:
        """Give the directory free. What is hot stays in the log, for the next start."""
        self._beside.shutdown()
        self.compaction.close()
        self.tiers.close()
        self._catalog.close()
        self._journal.close()
        for log in self._logs.values():
            log.close()
        self._lock.release()

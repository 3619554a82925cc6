"""Compaction: many small Parquet files of a partition become one, by exchange of the whole directory.

The merged file is written into a new directory outside the analysts' glob, synced and compared with the files that it
stands for. Then, under the lock of the partition: every other file of the partition is hard-linked beside it, the new
directory is synced, an intent goes into the catalog, the two directories are exchanged in one call, both parents are
synced, and one catalog transaction ends it. The old directory stays for a while, under the name of the new one, and is
removed. A start finishes an exchange that was made and forgets one that was not (`recover_swaps`); the directories that
are left then are removed beside the service, because that takes a second for each gigabyte.

One thread calls `run_once`. Commits and flushes go on beside it; a flush waits for the lock of a partition only.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import duckdb
import pyarrow as pa

from store.apart import Apart
from store.catalog import Catalog, FileRow, Swap
from store.choice import choose_partitions
from store.engine import Stop
from store.errors import CorruptionError, DiskFullError, TransientError
from store.files import Disk, is_disk_full, overlapped, remove_directory
from store.flush import PartitionLocks
from store.links import Links
from store.merging import Merging
from store.parquet import day_directory
from store.snapshot import SealedFile

__all__ = ["COMPACTION", "Compaction", "CompactionCounters", "CompactionSettings", "recover_swaps"]

logger = logging.getLogger("oncelake.compaction")

COMPACTION = "internal/compaction"
"""Where new directories are made, and old ones stay for a while."""

_HELD_BACK_S = 3_600.0
"""A partition stays as it is for so long where something has ended the process that merged its files."""


@dataclass(frozen=True)
class CompactionSettings:
    """`memory` is about what a merge may use, in bytes; an old directory is kept for `grace_s`.

    A partition has rested when it got no file for `rest_s`.
    """

    memory: int = 128_000_000
    grace_s: float = 600.0
    rest_s: float = 600.0


@dataclass
class CompactionCounters:
    """What was done since the start, for metrics: `files_in` became `files_out`; `retired` directories still stand."""

    rounds: int = 0
    partitions: int = 0
    files_in: int = 0
    files_out: int = 0
    rows: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    failures: int = 0
    retired: int = 0


class Sealed(Protocol):
    """The sealed files of the store."""

    @property
    def flushed(self) -> int:
        """The newest seq in them: only a flush, which raises it, and compaction itself change the files."""

    @property
    def files(self) -> tuple[SealedFile, ...]:
        """All of them."""

    def exchange_files(self, gone: set[str], rows: list[FileRow]) -> None:
        """Files take the place of those (by name) that they stand for."""


class Compaction:
    """The compaction of one open store. What is large is merged in a process of its own."""

    def __init__(
        self,
        disk: Disk,
        root: Path,
        catalog: Catalog,
        links: Links,
        locks: PartitionLocks,
        settings: CompactionSettings,
        sealed: Sealed,
    ) -> None:
        self.counters = CompactionCounters()
        self._disk = disk
        self._root = root
        self._catalog = catalog
        self._links = links
        self._locks = locks
        self._settings = settings
        self._sealed = sealed
        self._apart = Apart()
        self._pending: list[Swap] = []
        self._retired = [(-math.inf, path) for path in _left(root)]
        self._newest: dict[int, tuple[int, float]] = {}
        self._left_until: dict[str, float] = {}
        self._idle_at = -1
        self._idle_until = 0.0
        self._stop = Stop()

    def probe(self) -> str | None:
        """What the file system lacks for compaction, or None: two directories are linked into and exchanged."""
        if not self._links.work:
            return "it has no hard links"
        first, second = (self._root / COMPACTION / f".probe-{number}" for number in (1, 2))
        try:
            for directory in (first, second):
                self._remove(directory)
                self._disk.make_directory(directory)
            self._disk.write(first / "file", b"", sync=False)
            self._disk.link(first / "file", second / "link")
            self._disk.exchange(first, second)
            return None if (first / "link").exists() else "an exchange of two names did nothing"
        except OSError as error:
            if is_disk_full(error):
                return None  # it will be seen when there is room
            return f"it cannot exchange two directories ({error})"
        finally:
            with contextlib.suppress(OSError):  # what is left is removed before the next probe
                for directory in (first, second):
                    self._remove(directory)

    def run_once(self, now_s: float | None = None) -> int:
        """One round: the partitions that are worth most, all of them exchanged together. Returns how many.

        `DiskFullError`: nothing is lost, it may be tried again. Any other `OSError` is final: a directory was exchanged
        and could not be synced.
        """
        now = time.monotonic() if now_s is None else now_s
        self._links.clean()
        self.remove_retired(now)
        try:
            if self._pending:
                with self._locked(self._pending):
                    self._finish(now)
            chosen = self._chosen(now)
            swaps = self._staged(chosen)
            done = self._swap(swaps, now) if swaps else 0
        except (OSError, sqlite3.OperationalError) as error:
            self.counters.failures += 1
            if is_disk_full(error):
                raise DiskFullError(f"no room on the device of {self._root} to compact") from error
            raise
        return done

    def remove_retired(self, now_s: float = -math.inf) -> None:
        """Remove the directories whose time is over, or only what the process before this one left; until a stop."""
        unsynced = 0
        for due in [entry for entry in self._retired if entry[0] <= now_s]:
            if self._stop.is_set:  # what is left is removed behind the next start
                break
            unsynced = remove_directory(self._disk, due[1], unsynced)
            self._retired.remove(due)
        self.counters.retired = len(self._retired)

    def stop(self) -> None:
        """Give up the merge or removal under way, from another thread; what is exchanged is finished."""
        self._stop.set()

    def close(self) -> None:
        """End what merges."""
        self._apart.close()

    # -- choosing

    def _chosen(self, now: float) -> list[list[SealedFile]]:
        """What to compact now. Where that was nothing, it is looked at again after a flush or when a day rests."""
        flushed = self._sealed.flushed
        if flushed == self._idle_at and now < self._idle_until:
            return []
        files = self._whole_files()
        self._note_newest(files, now)
        rest_s = self._settings.rest_s
        chosen = choose_partitions(files, lambda day: now - self._newest[day][1] >= rest_s)
        if not chosen:
            self._idle_at = flushed
            ends = [at + rest_s for _, at in self._newest.values()] + list(self._left_until.values())
            self._idle_until = min((end for end in ends if end > now), default=math.inf)
        return chosen

    def _whole_files(self) -> list[SealedFile]:
        """The sealed files of partitions that are not left as they are."""
        files = self._sealed.files
        now = time.monotonic()
        avoided = {file.day for file in files if self._left_until.get(file.name, 0.0) > now}
        return [file for file in files if file.day not in avoided]

    def _note_newest(self, files: Sequence[SealedFile], now: float) -> None:
        """Since when each partition has had the newest seq that it has; compactions do not change that."""
        newest: dict[int, int] = {}
        for file in files:
            newest[file.day] = max(newest.get(file.day, 0), file.max_seq)
        seen = self._newest
        self._newest = {
            day: seen[day] if day in seen and seen[day][0] == seq else (seq, now) for day, seq in newest.items()
        }

    # -- making

    def _staged(self, chosen: Sequence[Sequence[SealedFile]]) -> list[Swap]:
        """New directories, each with its merged file, synced and compared; none where it was stopped meanwhile."""
        if not chosen:
            self._apart.rest()
            return []
        targets = [f"{day_directory(files[0].day)}/{merged_name(files)}" for files in chosen]
        mine = os.getpid()  # what the process before this one has not stopped writing is elsewhere
        staged = [f"{COMPACTION}/{Path(target).parent.name}.{Path(target).stem}.{mine}" for target in targets]
        try:
            for name in staged:
                self._remove(self._root / name)
            self._disk.make_directories([self._root / name for name in staged])
            how = Merging(self._disk, self._settings.memory, self._stop.check)
            found = [self._merged(*merging, how) for merging in zip(chosen, targets, staged, strict=True)]
            swaps = [swap for swap in found if swap is not None]
            overlapped(self._disk.sync_file, [self._root / swap.staged / Path(swap.file.name).name for swap in swaps])
        except (OSError, duckdb.InterruptException) as error:
            for name in staged:
                self._remove(self._root / name)
            if isinstance(error, duckdb.InterruptException):
                return []
            raise
        return swaps

    def _merged(self, files: Sequence[SealedFile], target: str, staged: str, how: Merging) -> Swap | None:
        """The merged file of one partition; None where a file is damaged, and the partition is left as it is."""
        directory, names = day_directory(files[0].day), [file.name for file in files]
        try:
            row = self._apart.merge(files, self._root / staged / Path(target).name, target, how)
        except TransientError as error:
            self._stop.check()
            self._leave(directory, names, staged, str(error), for_s=_HELD_BACK_S)
            return None
        except (CorruptionError, pa.ArrowException) as error:
            self._leave(directory, names, staged, str(error))
            return None
        return Swap(directory, staged, names, row)

    # -- exchanging

    @contextlib.contextmanager
    def _locked(self, swaps: Sequence[Swap]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for directory in sorted(swap.directory for swap in swaps):
                stack.enter_context(self._locks.of(self._root / directory))
            yield

    def _swap(self, swaps: list[Swap], now: float) -> int:
        """Exchange the directories of those that can be; how many these are."""
        with self._locked(swaps):
            try:
                linked = [swap for swap in swaps if self._links_kept(swap)]
                if not linked:
                    return 0
                overlapped(self._disk.sync_directory, [self._root / swap.staged for swap in linked])
                self._catalog.intend_swaps(linked)
            except (OSError, sqlite3.Error):
                for swap in swaps:
                    self._remove(self._root / swap.staged)
                raise
            self._pending = linked
            self._finish(now)
            return len(linked)

    def _links_kept(self, swap: Swap) -> bool:
        """Link what stays beside the merged file: also what a flush has put there and not sealed yet.

        False where something cannot be linked, as a directory of somebody else: the partition is left as it is.
        """
        gone = {Path(name).name for name in swap.gone}
        for path in sorted((self._root / swap.directory).iterdir()):
            if path.name in gone:
                continue
            try:
                self._disk.link(path, self._root / swap.staged / path.name)
            except OSError as error:
                if is_disk_full(error):
                    raise
                self._leave(swap.directory, swap.gone, swap.staged, f"{path} cannot be linked, move it away: {error}")
                return False
        return True

    def _leave(self, directory: str, names: Iterable[str], staged: str, why: str, for_s: float = math.inf) -> None:
        """A partition with these files stays as it is for so long; without end until the next start."""
        self._left_until |= dict.fromkeys(names, time.monotonic() + for_s)
        self.counters.failures += 1
        how_long = "until the next start" if for_s == math.inf else f"for {for_s / 60:.0f} minutes"
        logger.error("%s is not compacted %s: %s", directory, how_long, why)
        self._remove(self._root / staged)

    def _finish(self, now: float) -> None:
        """From the intent on. Done again after a lack of room it goes on where it stopped."""
        swaps = self._pending
        for swap in swaps:
            if not (self._root / swap.file.name).exists():
                self._disk.exchange(self._root / swap.staged, self._root / swap.directory)
        sync_parents(self._disk, self._root)
        self._links.add(swap.file.name for swap in swaps)
        self._catalog.swapped(swaps)
        self._pending = []
        gone = {name for swap in swaps for name in swap.gone}
        bytes_in = sum(file.bytes for file in self._sealed.files if file.name in gone)
        self._sealed.exchange_files(gone, [swap.file for swap in swaps])
        self._retired.extend((now + self._settings.grace_s, self._root / swap.staged) for swap in swaps)
        counters = self.counters
        counters.rounds += 1
        counters.partitions += len(swaps)
        counters.files_in += len(gone)
        counters.files_out += len(swaps)
        counters.rows += sum(swap.file.rows for swap in swaps)
        counters.bytes_in += bytes_in
        counters.bytes_out += sum(swap.file.bytes for swap in swaps)
        counters.retired = len(self._retired)

    # -- cleaning

    def _remove(self, directory: Path) -> None:
        remove_directory(self._disk, directory)


def merged_name(files: Sequence[SealedFile]) -> str:
    """The name of the file that stands for these: the first and last seq of their flushes, and how many records.

    It is never used twice: the records of the first flush are in one file of the partition at a time, and the files
    that this one becomes part of have more records.
    """
    spans = [Path(file.name).stem.split(".")[0].split("-") for file in files]
    first, last = min(span[0] for span in spans), max(span[1] for span in spans)
    return f"{first}-{last}.{sum(file.rows for file in files)}.parquet"


def sync_parents(disk: Disk, root: Path) -> None:
    """Make exchanges durable. A failure is final, also where the disk is full: the next sync would say all is well."""
    for directory in (root / "records", root / COMPACTION):
        try:
            disk.sync_directory(directory)
        except OSError as error:
            raise OSError(errno.EIO, f"{directory} could not be synced: {error}") from error


def recover_swaps(disk: Disk, root: Path, catalog: Catalog) -> None:
    """At a start: what was exchanged counts, what was not is forgotten.

    A file that was made again (`store.mend`) came by a rename into its partition.
    """
    swaps = catalog.swaps()
    if not swaps:
        return
    done = [swap for swap in swaps if (root / swap.file.name).exists()]
    if done:
        disk.make_directory(root / COMPACTION)
        sync_parents(disk, root)
        overlapped(disk.sync_directory, sorted({(root / swap.file.name).parent for swap in done}))
    catalog.swapped(done)
    logger.warning("of %d exchanges of Parquet files under way %d had been made", len(swaps), len(done))


def _left(root: Path) -> list[Path]:
    """What a start finds: old directories, and what was never exchanged. Nothing names them."""
    directory = root / COMPACTION
    return sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []

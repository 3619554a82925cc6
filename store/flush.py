"""A flush: hot rows become Parquet files and runs, at once for every reader and after any crash.

Staged and synced outside every glob, read back, named in an intent, renamed into place, sealed in the catalog. What a
crash leaves half done is rolled forward from the intent (`move_into_place`), because everything it names is staged.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa
import xxhash

from store import rollups
from store.catalog import FileRow, Intent, Move, RunKind, RunRow
from store.errors import CorruptionError
from store.files import Disk, NewFile, overlapped
from store.hot import Hot
from store.kinds import KINDS
from store.parquet import Partition, day_directory, describe, partitions, write_partition
from store.threads import give_way

__all__ = [
    "STAGING",
    "PartitionLocks",
    "checksum_of",
    "clear_staging",
    "move_into_place",
    "stage",
    "write_run",
]

STAGING = "internal/staging"

_WRITERS = 3
"""So many partitions of a large flush are written and synced at once: one writes while the sync of another waits."""

_ADDERS = 2
"""So many runs of a large flush are made at once: that of the summaries takes as long as the other two."""

_LARGE_ROWS = 16_384
"""Fewer are not worth threads, unless they are of many days."""


class PartitionLocks:
    """One lock for each directory of `records/`: a flush renames into it, a compaction exchanges it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[Path, threading.Lock] = {}

    def of(self, directory: Path) -> threading.Lock:
        """The lock of a directory."""
        with self._guard:
            return self._locks.setdefault(directory, threading.Lock())


@dataclass(frozen=True)
class _Target:
    """Where the files of one flush go: names that are never used twice, because seqs are not."""

    first_seq: int
    last_seq: int

    @property
    def stem(self) -> str:
        return f"{self.first_seq:020d}-{self.last_seq:020d}"


class _Steps:
    """The steps of a flush, in several threads: one at a time while somebody waits for the cores."""

    def __init__(self, is_waited_for: Callable[[], bool]) -> None:
        self._is_waited_for = is_waited_for
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """One of them: work of 10 to 100 ms, in which nothing is synced."""
        with self._turn if self._is_waited_for() else contextlib.nullcontext():
            yield

    def each(self, pages: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The pages, each of which is made in a step."""
        made = iter(pages)
        while True:
            with self.step():
                page = next(made, None)
            if page is None:
                return
            yield page


def stage(disk: Disk, root: Path, hot: Hot, is_waited_for: Callable[[], bool] = lambda: False) -> Intent:
    """Write everything of a flush into the staging directory, synced and read back.

    The Parquet files of a large flush are written beside each other, and its runs beside them; while `is_waited_for`
    says so, one after another.
    """
    steps = _Steps(is_waited_for)
    first_seq = hot.tables[0].column("seq")[0].as_py()
    target = _Target(first_seq, first_seq + hot.rows - 1)
    staging = root / STAGING
    disk.make_directory(staging)

    def write(numbered: tuple[int, Partition]) -> tuple[Move, FileRow]:
        number, partition = numbered
        source = staging / f"{target.stem}.{number}.parquet"
        with steps.step():
            write_partition(partition.rows(), source, (target.first_seq, target.last_seq))
        disk.sync_file(source)
        with steps.step():
            row = describe(source, f"{day_directory(partition.day)}/{target.stem}.parquet", partition.day)
        return Move(str(source.relative_to(root)), row.name), row

    def add(kind: str) -> tuple[Move, RunRow]:
        source = staging / f"{target.stem}.{kind}.arrow"
        name = f"internal/{kind}/{target.stem}.arrow"
        seqs = (target.first_seq, target.last_seq)
        row = write_run(disk, source, kind, name, steps.each(_pages(hot, kind)), seqs)
        return Move(str(source.relative_to(root)), name), row

    is_large = hot.rows >= _LARGE_ROWS
    with ThreadPoolExecutor(_ADDERS, thread_name_prefix="flusher", initializer=give_way) as beside:
        added = [beside.submit(add, kind) for kind in KINDS] if is_large else []
        with steps.step():
            parts = list(enumerate(partitions(pa.concat_tables(hot.tables))))
        written = overlapped(write, parts, at_least=_WRITERS if is_large else 1)
        runs = [done.result() for done in added] if is_large else [add(kind) for kind in KINDS]
    if sum(row.rows for _, row in written) != hot.rows:
        raise CorruptionError(f"a flush of {hot.rows} rows read back {sum(row.rows for _, row in written)}")
    disk.sync_directory(staging)
    moves = [move for move, _ in (*written, *runs)]
    return Intent(target.first_seq, target.last_seq, moves, [row for _, row in written], [row for _, row in runs])


def _pages(hot: Hot, kind: str) -> Iterable[pa.RecordBatch]:
    """The pages that a flush adds to the runs of a kind."""
    if kind == "rollups":
        return rollups.pages(rollups.of_records(hot.tables))
    return KINDS[kind].merged(hot.index if kind == "index" else hot.summaries)


def write_run(
    disk: Disk,
    path: Path,
    kind: str,
    name: str,
    pages: Iterable[pa.RecordBatch],
    seqs: tuple[int, int],
    written: Callable[[NewFile, pa.RecordBatch], None] = lambda file, page: None,
) -> RunRow:
    """Write the pages of a run to a file, synced. It will be called `name`. `written` is called behind each page."""
    rows = 0
    file = NewFile(disk, path)
    with pa.PythonFile(file, "w") as sink, pa.ipc.new_file(sink, KINDS[kind].schema) as writer:
        for page in pages:
            writer.write_batch(KINDS[kind].written(page))
            written(file, page)
            rows += page.num_rows
    disk.sync_file(path)
    return RunRow(name, cast("RunKind", kind), rows, *seqs, file.size, file.checksum)


def move_into_place(disk: Disk, root: Path, intent: Intent, locks: PartitionLocks) -> None:
    """Rename what is staged to its names. Done again after a crash it goes on where it stopped."""
    directories = sorted({(root / move.target).parent for move in intent.moves})
    disk.make_directories(directories)
    for move in intent.moves:
        source, target = root / move.source, root / move.target
        if source.exists():
            with locks.of(target.parent):
                disk.rename(source, target)
        elif not target.exists():
            raise CorruptionError(f"{target} of the flush of seqs {intent.first_seq} to {intent.last_seq} is lost")
    try:
        overlapped(disk.sync_directory, directories)
    except OSError as error:  # final, also where the disk is full: the next sync would say that all is well
        raise OSError(errno.EIO, f"directories of {root} could not be synced: {error}") from error


def clear_staging(disk: Disk, root: Path) -> None:
    """Remove what an unfinished flush left: nothing names it."""
    if (root / STAGING).is_dir():
        for path in (root / STAGING).iterdir():
            disk.remove(path)


def checksum_of(path: Path) -> tuple[int, str]:
    """Size and xxh3-64 (hex) of a file."""
    hasher = xxhash.xxh3_64()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            hasher.update(piece)
        return os.fstat(file.fileno()).st_size, hasher.hexdigest()

"""The runs on disk, merged in tiers: the runs of a full size class become one of the next.

A merged run is written where it will stand, synced in steps, and counts from the transaction of the catalog on; a file
that the catalog does not name is removed behind the next start. Flushes go on beside a merge, and add runs; what
becomes due meanwhile and is less work is merged in between, so that few runs wait for the end of a merge that takes a
minute.

One thread calls `merge_once`.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from store.catalog import Catalog, RunRow
from store.errors import DiskFullError, OncelakeError
from store.files import Disk, is_disk_full
from store.flush import write_run
from store.kinds import KINDS, opened
from store.rot import Pace, condemned
from store.runs import Run
from store.takeover import Takeover
from store.unlinked import Unlinked

__all__ = ["Tiers", "unnamed"]


_COPIED_BYTES = 4
"""Of each row, at most: its filter, of what takes over and then of the whole (`Run.gather_filters`)."""

_LEFT = ".left"
"""The suffix of a file that was a run, or was to become one."""


class Runs(Protocol):
    """The runs that commits and questions look into."""

    def named_runs(self, kind: str, names: Collection[str]) -> Sequence[Any]:
        """Those with these names."""

    def exchange_runs(self, kind: str, gone: Collection[str], runs: Sequence[Any]) -> None:
        """Runs take the place of those with these names."""


class _StoppedError(Exception):
    """The merge under way is given up."""


class Tiers:
    """The runs of one open store, those that `rows` describe at first."""

    def __init__(
        self,
        disk: Disk,
        root: Path,
        catalog: Catalog,
        rows: Sequence[RunRow],
        runs: Runs,
    ) -> None:
        self._disk = disk
        self._root = root
        self._catalog = catalog
        self._runs = runs
        self._lock = threading.Lock()
        self._rows = tuple(rows)
        self._unlinked = Unlinked(disk)
        self._stopping = threading.Event()
        self._busy: set[str] = set()
        self._left = self._put_aside(unnamed(root, rows))

    @property
    def rows(self) -> tuple[RunRow, ...]:
        """All of them."""
        return self._rows

    def _put_aside(self, paths: Sequence[Path]) -> list[Path]:
        """Give files that nothing names other names, which no run can get. What is to be removed then.

        Where they have taken the room that a start needs they are removed at once.
        """
        is_tight = shutil.disk_usage(self._root).free < sum(path.stat().st_size for path in paths)
        for path in paths:
            if is_tight:
                self._disk.remove(path)
            else:
                self._disk.rename(path, path.with_suffix(_LEFT))
        return [path for kind in KINDS for path in (self._root / "internal" / kind).glob(f"*{_LEFT}")]

    def add(self, rows: Sequence[RunRow]) -> None:
        """A flush has added these."""
        self._exchange((), rows)

    def stop(self) -> None:
        """Give up the merge under way, from another thread."""
        self._stopping.set()

    def gather_filters(self) -> None:
        """Copy those of all runs next to each other, anew where they were: no checksum tells what became of a copy."""
        for row in self._rows:
            for run in self._runs.named_runs(row.kind, {row.name}):
                if isinstance(run, Run) and not self._stopping.is_set():
                    run.gather_filters(self._disk, (self._root / row.name).parent)

    def close(self) -> None:
        """Give back what removed runs took."""
        self._unlinked.free(all_of_them=True)

    def merge_once(self) -> bool:
        """Merge one size class of a kind, if one is full. Returns whether there was one.

        `DiskFullError`: everything is as it was, and it may be tried again.
        """
        self._unlinked.free()
        while self._left and not self._stopping.is_set():
            with contextlib.suppress(OSError):  # then the next start tries again
                self._disk.remove(self._left.pop())
        due = self._due()
        if due is None:
            return False
        try:
            self._merge(*due)
        except _StoppedError:
            return False
        finally:
            self._busy.clear()
        return True

    def _due(self) -> tuple[str, list[RunRow]] | None:
        """A kind, and what of it is to be merged now: the least work first. Neighbours of what is busy are not."""
        found = []
        for kind in KINDS:
            rows = [row for row in self._rows if row.kind == kind]
            chosen = KINDS[kind].to_merge([row for row in rows if row.name not in self._busy])
            if chosen and (kind != "rollups" or self._busy.isdisjoint(row.name for row in rows)):
                found.append((kind, chosen))
        return min(found, key=lambda due: _size(due[1]), default=None)

    def _merge(self, kind: str, chosen: Sequence[RunRow]) -> None:
        """A new run in the place of these, for everybody. Where it fails everything is as it was."""
        gone = {row.name for row in chosen}
        self._busy |= gone
        self._check(kind, chosen)
        name = f"internal/{kind}/{_merged_name(chosen)}"
        path = self._root / name
        reading = {self._root / row.name: KINDS[kind].map(self._root / row.name, row) for row in chosen}
        readers = {self._root / old.name: [old.reader] for old in self._runs.named_runs(kind, gone)}
        takeover = self._takeover(kind, gone, name, reading)
        try:
            seqs = (min(row.min_seq for row in chosen), max(row.max_seq for row in chosen))
            pages = self._pages(kind, chosen, list(reading.values()))
            merged = write_run(self._disk, path, kind, name, pages, seqs, takeover.written)
            self._disk.sync_directory(path.parent)
            self._catalog.exchange_runs(sorted(gone), merged)
        except (OSError, OncelakeError, sqlite3.OperationalError, _StoppedError) as error:
            written = {path: takeover.undo()}
            if is_disk_full(error) or not isinstance(error, sqlite3.OperationalError):  # else the catalog may name it
                self._unlinked.remove(written)
                written.clear()
                self._unlinked.free()  # at once: until then nothing else may have any room
            if is_disk_full(error):
                raise DiskFullError(f"no room on the device of {self._root} to merge runs of the {kind}") from error
            raise
        self._exchange(gone, [merged])
        takeover.finish(opened(self._disk, self._root, merged))
        self._unlinked.remove(readers)

    def _check(self, kind: str, chosen: Sequence[RunRow]) -> None:
        """Runs that are to be merged must be sound, and a merge for which there is no room is not begun.

        Until its file were removed nothing else would have any.
        """
        if shutil.disk_usage(self._root).free < sum(row.bytes + _COPIED_BYTES * row.rows for row in chosen):
            raise DiskFullError(f"no room on the device of {self._root} to merge runs of the {kind}")
        for row in chosen:
            if (error := condemned(self._disk, self._root, row, Pace(stopping=self._stopping))) is not None:
                raise error

    def _takeover(self, kind: str, gone: Collection[str], name: str, reading: Mapping[Path, Any]) -> Takeover:
        old = {self._root / run.name: run for run in self._runs.named_runs(kind, gone) if isinstance(run, Run)}
        return Takeover(
            self._disk,
            self._root / name,
            name,
            KINDS[kind].schema,
            old,
            reading,
            lambda standing: self._runs.exchange_runs(kind, {*gone, name}, standing),
        )

    def _pages(self, kind: str, chosen: Sequence[RunRow], reading: Sequence[Any]) -> Iterator[pa.RecordBatch]:
        """The pages of the merged run, until it is to stop. Smaller merges that become due are made in between."""
        for page in KINDS[kind].merged(reading):
            if self._stopping.is_set():
                raise _StoppedError
            yield page
            while (due := self._due()) is not None and _size(due[1]) < _size(chosen):
                self._merge(*due)

    def _exchange(self, gone: Collection[str], rows: Sequence[RunRow]) -> None:
        with self._lock:
            self._rows = (*(row for row in self._rows if row.name not in gone), *rows)


def unnamed(root: Path, rows: Sequence[RunRow]) -> list[Path]:
    """The files of runs that the catalog does not name, as a start finds them: a second for each 1.5 GB to remove."""
    names = {root / row.name for row in rows}
    return [path for kind in KINDS for path in (root / "internal" / kind).glob("*.arrow") if path not in names]


def _size(rows: Sequence[RunRow]) -> int:
    return sum(row.rows for row in rows)


def _merged_name(chosen: Sequence[RunRow]) -> str:
    """That of the newest run, one merge further: never a name that one of them has, whatever the rows add up to."""
    parts = [Path(row.name).stem.split(".") for row in chosen]
    merges = [int(rest[0].split("-")[0]) for _, *rest in parts if rest and rest[0][0].isdigit()]
    return f"{max(parts)[0]}.{max(merges, default=0) + 1}-{_size(chosen)}.arrow"

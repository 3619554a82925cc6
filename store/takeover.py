"""A merged run takes the place of those that it stands for while it is written, a part of the hashes after another.

A run of gigabytes that is to be looked up must be in memory, and until it is, so must those that it replaces. Where
there is no room for both, each pushes the other out, and every commit waits for a disk: for seconds where it was
measured. So what has been written takes over, and the memory that the others' same part takes is given back and is
room for what is written next: a merge takes little more of it, whatever its size. Whoever looks sees one or the other
of each part, in one step. The files of the others stay whole, for a start and for a merge that fails.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from store.files import Disk, NewFile
from store.runs import HASHES, Run, map_written

__all__ = ["Takeover"]

_PART_BYTES = 256 << 20
"""Of the new run, at least: so much is written before it takes over, and takes memory beside the others."""

_PATIENCE_S = 2.0
"""A commit looks into runs for less: what is still looked into then has its pages read again."""

_CUT_ROWS = 1 << 20
"""A run of so many rows may be cut within a page: what is left of it gets new filters each time."""


class Takeover:
    """One merge, into a run of this name and the file `path`, whose pages have this schema.

    `old` are the runs that commits look into, and `reading` the same ones as they are read to be merged, both by their
    files; without any (rollups) nothing takes over before the end. `exchange` puts runs in the place of what stood for
    these rows until then.
    """

    def __init__(
        self,
        disk: Disk,
        path: Path,
        name: str,
        schema: pa.Schema,
        old: Mapping[Path, Run],
        reading: Mapping[Path, Run],
        exchange: Callable[[Sequence[Run]], None],
    ) -> None:
        self._disk = disk
        self._path = path
        self._name = name
        self._schema = schema
        self._looked_into = [*map(weakref.ref, old.values())]
        self._old = {path: run.part(0, HASHES) for path, run in old.items()}  # that nobody looks into
        self._reading = reading
        self._exchange = exchange
        self._standing: Sequence[Run] = ()
        self._parts: list[Run] = []
        self._low = 0
        self._bytes = 0

    def written(self, file: NewFile, page: pa.RecordBatch) -> None:
        """Told after each page, which is the newest of the file. What is to be looked up is durable first."""
        if not self._old or file.size - self._bytes < _PART_BYTES:
            return
        high = int(page.column("hi")[-1].as_py()) + 1
        if not self._is_cut_at(high):
            return
        file.sync()
        new = map_written(self._path, self._name, self._schema, self._bytes, file.size)
        new.touch()
        new.gather_filters(self._disk, self._path.parent)
        self._parts.append(new)
        self._stand([*self._parts, *(run.part(high, HASHES) for run in self._old.values())])
        self._wait()
        for path, run in self._old.items():
            self._reading[path].unmap(self._low, high)
            run.forget(path, self._low, high)
        self._low, self._bytes = high, file.size

    def finish(self, new: Run) -> None:
        """It is whole, and in the catalog."""
        self._stand([new])
        self._unmap()

    def undo(self) -> Sequence[object]:
        """It will not be; what reads the file that is to be removed, and is held by whoever still looks into it."""
        if self._standing:
            self._stand([*self._old.values()])
            self._unmap()
        readers = [run.reader for run in self._parts]
        self._parts.clear()
        return readers

    def _unmap(self) -> None:
        for part in self._parts:
            part.unmap()

    def _is_cut_at(self, hash_: int) -> bool:
        return all(run.is_cut_at(hash_) for run in self._old.values() if run.rows > _CUT_ROWS)

    def _stand(self, runs: Sequence[Run]) -> None:
        gone = [run for run in self._standing if run not in runs]
        self._looked_into += map(weakref.ref, gone)
        self._standing = runs
        self._exchange(runs)

    def _wait(self) -> None:
        """Until nobody looks into what stood before any more, or a commit would be over long since."""
        end = time.monotonic() + _PATIENCE_S
        while any(run() is not None for run in self._looked_into) and time.monotonic() < end:
            time.sleep(0.002)
        self._looked_into.clear()

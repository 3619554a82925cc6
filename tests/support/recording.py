"""What the real code does to a data directory, recorded system call by system call.

`Recorder` stands in for the module `os` in `store/files.py`, so that `Disk` itself is under test. What pyarrow and
DuckDB write is seen when the file is first named; the catalog is taken as a whole after each of its transactions,
because SQLite syncs by itself. The lock file is left out: nothing depends on it after a crash.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import store.files
from store.exchange import exchange_names

__all__ = ["Change", "Data", "Mark", "Op", "Recorder", "Size", "Snapshot", "Sync", "Tree", "recorded"]

FILES = str(Path(store.files.__file__))
ROOT = Path(FILES).parents[1]


@dataclass(frozen=True)
class Data:
    """Bytes written to a file."""

    node: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Size:
    """A file cut or stretched to a length."""

    node: int
    length: int


@dataclass(frozen=True)
class Change:
    """A name in a directory that now means another node, or nothing.

    `needs` are changes without which this one is never kept: a rename within a directory is one step, and neither a
    rename nor a link and an unlink lose their file (file systems with a journal keep these in order). Of a rename
    between two directories both names may be left.
    """

    directory: int
    name: str
    node: int | None
    needs: list[Change] = field(default_factory=list, compare=False)
    makes_directory: bool = False


@dataclass(frozen=True)
class Sync:
    """A file or directory made durable."""

    node: int
    site: str


@dataclass(frozen=True)
class Snapshot:
    """The catalog after a transaction, durable; None where it is removed."""

    data: bytes | None


@dataclass(frozen=True)
class Mark:
    """What the scenario knows here: `answered` commits were answered, at most `most` can be on disk."""

    answered: int
    most: int


Op = Data | Size | Change | Sync | Snapshot | Mark


@dataclass
class Tree:
    """Directories (node: name to node) and files (node: bytes) below node 0, the parent of a data directory."""

    directories: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})
    files: dict[int, bytes] = field(default_factory=dict)
    catalog: bytes | None = None

    def copy(self) -> Tree:
        """One that can be changed."""
        return Tree({node: dict(names) for node, names in self.directories.items()}, dict(self.files), self.catalog)


class Recorder:
    """`os` as the disk calls it. `lost` names the sites whose syncs do nothing."""

    def __init__(self, root: Path, lost: Callable[[str], bool] = lambda site: False) -> None:
        self.root = root
        self.lost = lost
        self.ops: list[Op] = []
        self.sites: set[str] = set()
        self._count = 0
        self._now = Tree()
        self._handles: dict[int, tuple[int, int]] = {}
        self._catalog_path = root / "internal" / "catalog.sqlite"
        self._signature: object = None
        if root.is_dir():
            self._scan(root, 0, {})
            self._see_catalog()
        self.base = self._now.copy()
        self.base.catalog = next((op.data for op in self.ops if isinstance(op, Snapshot)), None)
        self.ops.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    # -- what the scenario says

    def mark(self, answered: int, most: int) -> None:
        """From here on so many commits are answered, and at most so many can be found."""
        self._see_catalog()
        self.ops.append(Mark(answered, most))

    def finish(self) -> None:
        """See what the last transaction of the catalog left."""
        self._see_catalog()

    # -- the tree

    def _scan(self, path: Path, directory: int, known: dict[int, int]) -> None:
        self._count += 1
        node = known.setdefault(path.stat().st_ino, self._count)  # a file may have several names
        self._now.directories[directory][path.name] = node
        if path.is_dir():
            self._now.directories[node] = {}
            for child in sorted(path.iterdir()):
                if self._tells(child):
                    self._scan(child, node, known)
        else:
            self._now.files[node] = path.read_bytes()

    def _tells(self, path: Path) -> bool:
        return path.name != "lock" and not path.name.startswith("catalog.sqlite")

    def _place(self, path: Any) -> tuple[int, str] | None:
        path = Path(path)
        if not self._tells(path) or not path.is_relative_to(self.root):
            return None
        directory = 0
        *folders, name = path.relative_to(self.root.parent).parts
        for folder in folders:
            directory = self._now.directories[directory][folder]
        return directory, name

    def _node(self, path: Any) -> int | None:
        if Path(path) == self.root.parent:
            return 0
        place = self._place(path)
        return None if place is None else self._now.directories[place[0]].get(place[1])

    def _changed(self, *changes: Change) -> None:
        for change in changes:
            names = self._now.directories[change.directory]
            if change.node is None:
                names.pop(change.name, None)
            else:
                names[change.name] = change.node
        self.ops.extend(changes)

    def _wrote(self, node: int, offset: int, data: bytes) -> None:
        before = self._now.files[node]
        self._now.files[node] = before[:offset].ljust(offset, b"\0") + data + before[offset + len(data) :]
        self.ops.append(Data(node, offset, data))

    def _sized(self, node: int, length: int) -> None:
        self._now.files[node] = self._now.files[node][:length].ljust(length, b"\0")
        self.ops.append(Size(node, length))

    def _new_file(self, place: tuple[int, str]) -> int:
        self._count += 1
        self._now.files[self._count] = b""
        self._changed(Change(*place, self._count))
        return self._count

    def _see(self, path: Any) -> None:
        """A file that somebody else has written: pyarrow or DuckDB."""
        place = self._place(path)
        if place is None or not Path(path).is_file():
            return
        node = self._now.directories[place[0]].get(place[1])
        if node is not None and not {"staging", "compaction"} & set(Path(path).parts):
            return
        data = Path(path).read_bytes()
        if node is None:
            self._wrote(self._new_file(place), 0, data)
        elif self._now.files[node] != data:
            self._sized(node, 0)
            self._wrote(node, 0, data)

    def _see_catalog(self) -> None:
        wal = self._catalog_path.with_name("catalog.sqlite-wal")
        signature = [
            (found.st_ino, found.st_size, found.st_mtime_ns) if found else None
            for found in (_stat(self._catalog_path), _stat(wal))
        ]
        if signature == self._signature:
            return
        self._signature = signature
        data = None
        if signature[0] is not None:
            connection = sqlite3.connect(f"file:{self._catalog_path}?mode=ro", uri=True)
            data = connection.serialize()
            connection.close()
        if data != self._now.catalog:
            self._now.catalog = data
            self.ops.append(Snapshot(data))

    # -- the calls

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        self._see_catalog()
        place = self._place(path) if Path(path) != self.root.parent else None
        self._see(path)
        handle = os.open(path, flags, mode)
        node = self._node(path)
        if place is not None and node is None:
            node = self._new_file(place)
        if node is not None and flags & os.O_TRUNC and self._now.files[node]:
            self._sized(node, 0)
        if node is not None:
            end = len(self._now.files[node]) if flags & os.O_APPEND else 0
            self._handles[handle] = (node, end)
        return handle

    def close(self, handle: int) -> None:
        self._handles.pop(handle, None)
        os.close(handle)

    def write(self, handle: int, data: memoryview) -> int:
        self._see_catalog()
        written = os.write(handle, data)
        if handle in self._handles:
            node, position = self._handles[handle]
            self._wrote(node, position, bytes(data[:written]))
            self._handles[handle] = (node, position + written)
        return written

    def ftruncate(self, handle: int, length: int) -> None:
        self._see_catalog()
        os.ftruncate(handle, length)
        if handle in self._handles:
            node, _ = self._handles[handle]
            if len(self._now.files[node]) != length:
                self._sized(node, length)
            self._handles[handle] = (node, length)

    def fsync(self, handle: int) -> None:
        self._see_catalog()
        site = _site()
        self.sites.add(site)
        if handle in self._handles and not self.lost(site):
            self.ops.append(Sync(self._handles[handle][0], site))

    fdatasync = fsync

    def rename(self, source: Any, target: Any) -> None:
        self._see_catalog()
        self._see(source)
        os.rename(source, target)
        here, there = self._place(source), self._place(target)
        assert here is not None and there is not None
        if self._node(source) == self._node(target):
            return  # two names of one file: POSIX leaves both
        added = Change(*there, self._now.directories[here[0]][here[1]])
        removed = Change(*here, None, [added])
        if here[0] == there[0]:
            added.needs.append(removed)
        self._changed(added, removed)

    def exchange(self, first: Path, second: Path) -> None:
        self._see_catalog()
        exchange_names(first, second)
        here, there = self._place(first), self._place(second)
        assert here is not None and there is not None
        one = Change(*here, self._now.directories[there[0]][there[1]])
        other = Change(*there, self._now.directories[here[0]][here[1]], [one])
        one.needs.append(other)
        self._changed(one, other)

    def link(self, source: Any, target: Any, *, follow_symlinks: bool = True) -> None:
        self._see_catalog()
        self._see(source)
        os.link(source, target, follow_symlinks=follow_symlinks)
        node, place = self._node(source), self._place(target)
        assert place is not None
        self._changed(Change(*place, node))

    def unlink(self, path: Any) -> None:
        self._see_catalog()
        self._see(path)
        os.unlink(path)
        place = self._place(path)
        if place is not None:
            node = self._now.directories[place[0]][place[1]]
            linked = [
                op for op in self.ops if isinstance(op, Change) and op.node == node and (op.directory, op.name) != place
            ]
            self._changed(Change(*place, None, linked[-1:]))
        self._see_catalog()

    def mkdir(self, path: Any) -> None:
        self._see_catalog()
        os.mkdir(path)
        place = self._place(path)
        assert place is not None
        self._count += 1
        self._now.directories[self._count] = {}
        self._changed(Change(*place, self._count, makes_directory=True))

    def rmdir(self, path: Any) -> None:
        self._see_catalog()
        os.rmdir(path)
        place = self._place(path)
        assert place is not None
        self._changed(Change(*place, None))


@contextlib.contextmanager
def recorded(recorder: Recorder) -> Iterator[Recorder]:
    """The disk's calls go through the recorder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.files, "os", recorder)
        patch.setattr(store.files, "exchange_names", recorder.exchange)
        yield recorder
        recorder.finish()


def _site() -> str:
    """The call that led into the disk, and what it called: `store/log.py:sync sync`."""
    frame = sys._getframe(2)
    inner = frame.f_code.co_name
    while frame.f_code.co_filename == FILES:
        inner = frame.f_code.co_name
        assert frame.f_back is not None
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_code.co_name} {inner}"


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None

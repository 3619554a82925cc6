"""A disk that fails, stops or loses power at a chosen call, and remembers what would survive a power cut."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from store.files import Appender, Buffer, Disk

__all__ = ["Crash", "FaultyDisk"]


class Crash(BaseException):
    """The process died here: nothing after it happens."""


class FaultyDisk(Disk):
    """Counts the calls that change the disk; the one with number `at` (from 1) fails with `code`, or is a crash.

    An append is done by half before it fails. A full disk stays full for `times` calls; after a crash every call
    crashes. `survivors` makes a directory of what was durable: names by the sync of their directory, bytes by that of
    their file. SQLite syncs by itself and is taken as it is.
    """

    def __init__(self, root: Path, at: int | None = None, code: int | None = None, times: int = 1) -> None:
        super().__init__(fsync=False)
        self.root = root
        self.calls: list[str] = []
        self.at = at
        self.code = code
        self.times = times
        self.only: tuple[str, ...] = ()
        self._names: dict[int, dict[str, int]] = {}
        self._bytes: dict[int, bytes] = {}
        self._held: list[int] = []
        if root.is_dir():
            for directory, _, names in os.walk(root):
                for name in names:
                    self._keep_file(Path(directory) / name)
                self._keep_names(Path(directory))
            self._keep_names(root.parent)

    def call(self, name: str, path: Path) -> None:
        """One more call: fails if it is the one."""
        if self.only and name not in self.only:
            return
        self.calls.append(f"{name} {path.relative_to(self.root.parent)}")
        if self.at is None or len(self.calls) < self.at:
            return
        if self.code is None:
            raise Crash(self.calls[-1])
        if len(self.calls) < self.at + self.times:
            raise OSError(self.code, os.strerror(self.code), str(path))

    def close(self) -> None:
        """Close the handles that keep inode numbers from being used again."""
        for handle in self._held:
            os.close(handle)

    # -- what is durable

    def _held_inode(self, path: Path) -> int:
        handle = os.open(path, os.O_RDONLY)
        self._held.append(handle)
        return os.fstat(handle).st_ino

    def _keep_file(self, path: Path) -> None:
        self._bytes[self._held_inode(path)] = path.read_bytes()

    def _keep_names(self, directory: Path) -> None:
        found = {}
        for path in directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found[path.name] = path.lstat().st_ino
                if path.is_dir() and found[path.name] not in self._names:
                    self._names[self._held_inode(path)] = {}
        inode = directory.stat().st_ino
        if inode not in self._names:
            self._held_inode(directory)
        self._names[inode] = found

    def survivors(self, target: Path) -> Path:
        """What is left after a power cut, copied to `target`."""
        inode = self._names.get(self.root.parent.stat().st_ino, {}).get(self.root.name)
        if inode is not None:
            self._survive(inode, self.root, target)
        return target

    def _survive(self, inode: int, source: Path, target: Path) -> None:
        target.mkdir(parents=True)
        for name, child in self._names[inode].items():
            if child in self._names:
                self._survive(child, source / name, target / name)
            elif not name.startswith("catalog.sqlite"):
                (target / name).write_bytes(self._bytes.get(child, b""))
        if target.name == "internal":
            for path in source.glob("catalog.sqlite*"):
                shutil.copyfile(path, target / path.name)

    # -- the calls

    def make_directory(self, path: Path) -> None:
        if not path.is_dir():
            self.call("make_directory", path)
        super().make_directory(path)

    def make_name(self, path: Path) -> None:
        self.call("make_name", path)
        super().make_name(path)

    def sync_directory(self, path: Path) -> None:
        self.call("sync_directory", path)
        self._keep_names(path)

    def write(self, path: Path, data: Buffer | Sequence[Buffer], *, sync: bool = True) -> None:
        self.call("write", path)
        super().write(path, data, sync=False)
        if sync:
            self.sync_file(path)

    def sync_file(self, path: Path) -> None:
        self.call("sync_file", path)
        self._keep_file(path)

    def rename(self, source: Path, target: Path) -> None:
        self.call("rename", target)
        super().rename(source, target)

    def move_new(self, source: Path, target: Path) -> None:
        self.call("link", target)
        os.link(source, target, follow_symlinks=False)
        self.call("unlink", source)
        os.unlink(source)

    def link(self, source: Path, target: Path) -> None:
        self.call("link", target)
        super().link(source, target)

    def exchange(self, first: Path, second: Path) -> None:
        self.call("exchange", second)
        super().exchange(first, second)

    def remove(self, path: Path) -> None:
        self.call("remove", path)
        super().remove(path)

    def remove_directory(self, path: Path) -> None:
        self.call("remove_directory", path)
        super().remove_directory(path)

    def appender(self, path: Path, length: int) -> Appender:
        self.call("open", path)
        return _FaultyAppender(self, path, length)


class _FaultyAppender(Appender):
    def __init__(self, disk: FaultyDisk, path: Path, length: int) -> None:
        super().__init__(disk, path, length)
        self._faults = disk

    def _write(self, data: Buffer) -> None:
        try:
            self._faults.call("append", self.path)
        except BaseException:
            super()._write(memoryview(data)[: len(data) // 2])
            raise
        super()._write(data)

    def cut(self, length: int) -> None:
        self._faults.call("cut", self.path)
        super().cut(length)

    def sync(self) -> None:
        self._faults.call("sync", self.path)
        self._faults._keep_file(self.path)

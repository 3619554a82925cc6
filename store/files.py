"""Every write, sync, rename, link, truncation and removal that oncelake makes, in one place.

Faults are put in here by tests (a subclass of `Disk` that fails, stops or records at a call), so nothing else in the
project opens a file for writing. Only SQLite and DuckDB write by themselves.

`OSError` passes through: what a failed call means is for its caller to say. After a failed sync nobody tries again,
because the kernel has marked the page clean: the process stops and recovers from what is on disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import xxhash

from store.errors import StoreInUseError
from store.exchange import exchange_names

__all__ = [
    "NO_LINKS",
    "STEP_BYTES",
    "Appender",
    "Disk",
    "Growing",
    "Lock",
    "NewFile",
    "is_disk_full",
    "overlapped",
    "remove_directory",
]

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
"""What file systems without hard links say to a link."""

STEP_BYTES = 16 << 20
"""A large file is synced whenever it has grown by so much. Whoever syncs another one meanwhile waits for all that is
not on the disk yet: 0.7 to 1.2 s beside a sync of 600 MB, 0.12 at most beside its steps."""

_FEW = 16
_AT_ONCE = 8
"""More calls than a few are made so many at once (`overlapped`)."""

_WRITE_BYTES = 1 << 20
"""Written at once: of more, the kernel takes a third more time for each byte."""

_HELD_BYTES = 1 << 16
"""Held back of a new file: Arrow writes many pieces of a few bytes, and large ones go to the system as they come."""

T = TypeVar("T")
R = TypeVar("R")
Buffer = bytes | bytearray | memoryview


def is_disk_full(error: Exception) -> bool:
    """Whether the device or the quota has no room: an answer for the client, not a crash."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class Disk:
    """The file system as oncelake uses it. `fsync=False` (`store.fsync`) skips the syncs and with them the promise."""

    def __init__(self, *, fsync: bool = True) -> None:
        self.fsync = fsync

    def make_directory(self, path: Path) -> None:
        """Make `path` and its missing parents, each durable in its own parent."""
        if path.is_dir():
            return
        self.make_directory(path.parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
        try:
            self.sync_directory(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):  # one that is there counts as durable the next time
                os.rmdir(path)
            raise

    def make_directories(self, paths: Iterable[Path]) -> None:
        """Make those that are missing, each durable in its parent, with one sync of a parent for all of them."""
        made = []
        parents = set()
        try:
            for path in paths:
                if not path.is_dir():
                    self.make_directory(path.parent)
                    parents.add(path.parent)
                    self.make_name(path)
                    made.append(path)
            for parent in sorted(parents):
                self.sync_directory(parent)
        except BaseException:
            for path in made:
                with contextlib.suppress(OSError):  # one that is there counts as durable the next time
                    os.rmdir(path)
            raise

    def make_name(self, path: Path) -> None:
        """A new directory; its parent is not synced."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable: those of new, renamed and removed files."""
        if not self.fsync:
            return
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def write(self, path: Path, data: Buffer | Iterable[Buffer], *, sync: bool = True) -> None:
        """A new file with these bytes, synced (not its directory). A file that is there is replaced in place.

        Pieces are synced in steps.
        """
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            unsynced = 0
            for piece in [data] if isinstance(data, Buffer) else data:
                if sync and self.fsync and unsynced >= STEP_BYTES:
                    os.fsync(handle)
                    unsynced = 0
                _write_all(handle, piece)
                unsynced += len(piece)
            if sync and self.fsync:
                os.fsync(handle)
        finally:
            os.close(handle)

    def sync_file(self, path: Path) -> None:
        """Make the bytes of a file durable that somebody else has written (pyarrow, a source)."""
        if not self.fsync:
            return
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def replace(self, path: Path, data: Buffer) -> None:
        """Put these bytes in place of a file: a reader sees the old ones or the new ones, also after a crash."""
        self.replace_all({path: data})
        self.sync_directory(path.parent)

    def replace_all(self, contents: Mapping[Path, Buffer]) -> None:
        """`replace` of several files, whose bytes are synced side by side. Their directories are the caller's to sync.

        On an error some of them may be replaced.
        """
        staged = {path: path.with_name(f".{path.name}.tmp") for path in contents}
        try:
            overlapped(lambda path: self.write(staged[path], contents[path]), list(contents))
            for path, source in staged.items():
                self.rename(source, path)
        except BaseException:
            for source in staged.values():
                with contextlib.suppress(OSError):
                    os.unlink(source)
            raise

    def rename(self, source: Path, target: Path) -> None:
        """Rename over whatever is at `target`. Durable once the directories are synced."""
        os.rename(source, target)

    def move_new(self, source: Path, target: Path) -> None:
        """Rename to a name that must be free: `FileExistsError` where it is not, and nothing is overwritten.

        A hard link refuses a taken name in one step; where the file system has none, an exclusive create claims it.
        """
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            try:
                os.rename(source, target)
            except OSError:
                os.unlink(target)
                raise
        else:
            os.unlink(source)

    def link(self, source: Path, target: Path) -> None:
        """A second name of a file. Durable once the directory is synced; `FileExistsError` where the name is taken."""
        os.link(source, target, follow_symlinks=False)

    def exchange(self, first: Path, second: Path) -> None:
        """Exchange two names in one step. Durable once both directories are synced."""
        exchange_names(first, second)

    def remove(self, path: Path) -> None:
        """Remove a file. Durable once its directory is synced."""
        os.unlink(path)

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory."""
        os.rmdir(path)

    def appender(self, path: Path, length: int) -> Appender:
        """Open a file to append to, made where it is missing, its length as it is known to be committed."""
        return Appender(self, path, length)


def overlapped(action: Callable[[T], R], items: Sequence[T], at_least: int = 1) -> list[R]:
    """Do the same to each: several at once where they are many, because a sync mostly waits. Raises the first error."""
    at_once = max(at_least, _AT_ONCE if len(items) > _FEW else 1)
    if at_once == 1:
        return [action(item) for item in items]
    with ThreadPoolExecutor(at_once, thread_name_prefix="sync") as threads:
        return [done.result() for done in [threads.submit(action, item) for item in items]]


def remove_directory(disk: Disk, directory: Path, unsynced: int = 0) -> int:
    """Remove a directory with its files, if it is there; in steps of so many bytes, because a commit beside it waits
    until those of the last step are given back. Returns how many bytes have gone since then, `unsynced` among them.
    """
    if not directory.is_dir():
        return unsynced
    for path in directory.iterdir():
        if path.is_dir():
            unsynced = remove_directory(disk, path, unsynced)
            continue
        unsynced += path.lstat().st_size
        disk.remove(path)
        if unsynced >= STEP_BYTES:
            disk.sync_directory(directory)
            unsynced = 0
    disk.remove_directory(directory)
    return unsynced


class Growing:
    """A file that somebody else writes: `grown` is told after each piece of it, and syncs it in steps."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._path = path
        self._synced = 0

    def grown(self) -> None:
        """Sync what has come, where that is enough for a step."""
        size = self._path.stat().st_size
        if size - self._synced >= STEP_BYTES:
            self._disk.sync_file(self._path)
            self._synced = size


class NewFile:
    """A file that Arrow writes from its beginning: synced in steps, its size and checksum those of what was written."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._path = path
        self._file = path.open("wb", buffering=_HELD_BYTES)
        self._synced = 0
        self._hasher = xxhash.xxh3_64()
        self.size = 0

    @property
    def closed(self) -> bool:
        """Whether it is."""
        return self._file.closed

    @property
    def checksum(self) -> str:
        """xxh3-64, hex."""
        return self._hasher.hexdigest()

    def write(self, data: Buffer) -> int:
        """More of it; how many bytes these are."""
        size = self._file.write(data)
        self._hasher.update(data)
        self.size += size
        if self.size - self._synced >= STEP_BYTES:
            self.sync()
        return size

    def sync(self) -> None:
        """Make durable what was written, and let others read it."""
        self.flush()
        self._disk.sync_file(self._path)
        self._synced = self.size

    def flush(self) -> None:
        """Give the system what is held back."""
        self._file.flush()

    def close(self) -> None:
        """The same, and no more comes; its end is not synced."""
        self._file.close()


class Appender:
    """An append-only file. `length` is what has been written; a write that fails leaves the file as it was."""

    def __init__(self, disk: Disk, path: Path, length: int) -> None:
        self.path = path
        self.length = length
        self._disk = disk
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if length == 0:  # new, or left by an attempt that may have failed before its name was durable
            try:
                disk.sync_directory(path.parent)
            except BaseException:
                os.close(self._handle)
                raise

    def append(self, data: Buffer) -> None:
        """Write at the end. On any error what was written of it is cut off again before the error passes.

        Where even that fails the file ends in bytes that must not be followed by others: `EIO`, whatever it was.
        """
        try:
            self._write(data)
        except BaseException as error:
            try:
                self.cut(self.length)
            except OSError as second:
                raise OSError(errno.EIO, f"{self.path} could not be cut back after {error}: {second}") from second
            raise
        self.length += len(data)

    def _write(self, data: Buffer) -> None:
        _write_all(self._handle, data)

    def cut(self, length: int) -> None:
        """Cut the file back to a length: only ever bytes that no journal frame covers."""
        os.ftruncate(self._handle, length)
        self.length = length

    def sync(self) -> None:
        """Make the bytes durable. An error here is final for the process."""
        if self._disk.fsync:
            os.fdatasync(self._handle)

    def close(self) -> None:
        """Close the handle; nothing is synced."""
        os.close(self._handle)


class Lock:
    """The lock file by which one process owns a data directory; the kernel frees it when the process dies."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._handle, 32, 0).decode("ascii", "replace").strip()
            os.close(self._handle)
            raise StoreInUseError(
                f"{path.parent} is in use by another oncelake process (pid {owner or 'unknown'}): "
                "stop it, or send the records to it (HTTP or its inbox)"
            ) from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the directory free."""
        os.close(self._handle)


def _write_all(handle: int, data: Buffer) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(handle, view[:_WRITE_BYTES]) :]

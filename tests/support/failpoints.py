"""Faults at one system call of the disk: a crash, an error or a short write, before or after it, once or for ever.

`FaultyOs` stands in for the module `os` in `store/files.py`, so every call of `Disk` is a failpoint, also the ones
inside one of its methods.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import store.files
from store.exchange import exchange_names
from tests.support.faults import Crash

__all__ = ["FAULTS", "Fault", "FaultyOs", "faulty"]


@dataclass(frozen=True)
class Fault:
    """What happens at a call. `code` is None for a crash; after the call its work is done and the error comes all the
    same; `short` writes half and says so, and the next write has no room.
    """

    name: str
    code: int | None = None
    after: bool = False
    forever: bool = False
    short: bool = False


FAULTS = [
    Fault("crash before"),
    Fault("crash after", after=True),
    *(
        Fault(f"{errno.errorcode[code]} {'after' if after else 'before'}{', for ever' if forever else ''}", code, after,
              forever)
        for code in (errno.EIO, errno.ENOSPC) for after in (False, True) for forever in (False, True)
    ),
    Fault("short write, once", errno.ENOSPC, short=True),
    Fault("short write, then never room", errno.ENOSPC, short=True, forever=True),
]  # fmt: skip


class FaultyOs:
    """`os` as the disk calls it; the call with number `at` (from 1) has the fault. `at` None only counts."""

    def __init__(self, root: Path, at: int | None = None, fault: Fault = FAULTS[0]) -> None:
        self.root = root
        self.at = at
        self.fault = fault
        self.calls: list[str] = []
        self._dead = False
        self._no_room = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def heal(self) -> None:
        """No further faults."""
        self.at = None
        self._dead = self._no_room = False

    def _do(self, name: str, call: Callable[[], Any], data: memoryview | None = None, handle: int = -1) -> Any:
        self.calls.append(name)
        if self._dead:
            raise Crash(name)
        if self.at is None:
            return call()
        fault, number = self.fault, len(self.calls)
        if fault.short:
            return self._short(number, call, data, handle)
        if number < self.at or (number > self.at and not fault.forever):
            return call()
        if fault.after and number == self.at:
            call()
        if fault.code is None:
            self._dead = True
            raise Crash(name)
        raise OSError(fault.code, os.strerror(fault.code), name)

    def _short(self, number: int, call: Callable[[], Any], data: memoryview | None, handle: int) -> Any:
        assert self.at is not None
        if data is None or number < self.at:
            return call()
        if number == self.at:
            self._no_room = True
            return os.write(handle, data[: len(data) // 2])
        if self._no_room:
            self._no_room = self.fault.forever
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call()

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        if Path(path).name == "lock" or not flags & os.O_CREAT:
            return os.open(path, flags, mode)
        made: list[int] = []

        def call() -> int:
            made.append(os.open(path, flags, mode))
            return made[0]

        try:
            return int(self._do(f"open {Path(path).name}", call))
        except OSError:
            for handle in made:
                os.close(handle)
            raise

    def write(self, handle: int, data: memoryview) -> int:
        return int(self._do("write", lambda: os.write(handle, data), data, handle))

    def ftruncate(self, handle: int, length: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{handle}")).name == "lock":
            return os.ftruncate(handle, length)
        return self._do("ftruncate", lambda: os.ftruncate(handle, length))

    def fsync(self, handle: int) -> None:
        self._do("fsync", lambda: None)

    def fdatasync(self, handle: int) -> None:
        self._do("fdatasync", lambda: None)

    def rename(self, source: Any, target: Any) -> None:
        self._do(f"rename {Path(target).name}", lambda: os.rename(source, target))

    def exchange(self, first: Path, second: Path) -> None:
        self._do(f"exchange {first.name}", lambda: exchange_names(first, second))

    def link(self, source: Any, target: Any, *, follow_symlinks: bool = True) -> None:
        self._do(f"link {Path(target).name}", lambda: os.link(source, target, follow_symlinks=follow_symlinks))

    def unlink(self, path: Any) -> None:
        self._do(f"unlink {Path(path).name}", lambda: os.unlink(path))

    def mkdir(self, path: Any) -> None:
        self._do(f"mkdir {Path(path).name}", lambda: os.mkdir(path))

    def rmdir(self, path: Any) -> None:
        self._do(f"rmdir {Path(path).name}", lambda: os.rmdir(path))


@contextlib.contextmanager
def faulty(system: FaultyOs) -> Iterator[FaultyOs]:
    """The disk's calls meet the fault."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.files, "os", system)
        patch.setattr(store.files, "exchange_names", system.exchange)
        yield system

"""Files kept open by a reader of another process than the service's, so that a compaction cannot take them away.

An open file lives as long as its handle, under the name that the kernel gives to it. Where there may not be so many
handles, or the system has no such names, files are read under their own names, and may vanish.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

__all__ = ["HANDLES", "Holding"]

HANDLES = Path("/proc/self/fd")
"""Where Linux shows the handles of a process."""

_SPARE = 256
"""Handles that are left to everything else."""


class Holding:
    """Open files, by name; a context that closes them. `path` tells where to read one."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._handles: dict[str, int] = {}

    def hold(self, names: Iterable[str]) -> None:
        """Open these files (relative to the data directory). `FileNotFoundError` where one is not there."""
        names = list(names)
        room = _room_for(len(names)) if HANDLES.is_dir() else 0
        for name in names:
            if len(self._handles) < room:
                self._handles[name] = os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC)

    def path(self, name: str) -> Path:
        """Where this process reads a file while it is held."""
        return HANDLES / str(self._handles[name]) if name in self._handles else self._root / name

    def close(self) -> None:
        """Let go."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def __enter__(self) -> Holding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _room_for(files: int) -> int:
    """How many files may be held, the limit raised for them where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files + _SPARE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return files if soft == resource.RLIM_INFINITY else max(soft - _SPARE, 0)

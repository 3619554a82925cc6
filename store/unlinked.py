"""Files that were removed and are still read: what they take is given back by the thread that removed them.

The last one to let go of a file without a name frees its blocks: 0.75 ms a MiB where it was measured, which is a second
for a large run. That would be whoever looked into it last, a commit for one, and with the interpreter held. So a handle
is kept here until nobody reads the file any more.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from store.files import Disk

__all__ = ["Unlinked"]


class Unlinked:
    """The removed files of one store. One thread uses it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._held: list[tuple[list[weakref.ref[object]], int]] = []

    def remove(self, files: Mapping[Path, Sequence[object]]) -> None:
        """Remove the names of these files, each with what reads it. One that cannot be is left for the next start."""
        for path, readers in files.items():
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._held.append(([*map(weakref.ref, readers)], handle))
                self._disk.remove(path)

    def free(self, *, all_of_them: bool = False) -> int:
        """Give back what nobody reads any more; how many are still held."""
        gone = [handle for readers, handle in self._held if all_of_them or all(reader() is None for reader in readers)]
        self._held = [(readers, handle) for readers, handle in self._held if handle not in gone]
        for handle in gone:
            os.close(handle)
        return len(self._held)

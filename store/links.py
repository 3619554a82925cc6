"""Private names of the sealed Parquet files: hard links by which readers of this process keep what they see.

A compaction takes files away from `records/` while a query may still have to open them. So snapshots name files by
their links in `internal/links/`, one for each sealed file, which stays until the file is retired and no snapshot holds
it. The links are derived: a start compares them with `records/` and makes those that are missing or of other files
(copying a data directory makes two files of two links). They are never synced.

Where the file system has no hard links, readers are given the files themselves, and nothing is compacted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

from store.files import NO_LINKS, Disk
from store.snapshot import SealedFile

__all__ = ["LINKS", "Links", "link_name"]

logger = logging.getLogger("oncelake.links")

LINKS = "internal/links"


def link_name(name: str) -> str:
    """The link's name in its folder, of a file's name relative to the data directory; as unique as that is."""
    path = Path(name)
    return f"{path.parent.name.removeprefix('date=')}.{path.name}"


class Links:
    """The links of one data directory. `work` says whether the file system has them."""

    def __init__(self, disk: Disk, root: Path) -> None:
        self.work = True
        self._disk = disk
        self._root = root
        self._directory = root / LINKS
        self._lock = threading.Lock()
        self._retired: list[tuple[weakref.ref[SealedFile], Path]] = []

    def path(self, name: str) -> Path:
        """Where this process reads a sealed file."""
        return self._directory / link_name(name) if self.work else self._root / name

    def restore(self, names: Sequence[str]) -> None:
        """At a start: one link for each of these files, and no others."""
        self._disk.make_directory(self._directory)
        with os.scandir(self._directory) as entries:
            there = {entry.name: entry.inode() for entry in entries}
        wanted = {link_name(name): name for name in names}
        for link, inode in there.items():
            if link not in wanted or (self._root / wanted[link]).stat().st_ino != inode:
                self._disk.remove(self._directory / link)
                wanted.setdefault(link, "")
            else:
                del wanted[link]
        self.add([name for name in wanted.values() if name])

    def add(self, names: Iterable[str]) -> None:
        """Link files that are in place; those that have a link already keep it."""
        for name in names:
            if not self.work:
                return
            try:
                with contextlib.suppress(FileExistsError):
                    self._disk.link(self._root / name, self._directory / link_name(name))
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                self.work = False
                logger.warning("%s has no hard links (%s): partitions are not compacted", self._root, error)

    def retire(self, files: Iterable[SealedFile]) -> None:
        """These files are in no view any more: their links go when the last snapshot has gone."""
        with self._lock:
            self._retired.extend((weakref.ref(file), file.path) for file in files)

    def clean(self) -> int:
        """Remove the links that nobody holds any more; how many are still held."""
        with self._lock:
            gone = [path for held, path in self._retired if held() is None]
            self._retired = [entry for entry in self._retired if entry[0]() is not None]
        for path in gone:
            with contextlib.suppress(FileNotFoundError):
                self._disk.remove(path)
        return len(self._retired)

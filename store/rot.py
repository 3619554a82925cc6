"""Rot: bytes that are not what they were when they were written, found by their checksums before they are used.

A Parquet file is read once before its first use in a process (`sound`); the scrub reads all of them again, slowly, and
the runs too. A damaged Parquet file stays where it is, and whatever needs it is refused. A damaged run is taken out of
the way (`condemned`), because the next start makes it anew.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import xxhash

from store.catalog import RunRow
from store.errors import MEND, CorruptionError, DamagedFileError
from store.files import Disk
from store.snapshot import SealedFile

__all__ = [
    "QUARANTINE",
    "Pace",
    "checksum_at",
    "condemned",
    "copied_to_quarantine",
    "known_damage",
    "prove",
    "quarantined",
    "sound",
]

logger = logging.getLogger("oncelake.rot")

QUARANTINE = "internal/quarantine"
_READ_BYTES = 1 << 20
_reading = threading.Lock()
"""One file is proven at a time: questions that begin together do not all read the same one."""


class Pace:
    """Bytes a second that are read at most; ends early where `stopping` is set."""

    def __init__(self, bytes_s: float | None = None, stopping: threading.Event | None = None) -> None:
        self._bytes_s = bytes_s
        self._stopping = stopping or threading.Event()

    @property
    def is_over(self) -> bool:
        """Whether it is to stop."""
        return self._stopping.is_set()

    def read(self, size: int, seconds: float) -> None:
        """Told after so many bytes, which took so long."""
        if self._bytes_s:
            self._stopping.wait(max(size / self._bytes_s - seconds, 0.0))


def checksum_at(path: Path, pace: Pace) -> tuple[int, str] | None:
    """Size and xxh3-64 (hex) of a file, read at a pace; None where that is over."""
    hasher = xxhash.xxh3_64()
    size = 0
    with path.open("rb") as file:
        while True:
            started = time.monotonic()
            if not (piece := file.read(_READ_BYTES)):
                return size, hasher.hexdigest()
            hasher.update(piece)
            size += len(piece)
            pace.read(len(piece), time.monotonic() - started)
            if pace.is_over:
                return None


def sound(files: Iterable[SealedFile]) -> None:
    """Prove files before their first use in this process; `DamagedFileError` names one that is not what it was.

    `OSError` where one cannot be read: it may have gone away, or the next try may succeed.
    """
    for file in files:
        if file.condition.is_proven:
            continue
        with _reading:
            if not file.condition.is_proven:
                prove(file, Pace())
        if file.condition.damage is not None:
            raise DamagedFileError(file.condition.damage, file=file.name)


def prove(file: SealedFile, pace: Pace) -> None:
    """Read a file, and remember in it what was found."""
    found = checksum_at(file.path, pace)
    if found is None:
        return
    if found == (file.bytes, file.sum):
        file.condition.is_proven, file.condition.damage = True, None
        return
    file.condition.is_proven = False
    file.condition.damage = (
        f"{file.name} is damaged: it has {found[0]} bytes with checksum {found[1]}, the catalog "
        f"(internal/catalog.sqlite) says {file.bytes} with {file.sum}. It holds {file.rows} records of seqs "
        f"{file.min_seq} to {file.max_seq}; stop the service, {MEND}"
    )
    logger.error("%s", file.condition.damage)


def known_damage(files: Sequence[SealedFile]) -> str | None:
    """What was found so far, or None."""
    return next((file.condition.damage for file in files if file.condition.damage is not None), None)


def condemned(disk: Disk, root: Path, row: RunRow, pace: Pace) -> CorruptionError | None:
    """Read a run; where it is not what it was it goes into quarantine, and the error says so. None where it is sound.

    A run that has been merged meanwhile is not there any more, which is no damage.
    """
    try:
        found = checksum_at(root / row.name, pace)
    except FileNotFoundError:
        return None
    if found is None or found == (row.bytes, row.sum):
        return None
    disk.make_directory(root / QUARANTINE)
    disk.rename(root / row.name, root / QUARANTINE / Path(row.name).name)
    disk.sync_directory((root / row.name).parent)
    disk.sync_directory(root / QUARANTINE)
    return CorruptionError(
        f"{root / row.name} was damaged and is in {QUARANTINE} now: start the service again, it makes the {row.kind} "
        "anew (or run `oncelake rebuild`)"
    )


def quarantined(disk: Disk, root: Path, path: Path, name: str) -> str:
    """Move a file into quarantine, durable, by this name or one like it that is free; the name that it got."""
    target = _free(disk, root, name)
    disk.rename(path, target)
    disk.sync_directory(root / QUARANTINE)
    disk.sync_directory(path.parent)
    return str(target.relative_to(root))


def copied_to_quarantine(disk: Disk, root: Path, name: str) -> str | None:
    """Copy a file into quarantine, durable; the name of the copy, None where there is no file."""
    if not (root / name).exists():
        return None
    target = _free(disk, root, name.replace("/", "-"))
    with (root / name).open("rb") as file:
        disk.write(target, iter(lambda: file.read(_READ_BYTES), b""))
    disk.sync_directory(root / QUARANTINE)
    return str(target.relative_to(root))


def _free(disk: Disk, root: Path, name: str) -> Path:
    """A path in quarantine that nothing has."""
    disk.make_directory(root / QUARANTINE)
    names = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(2)))
    return next(root / QUARANTINE / free for free in names if not (root / QUARANTINE / free).exists())

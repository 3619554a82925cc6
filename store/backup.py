"""A backup: a copy of a data directory as of its last commit, beside a running service or after a kill.

Everything that the copy needs is opened first, at one moment (catalog, then journal, then the files that they name),
and copied then: what a merge, a compaction or retention removes meanwhile lives on under its handle. Where there may
not be so many handles a file can vanish; then a fresh moment is taken, and what was copied and is still named stays.

Every byte is held against the checksum that catalog and journal have for it. The copy is made under another name,
synced, and gets its own name last. The source is only read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec
import xxhash

from store.catalog import Catalog, FileRow, RunRow
from store.errors import MEND, CorruptionError, OncelakeError
from store.files import Disk, remove_directory
from store.holding import Holding
from store.identity import IDENTITY_FILE, load_identity
from store.journal import JournalContents, read_journal
from store.log import FEEDS
from store.recovery import LOGS, JournalState, state_of
from store.verification.catalog import CatalogDamageError, CatalogView, read_catalog
from store.verification.report import VanishedError

__all__ = ["PARTIAL", "Backup", "back_up"]

PARTIAL = ".partial"
"""Added to the name of a copy that is not complete."""

_TRIES = 50
_WAIT_S = 0.05
_READ_BYTES = 4 << 20
_SMALL = ("processed/**/*.receipt.json", "failed/**/*.receipt.json")
_SINKS = Path("internal/forward")
_CHECKPOINT, _LETTERS = ".json", ".dead.jsonl"


@dataclass(frozen=True)
class Backup:
    """What a copy holds: everything up to `seq`, in so many files and bytes."""

    seq: int
    flushed: int
    files: int
    bytes: int
    seconds: float


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class _Part:
    """The first `bytes` of a file, whose checksum must be `sum`."""

    name: str
    bytes: int
    sum: str
    hasher: Callable[[], _Hash] = xxhash.xxh3_64
    is_optional: bool = False
    """A file of the inbox: it may be another one by now, and is left out then."""


@dataclass(frozen=True)
class _Moment:
    """A state of the source: nothing in it changes any more, but files may go away."""

    catalog: CatalogView
    journal: JournalContents
    state: JournalState

    def parts(self) -> Iterator[_Part]:
        """Everything that is copied and has a checksum; what goes away soonest comes first."""
        for run in self.catalog.runs:
            yield _Part(run.name, run.bytes, run.sum)
        for log in LOGS:
            for segment in self.state.segments[log]:
                yield _Part(segment.path, segment.bytes, segment.sum)
            if log in self.state.ends:
                end = self.state.ends[log]
                yield _Part(end.path, end.end, end.sum)
        for known in self.state.inputs.values():
            if known.sha256 and not known.path.startswith("/"):
                yield _Part(f"inbox/{known.path}", known.bytes, known.sha256, hashlib.sha256, is_optional=True)
        for file in self.catalog.files:
            yield _Part(file.name, file.bytes, file.sum)


def back_up(root: Path, target: Path, disk: Disk) -> Backup:
    """Copy the data directory `root` to `target`, which must be new or empty.

    `CorruptionError` where bytes of the source are not those that were committed: such a copy would be none.
    """
    started = time.monotonic()
    root, target = root.absolute(), target.absolute()
    partial = target.with_name(target.name + PARTIAL)
    _check(root, target, partial)
    disk.make_directory(partial)
    try:
        with Holding(root) as holding:
            moment = _Copy(disk, root, partial, holding).everything()
        files, size = _sync_all(disk, partial)
        disk.rename(partial, target)
        disk.sync_directory(target.parent)
    except BaseException:
        if partial.is_dir():
            remove_directory(disk, partial)
        raise
    return Backup(moment.state.seq, moment.catalog.flushed, files, size, time.monotonic() - started)


def _check(root: Path, target: Path, partial: Path) -> None:
    """`OncelakeError` where this is no data directory, or that no place for a copy."""
    if load_identity(root) is None:
        raise OncelakeError(f"{root} is no data directory of oncelake")
    if target.resolve().is_relative_to(root.resolve()) or root.resolve().is_relative_to(target.resolve()):
        raise OncelakeError(f"a backup of {root} cannot be in {target}: name a directory elsewhere")
    if os.path.lexists(partial):
        raise OncelakeError(f"{partial} is what an interrupted backup left, or one that still runs: remove it first")
    if not os.path.lexists(target):
        return
    if not target.is_dir() or target.is_symlink():
        raise OncelakeError(f"{target} is no directory: name a new one")
    if os.path.ismount(target):
        raise OncelakeError(f"{target} is where a device is mounted: name a directory in it")
    if any(target.iterdir()):
        raise OncelakeError(f"{target} is not empty: name a new directory, a backup adds to none")


class _Copy:
    """One copy under way: what is there already is not copied again in a later round."""

    def __init__(self, disk: Disk, root: Path, target: Path, holding: Holding) -> None:
        self._disk = disk
        self._root = root
        self._target = target
        self._holding = holding
        self._copied: dict[str, _Part] = {}

    def everything(self) -> _Moment:
        """All of it; returns the moment that the copy stands for."""
        # Sinks come first, so that none is ahead of the commits; receipts last: a file may be finished meanwhile.
        for sink in sorted(self._sinks()):
            self._copy_sink(sink)
        for attempt in range(_TRIES):
            try:
                moment = self._take()
                self._fill(moment)
                break
            except FileNotFoundError:
                if attempt + 1 == _TRIES:
                    raise
                time.sleep(_WAIT_S)
        self._write(IDENTITY_FILE, (self._root / IDENTITY_FILE).read_bytes())
        for feed in FEEDS:
            self._write(f"outbox/{feed}/committed.json", b'{"seq": %d}\n' % moment.state.seq)
        for pattern in _SMALL:
            for path in sorted(self._root.glob(pattern)):
                self._write(str(path.relative_to(self._root)), path.read_bytes())
        self._write_catalog(moment.catalog)
        return moment

    def _sinks(self) -> set[str]:
        """The names of the sinks that have a checkpoint or dead letters."""
        folder = self._root / _SINKS
        return {path.name.removesuffix(end) for end in (_CHECKPOINT, _LETTERS) for path in folder.glob(f"*{end}")}

    def _copy_sink(self, name: str) -> None:
        """The checkpoint of a sink, and the dead letters that fit it.

        The forwarder buries first and moves the checkpoint then, so letters that are opened after the checkpoint was
        read hold all that it calls done. It also counts the bytes of them that went out again, and says that none are
        before it removes them: the checkpoint must be the same one after they were opened.
        """
        path, letters_path = (self._root / _SINKS / f"{name}{end}" for end in (_CHECKPOINT, _LETTERS))
        for _ in range(_TRIES):
            checkpoint = _bytes_of(path)
            with _opened(letters_path) as letters:
                size = os.fstat(letters.fileno()).st_size if letters else 0
                if _bytes_of(path) != checkpoint:
                    continue
                if letters and size:
                    self._write(str(_SINKS / letters_path.name), _pieces(letters, size))
            if checkpoint is not None:
                self._write(str(_SINKS / path.name), checkpoint)
            return
        raise OncelakeError(f"{path} changes faster than it can be read: try again")

    def _take(self) -> _Moment:
        """The catalog first: what it says is flushed is committed, and the journal read after it covers that."""
        for attempt in range(_TRIES):
            try:
                with tempfile.TemporaryDirectory(prefix="oncelake-backup-") as scratch:
                    catalog = read_catalog(self._root, Path(scratch)) or CatalogView()
                there = {row.name for _, row in catalog.swaps if (self._root / row.name).exists()}
                catalog = catalog.settled(there)
                journal = read_journal(self._root / "internal" / "journal")
                if journal is None:
                    raise OncelakeError(f"{self._root} holds nothing yet: there is nothing to back up")
                moment = _Moment(catalog, journal, state_of(journal))
                self._holding.close()
                self._holding.hold(part.name for part in moment.parts() if self._is_wanted(part))
                self._copy_journal(journal)
            except (FileNotFoundError, VanishedError, CorruptionError, CatalogDamageError, sqlite3.Error) as error:
                if attempt + 1 == _TRIES:
                    raise CorruptionError(f"{self._root} cannot be copied: {error}. Run `oncelake verify`.") from error
                time.sleep(_WAIT_S)
            else:
                self._check_fit(moment)
                return moment
        raise AssertionError

    def _is_wanted(self, part: _Part) -> bool:
        return not part.is_optional or (self._root / part.name).is_file()

    def _check_fit(self, moment: _Moment) -> None:
        """The catalog must not know more than the journal, nor less than the files: that is for a start to mend."""
        catalog, state = moment.catalog, moment.state
        if catalog.frame > moment.journal.frames[-1].number or catalog.flushed > state.seq:
            raise CorruptionError(
                f"the journal of {self._root} ends at seq {state.seq}, the catalog knows seq {catalog.flushed}: the "
                "end of the journal was lost. Run `oncelake verify`."
            )
        if catalog.frame < 0 and any((self._root / "records").rglob("*.parquet")):
            raise CorruptionError(f"the catalog of {self._root} is lost: start the service once, it makes it anew")

    def _fill(self, moment: _Moment) -> None:
        """Copy what is not there yet, remove what is not named any more."""
        wanted = set()
        for part in moment.parts():
            if not self._is_wanted(part):
                continue
            wanted.add(part.name)
            if self._copied.get(part.name) != part:
                self._copy(part)
        for name in set(self._copied) - wanted:
            self._disk.remove(self._target / name)
            del self._copied[name]

    def _copy(self, part: _Part) -> None:
        hasher = part.hasher()
        size = 0

        def pieces() -> Iterator[bytes]:
            nonlocal size
            while piece := file.read(min(_READ_BYTES, part.bytes - size)):
                hasher.update(piece)
                size += len(piece)
                yield piece

        target = self._target / part.name
        with self._holding.path(part.name).open("rb") as file:
            self._disk.make_directory(target.parent)
            self._disk.write(target, pieces())
        if (size, hasher.hexdigest()) != (part.bytes, part.sum):
            if part.is_optional:
                self._disk.remove(target)
                return
            raise CorruptionError(
                f"{self._root / part.name} is damaged: {size} bytes with checksum {hasher.hexdigest()}, {part.bytes} "
                f"with {part.sum} are committed. Nothing was backed up; stop the service, {MEND}"
            )
        self._copied[part.name] = part

    def _copy_journal(self, journal: JournalContents) -> None:
        """The frames that are there, without the beginning of another. `FileNotFoundError` after a fold."""
        with journal.path.open("rb") as file:
            data = file.read(journal.length)
        if data[-len(journal.digest) :] != journal.digest:
            raise CorruptionError(f"{journal.path} changed while it was read")
        directory = self._target / "internal" / "journal"
        self._disk.make_directory(directory)
        for older in directory.iterdir():
            self._disk.remove(older)
        self._disk.write(directory / journal.path.name, data)

    def _write(self, name: str, data: bytes | Iterator[bytes]) -> None:
        self._disk.make_directory((self._target / name).parent)
        self._disk.write(self._target / name, data)

    def _write_catalog(self, view: CatalogView) -> None:
        """A catalog of its own: that of the source may be in the middle of a flush."""
        if view.frame < 0:
            return
        files = [msgspec.convert(row.__dict__, FileRow) for row in view.files]
        runs = [msgspec.convert(row.__dict__, RunRow) for row in view.runs]
        catalog = Catalog(self._target / "internal" / "catalog.sqlite")
        try:
            catalog.make_anew(files, runs, view.frame, view.digest, view.flushed)
        finally:
            catalog.close()


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _opened(path: Path) -> contextlib.AbstractContextManager[BinaryIO | None]:
    """What is renamed over a file or removed meanwhile leaves its bytes under the handle."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        return contextlib.nullcontext()


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    while piece := file.read(min(_READ_BYTES, size)):
        size -= len(piece)
        yield piece


def _sync_all(disk: Disk, directory: Path) -> tuple[int, int]:
    """Make all names below a directory durable; how many files it holds, and bytes."""
    files = size = 0
    for path in directory.iterdir():
        if path.is_dir():
            below = _sync_all(disk, path)
            files, size = files + below[0], size + below[1]
        else:
            files, size = files + 1, size + path.stat().st_size
    disk.sync_directory(directory)
    return files, size

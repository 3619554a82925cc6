"""Whatever is missing or damaged of a stopped store, made again from the other place in which its records are.

Every record is on disk twice: in the notification log while that is kept, and in the Parquet once it is flushed.
Parquet files come from the log (`store.mend`), segments of both feeds from the stored records (`outbox.remake`). The
journal has length and checksum of each segment, so what is made is proven to the byte, or refused. It may end anywhere
and be run again: nothing is replaced before what takes its place is whole and synced.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import msgspec
import pyarrow as pa
import xxhash

from outbox.remake import Origin, remade
from store.acceptance import accept_letters
from store.catalog import Catalog, CatalogDamagedError, FileRow
from store.errors import GIVE_UP, CorruptionError, DamagedFileError, OncelakeError
from store.files import Disk, is_disk_full, remove_directory
from store.hashing import Hasher
from store.journal import JournalContents, read_journal
from store.log import check_committed, lines_after, parse_notifications
from store.mend import kept, mend_files, was
from store.recovery import JournalState, fitting, open_catalog, state_of
from store.refill import refill
from store.remake import REMAKE
from store.rot import quarantined
from store.salvage import Salvage
from store.segments import LogSegment, examined_segments
from store.snapshot import SealedFile, Snapshot
from store.stopped import stopped_store

__all__ = ["Mended", "mend"]

_BLOCK_BYTES = 1 << 20
_MEMORY = "192MB"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Mended:
    """What was looked at, how many things were done, and what can be made from nothing that is left."""

    files: int
    segments: int
    done: int
    hopeless: list[str]
    seconds: float


def mend(root: Path, disk: Disk, tell: Tell, *, give_up_letters: bool = False) -> Mended:
    """Read everything, and make whole what is not; `tell` is told each thing that was done.

    Of damaged dead letters nothing is left but the lines that can be read, if that is accepted (`give_up_letters`).

    `StoreInUseError` while a service has the directory; `CorruptionError` where the journal is damaged, which nothing
    else can stand for.
    """
    started = time.monotonic()
    done = 0

    def count(what: str) -> None:
        nonlocal done
        done += 1
        tell(what)

    with stopped_store(disk, root) as (hasher, contents):
        state = state_of(contents)
        check_committed(root, state.seq)
        with tempfile.TemporaryDirectory(prefix="oncelake-mend-") as temp:
            try:
                store = _Store(disk, root, state, Path(temp), count, give_up_letters)
                files, segments, hopeless = store.mended(hasher, contents)
            except (duckdb.Error, sqlite3.Error) as error:
                if is_disk_full(error) or "No space left" in str(error):
                    raise OSError(errno.ENOSPC, f"{root} is not mended to its end, run it again: {error}") from error
                raise OncelakeError(f"{root} is not mended to its end, run it again: {error}") from error
    return Mended(files, segments, done, hopeless, time.monotonic() - started)


def _catalog(disk: Disk, root: Path, contents: JournalContents) -> Catalog | None:
    """The open catalog, whatever became of the files that it names; None where it is lost or does not fit."""
    path = root / "internal" / "catalog.sqlite"
    if path.exists():
        catalog = None
        try:
            catalog = Catalog(path, fsync=disk.fsync)
            names = {row.name for row in fitting(disk, root, catalog, contents, whole=False).files}
        except CatalogDamagedError:
            if catalog is not None:
                catalog.close()
        except BaseException:
            if catalog is not None:
                catalog.close()
            raise
        else:
            if names >= {str(file.relative_to(root)) for file in root.glob("records/**/*.parquet")}:
                return catalog
            catalog.close()
    return None


class _Store:
    """A stopped store that is being mended."""

    def __init__(
        self, disk: Disk, root: Path, state: JournalState, temp: Path, tell: Tell, give_up_letters: bool
    ) -> None:
        self._give_up_letters = give_up_letters
        self._disk = disk
        self._root = root
        self._state = state
        self._temp = temp
        self._tell = tell

    def mended(self, hasher: Hasher, contents: JournalContents) -> tuple[int, int, list[str]]:
        """How many Parquet files and segments were looked at, and what is hopeless."""
        log = examined_segments(self._root, self._state, "outbox/notifications")
        catalog = _catalog(self._disk, self._root, contents)
        is_lost = catalog is None
        if catalog is None:
            refilled = refill(self._disk, self._root, hasher, log, self._state.seq, self._tell)
            files, flushed, hopeless = refilled.files, refilled.flushed, refilled.hopeless
        else:
            try:
                hopeless = self._mend_files(catalog, log, hasher)
                meta, files, _, _ = catalog.read()
            finally:
                catalog.close()
            flushed = meta.flushed if meta is not None else 0
        hopeless += self._mend_notifications(log, files, flushed)
        alerts = examined_segments(self._root, self._state, "outbox/alerts")
        hopeless += self._mend_alerts(alerts, files, flushed)
        letters = examined_segments(self._root, self._state, "rejected")
        damaged = [each for each in letters if each.damage is not None]
        if damaged and self._give_up_letters:
            accept_letters(self._disk, self._root, contents, self._state, damaged, self._tell)
            contents = read_journal(self._root / "internal" / "journal") or contents
        elif damaged:
            hopeless += [f"{each.path} {each.damage}: dead letters are nowhere else; {GIVE_UP}" for each in damaged]
        if not hopeless:
            for path in (self._root / "internal").glob("catalog.sqlite*") if is_lost else ():
                quarantined(self._disk, self._root, path, path.name)
            open_catalog(self._disk, self._root, hasher, contents).catalog.close()
        return len(files), len(log) + len(alerts) + len(letters), hopeless

    def _mend_files(self, catalog: Catalog, log: Sequence[LogSegment], hasher: Hasher) -> list[str]:
        """Parquet files from the log."""
        meta, files, runs, _ = catalog.read()
        flushed = meta.flushed if meta is not None else 0

        def prove(there: Sequence[SealedFile], segment: LogSegment) -> bool:
            origin = Origin(Snapshot(self._state.seq, flushed, tuple(there), ()), self._state.rules)
            last = min(segment.last, flushed)
            try:
                with contextlib.closing(
                    remade(origin, "notifications", segment.first, last, self._temp, memory=_MEMORY)
                ) as found:
                    pieces = _Pieces(self._root, segment, _Lines(found), flushed)
                    for _ in pieces:
                        pass
            except (CorruptionError, FileNotFoundError):
                return False
            return pieces.are_as_committed

        salvage = Salvage(self._root, hasher, [row for row in runs if row.kind == "index"])
        return mend_files(self._disk, self._root, catalog, files, log, salvage, prove, self._tell)

    def _mend_notifications(self, log: Sequence[LogSegment], files: Sequence[FileRow], flushed: int) -> list[str]:
        """Segments from the Parquet. Lines above what is flushed are in no other place: they are taken as they are."""
        return self._remake("notifications", log, self._snapshot(files, flushed, ()), flushed)

    def _mend_alerts(self, alerts: Sequence[LogSegment], files: Sequence[FileRow], flushed: int) -> list[str]:
        """Segments from the Parquet, and from the notification log above what is flushed."""
        if all(each.damage is None for each in alerts):
            return []
        hot: list[pa.Table] = []
        upto = flushed
        for each in examined_segments(self._root, self._state, "outbox/notifications", above=flushed):
            if each.damage is not None:
                break
            pieces = lines_after(self._root, [(each.path, each.bytes)], upto)
            hot.extend(parse_notifications(data) for _, data in pieces)
            upto = each.last
        return self._remake("alerts", alerts, self._snapshot(files, flushed, tuple(hot)), upto)

    def _snapshot(self, files: Sequence[FileRow], flushed: int, hot: tuple[pa.Table, ...]) -> Snapshot:
        sealed = tuple(SealedFile(self._root / row.name, *msgspec.structs.astuple(row)) for row in files)
        return Snapshot(self._state.seq, flushed, sealed, hot)

    def _remake(self, feed: str, segments: Sequence[LogSegment], snapshot: Snapshot, upto: int) -> list[str]:
        """Damaged segments of a feed again, neighbours in one go: the records before them are read once for all."""
        damaged = [each for each in segments if each.damage is not None]
        hopeless = [
            f"{each.path} {each.damage}: seqs {each.first} to {each.last} are not in the Parquet yet, and nowhere else"
            for each in damaged
            if each.first > upto
        ]
        origin = Origin(snapshot, self._state.rules)
        for is_wanted, group in itertools.groupby(segments, lambda each: each in damaged and each.first <= upto):
            if is_wanted:
                hopeless += self._remake_neighbours(origin, feed, list(group), upto)
        return hopeless

    def _remake_neighbours(self, origin: Origin, feed: str, damaged: Sequence[LogSegment], upto: int) -> list[str]:
        hopeless: list[str] = []
        first, last = damaged[0].first, min(damaged[-1].last, upto)
        with contextlib.closing(remade(origin, feed, first, last, self._temp, memory=_MEMORY)) as found:
            lines = _Lines(found)
            for place, each in enumerate(damaged):
                try:
                    why = self._remake_one(each, lines, upto)
                except (CorruptionError, FileNotFoundError) as error:  # records that they are made of are lost
                    why = _needed(error)
                    return hopeless + [f"{left.path} {left.damage}: {why}" for left in damaged[place:]]
                hopeless += [why] if why else []
        return hopeless

    def _remake_one(self, segment: LogSegment, lines: _Lines, upto: int) -> str | None:
        """One segment in its place; why it cannot be, where what was made is not what was committed."""
        path = self._root / segment.path
        staged = self._root / REMAKE / f"{segment.log.replace('/', '-')}-{path.name}"
        pieces = _Pieces(self._root, segment, lines, upto)
        self._disk.make_directory(staged.parent)
        try:
            self._disk.write(staged, pieces)
            if not pieces.are_as_committed:
                return pieces.difference()
            where = None
            if path.exists():
                where = quarantined(self._disk, self._root, path, staged.name)
            self._disk.rename(staged, path)
            self._disk.sync_directory(path.parent)
        finally:
            remove_directory(self._disk, self._root / REMAKE)
        self._tell(
            f"{segment.path} {was(segment.damage or '')}: its lines of seqs {segment.first} to {segment.last} are made "
            f"again from the stored records, to the byte{kept(where)}"
        )
        return None


class _Pieces:
    """The bytes of a segment made again: lines up to a seq, then what the file itself has above it."""

    def __init__(self, root: Path, segment: LogSegment, lines: _Lines, upto: int) -> None:
        self._path = root / segment.path
        self._segment = segment
        self._lines = lines
        self._upto = min(segment.last, upto)
        self._hasher = xxhash.xxh3_64()
        self._size = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._lines.upto(self._upto):
            yield self._counted(piece)
        if self._segment.last > self._upto:
            for piece in _tail(self._path, self._size, self._segment.bytes):
                yield self._counted(piece)

    def _counted(self, piece: bytes) -> bytes:
        self._hasher.update(piece)
        self._size += len(piece)
        return piece

    @property
    def are_as_committed(self) -> bool:
        """Whether those that were taken are what the journal says."""
        return (self._size, self._hasher.hexdigest()) == (self._segment.bytes, self._segment.sum)

    def difference(self) -> str:
        """What they are instead."""
        segment = self._segment
        hot = f"; its lines above seq {self._upto} are nowhere else" if segment.last > self._upto else ""
        return (
            f"{segment.path} {segment.damage}: made again from the records of seqs {segment.first} to {self._upto} it "
            f"has {self._size} bytes with checksum {self._hasher.hexdigest()}, {segment.bytes} with {segment.sum} are "
            f"committed{hot}"
        )


def _needed(error: CorruptionError | FileNotFoundError) -> str:
    """Why lines could not be made."""
    file = error.file if isinstance(error, DamagedFileError) else getattr(error, "filename", None)
    return f"it is made of the records of {file} as well, which is lost" if file else str(error)


class _Lines:
    """Lines that are made once, in order, and taken by one segment after another."""

    def __init__(self, lines: Iterator[tuple[int, bytes]]) -> None:
        self._lines = lines
        self._next: tuple[int, bytes] | None = None

    def upto(self, last: int) -> Iterator[bytes]:
        """Blocks of those up to a seq."""
        block = bytearray()
        while (found := self._next or next(self._lines, None)) is not None:
            self._next = found
            if found[0] > last:
                break
            self._next = None
            block += found[1] + b"\n"
            if len(block) >= _BLOCK_BYTES:
                yield bytes(block)
                block.clear()
        yield bytes(block)


def _tail(path: Path, begin: int, end: int) -> Iterator[bytes]:
    """The bytes of a file from one place to another, as far as they are there."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(begin)
        while begin < end and (piece := file.read(min(_BLOCK_BYTES, end - begin))):
            begin += len(piece)
            yield piece

"""Starts over thousands of like states, made cheap: functions of bytes alone are remembered.

Each is asked with the bytes that were read in this start, and answers as it did to the same bytes before. What it
raises is not remembered.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pathlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

import store.hot
import store.kinds
import store.lookup
import store.recovery
import store.remake
import store.rollups
import store.store
import store.unflushed
from store.catalog import FileRow
from store.hashing import Hasher
from tests.support.outcome import bytes_of

__all__ = ["cheap_starts"]

_MANY = 16_384
_FEW = 1_024


@contextlib.contextmanager
def cheap_starts() -> Iterator[None]:
    """No log, of which there are megabytes; garbage is looked for seldom, and not among what stays; one thread."""
    before, threads = gc.get_threshold(), (pa.cpu_count(), pa.io_thread_count())
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    logging.disable(logging.ERROR)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    try:
        with _remembered():
            yield
    finally:
        logging.disable(logging.NOTSET)
        pa.set_cpu_count(threads[0])
        pa.set_io_thread_count(threads[1])
        gc.set_threshold(*before)
        gc.unfreeze()


@contextlib.contextmanager
def _remembered() -> Iterator[None]:
    """What a start parses, hashes and maps, and what it reads of Parquet files, is remembered meanwhile."""
    parse = _by(store.remake.parse_notifications, lambda data: xxhash.xxh3_128_digest(data))
    make = _by(store.remake.hashed, lambda hasher, rows: (_keys(hasher), _digest(rows)))
    read = _by(store.unflushed._read, lambda hasher, lines: (_keys(hasher), xxhash.xxh3_128_digest(lines)))
    run = _by(store.kinds.map_run, lambda path, name, *schemas: (name, _read(path)))
    rollup = _by(store.rollups.map_rollup, lambda path, *named: (named, _read(path)))
    sums = _by(store.rollups.of_records, lambda tables: tuple(_digest(table) for table in tables))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.store, "Hasher", _by(store.store.Hasher, lambda *keys: keys))
        lookup = _by(store.lookup._in_file, lambda file, seqs: (_read(file.path), tuple(seqs)))
        patch.setattr(store.lookup, "_in_file", lookup)
        patch.setattr(store.lookup, "pq", SimpleNamespace(ParquetFile=_by(_Parquet, _read)))
        patch.setattr(store.hot, "combined", _by_identity(store.hot.combined))
        patch.setattr(store.hot, "_concatenated", _by_identity(store.hot._concatenated))
        patch.setattr(store.kinds, "map_run", run)
        patch.setattr(store.rollups, "map_rollup", rollup)
        patch.setattr(store.rollups, "of_records", sums)
        patch.setattr(store.remake, "_groups", _groups())
        for name in ("flush_of", "day_of", "describe"):
            function = getattr(store.recovery, name)
            patch.setattr(store.recovery, name, _by(function, lambda path, *named: (named, _read(path))))
        if flavour := getattr(pathlib, "_posix_flavour", None):  # of Python 3.11: paths were a fifth of a start
            patch.setattr(flavour, "parse_parts", _by(flavour.parse_parts, tuple))
            child = _by(pathlib.PurePath._make_child, lambda path, names: (type(path), path, names))
            patch.setattr(pathlib.PurePath, "_make_child", child)
            patch.setattr(pathlib.PurePath, "__truediv__", _below(pathlib.PurePath.__truediv__))
            patch.setattr(Path, "glob", _found(Path.glob))
            patch.setattr(Path, "read_bytes", bytes_of)
        patch.setattr(store.remake, "parse_notifications", parse)
        patch.setattr(store.remake, "hashed", make)
        patch.setattr(store.unflushed, "_read", read)
        yield


def _groups() -> Callable[..., Iterator[tuple[FileRow, pa.Table]]]:
    """The row groups of Parquet files; those of each file are remembered."""
    read = store.remake._groups
    of_file = _by(
        lambda root, row, columns: [group for _, group in read(root, [row], columns)],
        lambda root, row, columns: (tuple(columns), _read(root / row.name)),
    )

    def groups(root: Path, files: Collection[FileRow], columns: list[str]) -> Iterator[tuple[FileRow, pa.Table]]:
        for row in files:
            yield from ((row, group) for group in of_file(root, row, columns))

    return groups


class _Parquet:
    """A Parquet file that is read once, for each row group and choice of columns that is asked for."""

    def __init__(self, path: Path) -> None:
        self._found: dict[tuple[int, tuple[str, ...]], pa.Table] = {}
        self._file = pq.ParquetFile(pa.BufferReader(bytes_of(path)))
        self.num_row_groups = self._file.num_row_groups

    def __enter__(self) -> _Parquet:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read_row_group(self, group: int, columns: list[str]) -> pa.Table:
        named = (group, tuple(columns))
        if named not in self._found:
            self._found[named] = self._file.read_row_group(group, columns=columns)
        return self._found[named]


def _read(path: Path) -> bytes:
    """A digest of what a file holds now."""
    return xxhash.xxh3_128_digest(bytes_of(path))


def _below(join: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Paths below others: of the same path and name the same object, which knows its text already."""
    found: dict[tuple[int, Any], tuple[Any, Any]] = {}

    def joined(path: Any, name: Any) -> Any:
        known = found.get((id(path), name))
        if known is None:
            if len(found) >= _MANY:
                found.clear()
            found[id(path), name] = known = (path, join(path, name))  # as long as it is here, nothing else has its id
        return known[1]

    return joined


def _found(glob: Callable[[Path, str], Iterator[Path]]) -> Callable[[Path, str], Iterator[Path]]:
    """`Path.glob` for the end of a name, in a folder or in all folders below one; other patterns as before."""

    def below(folder: Path, end: str) -> Iterator[Path]:
        for name in _names(folder):
            if name.endswith(end):
                yield folder / name
        with os.scandir(folder) as entries:
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        for name in folders:
            yield from below(folder / name, end)

    def found(path: Path, pattern: str) -> Iterator[Path]:
        folder, _, end = pattern.rpartition("*")
        if any(special in end for special in "/?["):
            return glob(path, pattern)
        if not folder:
            return iter([path / name for name in _names(path) if name.endswith(end)])
        above, is_deep, rest = folder.partition("/**/")
        if is_deep and not rest and not any(special in above for special in "*?["):
            return below(path / above, end) if (path / above).is_dir() else iter(())
        return glob(path, pattern)

    return found


def _names(folder: Path) -> list[str]:
    """The names in a folder; none where it is not there."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _by_identity(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `_by`, for lists of what is remembered itself, or made once: of the same objects the same comes out."""
    found: dict[Any, tuple[Any, Any]] = {}

    def asked(pieces: list[Any], *more: Any) -> Any:
        named = (*map(id, pieces), *more)
        known = found.get(named)
        if known is None:
            if len(found) >= _FEW:
                found.clear()
            found[named] = known = (pieces, function(pieces, *more))  # while they are here, nothing else has their ids
        return known[1]

    return asked


def _by(function: Callable[..., Any], key: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its results remembered by a key of its arguments."""
    found: dict[Any, Any] = {}

    def asked(*arguments: Any) -> Any:
        named = key(*arguments)
        try:
            return found[named]
        except KeyError:
            pass
        if len(found) >= _MANY:
            found.clear()
        found[named] = made = function(*arguments)
        return made

    return asked


def _keys(hasher: Hasher) -> tuple[bytes, int]:
    return hasher._all_keys.tobytes(), int(hasher._mask)


def _digest(rows: pa.Table) -> bytes:
    hasher = xxhash.xxh3_128()
    for column in rows.columns:
        for chunk in column.chunks:
            hasher.update(b"%d %d " % (chunk.offset, len(chunk)))
            for buffer in chunk.buffers():
                hasher.update(b"-" if buffer is None else buffer)
    return hasher.digest()

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
from typing import Any

import pyarrow as pa
import pytest
import xxhash

import store.kinds
import store.lookup
import store.recovery
import store.remake
import store.rollups
import store.store
from store.catalog import FileRow
from store.hashing import Hasher

__all__ = ["cheap_starts"]

_MANY = 16_384


@contextlib.contextmanager
def cheap_starts() -> Iterator[None]:
    """No log, of which there are megabytes; garbage is looked for seldom, and not among what stays; one thread."""
    before, threads = gc.get_threshold(), (pa.cpu_count(), pa.io_thread_count())
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
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
    parse = _by(store.recovery.parse_notifications, lambda data: xxhash.xxh3_128_digest(data))
    make = _by(store.recovery.hashed, lambda hasher, rows: (_keys(hasher), _digest(rows)))
    run = _by(store.kinds.map_run, lambda path, name: (name, _read(path)))
    rollup = _by(store.rollups.map_rollup, lambda path, *named: (named, _read(path)))
    sums = _by(store.rollups.of_records, lambda tables: tuple(_digest(table) for table in tables))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.store, "Hasher", _by(store.store.Hasher, lambda *keys: keys))
        lookup = _by(store.lookup._in_file, lambda file, seqs: (_read(file.path), tuple(seqs)))
        patch.setattr(store.lookup, "_in_file", lookup)
        patch.setattr(store.kinds, "map_run", run)
        patch.setattr(store.remake, "map_run", run)
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
        for module in (store.recovery, store.remake):
            patch.setattr(module, "parse_notifications", parse)
            patch.setattr(module, "hashed", make)
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


def _read(path: Path) -> bytes:
    """A digest of what a file holds now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return xxhash.xxh3_128_digest(os.read(handle, os.fstat(handle).st_size))
    finally:
        os.close(handle)


def _by(function: Callable[..., Any], key: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its results remembered by a key of its arguments."""
    found: dict[Any, Any] = {}

    def asked(*arguments: Any) -> Any:
        named = key(*arguments)
        if named not in found:
            if len(found) >= _MANY:
                found.clear()
            found[named] = function(*arguments)
        return found[named]

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

"""What a start has left of a data directory, on disk and in memory, as one digest.

Few outcomes come of many states: a power cut leaves one of thousands of torn files, and the start cuts them all back to
the same commit. Stores with the same digest answer every check alike, so that each outcome need be checked once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import xxhash

from store.log import Log
from store.store import Store

__all__ = ["bytes_of", "outcome_of"]

_APART = ("/lock", "/internal/catalog.sqlite", "/internal/quarantine")
"""Paths that begin so: the owner, the catalog (SQLite gives its pages), and what is kept for people alone."""

_LINKS = "/internal/links/"


def outcome_of(store: Store) -> bytes:
    """Equal for stores that hold the same, to the byte, in every file, in the catalog and in memory."""
    pieces = [*_on_disk(str(store.root)), store._catalog._db.serialize(), *_in_memory(store)]
    sizes = [memoryview(piece).nbytes for piece in pieces]
    return xxhash.xxh3_128_digest(b"".join([repr(sizes).encode(), *pieces]))


def _on_disk(root: str) -> Iterator[bytes]:
    """The names and bytes of all files; of the private links, of which file each is another name."""
    names: dict[int, str] = {}
    links: list[tuple[str, int]] = []
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(root + folder) as entries:
            found = sorted((f"{folder}/{entry.name}", entry.is_dir(), entry.inode()) for entry in entries)
        for name, is_directory, inode in found:
            if name.startswith(_APART):
                continue
            yield name.encode()
            if is_directory:
                waiting.append(name)
            elif name.startswith(_LINKS):
                links.append((name, inode))
            else:
                names.setdefault(inode, name)
                yield bytes_of(root + name)
    for name, inode in links:
        yield f"{name} {names.get(inode)}".encode()


def bytes_of(path: str | Path) -> bytes:
    """What a file holds, in four calls of the system: a state has dozens of small ones."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, os.fstat(handle).st_size)
    finally:
        os.close(handle)


def _in_memory(store: Store) -> Iterator[Any]:
    """What the store answers from, and what its next commit and flush go on from."""
    yield msgspec.json.encode(store.state)
    journal = store._journal
    yield repr((journal.last, journal._written, journal.length, str(journal._file.path), store._folded_bytes)).encode()
    for log in store._logs.values():
        yield _log(log).encode()
    view = store._view
    runs = [run.name for kind in (view.index, view.summaries) for run in kind]
    rollups = [(run.name, run.min_seq, run.max_seq) for run in view.rollups]
    yield repr((view.seq, view.flushed, view.files, store.tiers.rows, runs, rollups, store._links.work)).encode()
    for hot in (view.frozen, view.active):
        yield repr((hot.rows, hot.bytes, len(hot.fresh), hot.small_commits, hot.small_rows)).encode()
        yield from _columns(batch for table in hot.tables for batch in table.to_batches())
        yield from _columns(batch for run in (*hot.index, *hot.summaries) for batch in run.pages)


def _log(log: Log) -> str:
    end = None if log._open is None else log.end()
    return repr((log.directory, end, log._begun, log._name, log._before))


def _columns(batches: Iterable[pa.RecordBatch]) -> Iterator[Any]:
    """The bytes of every column, and how they are to be read."""
    for batch in batches:
        for column in batch.columns:
            yield b"%d %d" % (column.offset, len(column))
            yield from (buffer for buffer in column.buffers() if buffer is not None)

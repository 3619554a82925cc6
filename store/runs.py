"""Sorted runs: immutable tables keyed by 128-bit hashes, in memory or mapped from a file, looked up in bulk.

A run is a list of pages (record batches whose first columns are `hi` and `lo`, of at most `store.ranges.PAGE_ROWS`
rows), sorted by hash over all of them; equal hashes never lie on two pages. In a file it is an uncompressed Arrow IPC
file that is mapped, not loaded: what is looked up often stays in the page cache, and memory does not grow with what is
stored. `store.search` looks into them.

Each page of a file has a filter, two bytes a row, which says of 229 in 230 new hashes that they are not there: a
look-up of these reads nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from store import kernels
from store.arrays import I64, U64
from store.files import Disk

__all__ = [
    "HASHES",
    "OlderRunError",
    "Run",
    "filter_of",
    "map_run",
    "map_written",
    "schema_in_file",
    "with_filter",
]

HASHES = 1 << 64
"""So many there are of `hi`."""

_FILTER = pa.field("filter", pa.uint16())

_OLD_FILTER = pa.field("filter", pa.uint8())
"""Of format 3: another filter, which is not asked."""

_MADV_POPULATE_READ = 22
"""Of Linux, from 5.14 on."""

_TOUCHED_BYTES = 32 << 20
"""At once: whoever asks the system for memory waits for it meanwhile, a few milliseconds."""

_LIBRARY = ctypes.CDLL(None)

_MAGIC_BYTES = 8
"""Before the first message of an Arrow file."""

_WORD_ROWS = 4
"""Rows that share a word of a filter."""

_ROOM = 16
"""A copy of filters is made where so many times its size is free."""

_FILTERED_ROWS = 4_096
"""A run in memory of so many rows has a filter: fewer are sought as fast."""


class OlderRunError(pa.ArrowInvalid):  # type: ignore[misc]
    """The run was written in an older format, and is to be made anew."""


class Run:
    """An immutable sorted run. `name` is that of its file relative to the data directory, empty in memory.

    `mapped` is the file that its pages and their `filters` lie in, as they are read: uncompressed and without nulls.
    """

    def __init__(
        self,
        pages: Iterable[pa.RecordBatch],
        name: str = "",
        mapped: mmap.mmap | None = None,
        filters: Sequence[pa.Array] = (),
    ) -> None:
        self.name = name
        self.pages = [page for page in pages if page.num_rows]
        self.rows = sum(page.num_rows for page in self.pages)
        self.hi, self.lo = ([page.column(name).to_numpy() for page in self.pages] for name in ("hi", "lo"))
        self._mapped = mapped
        self._places: dict[str, I64] = {}
        if len(filters) not in (0, len(self.pages)):
            raise ValueError(f"{len(filters)} filters of {len(self.pages)} pages")
        self._written = self._filters = [column.to_numpy() for column in filters]
        if mapped is not None:
            for column in self.pages[0].schema.names if self.pages else ():
                self.places(column)
            self._placed(filters)

    def places(self, name: str) -> I64:
        """By page where a column lies in memory; of binary strings three rows: where offsets and bytes are, how many.

        `pa.ArrowInvalid` where that is not within the mapped file.
        """
        found = self._places.get(name)
        if found is None:
            found = self._places[name] = self._placed([page.column(name) for page in self.pages])
        return found

    def _placed(self, columns: Sequence[pa.Array]) -> I64:
        """The same of any columns."""
        spans = np.array([_spans(column) for column in columns], np.int64).reshape(-1, 2, 2)
        if self._mapped is not None:
            begin, end = _address(self._mapped), _address(self._mapped) + len(self._mapped)
            used = spans[spans[:, :, 1] > 0]
            if (used[:, 0] < begin).any() or (used.sum(axis=1) > end).any() or (used[:, 0] % 8).any():
                raise pa.ArrowInvalid("its pages do not lie in the file as they are read")
        return np.ascontiguousarray(np.stack([spans[:, 0, 0], spans[:, 1, 0], spans[:, 1, 1]]))

    @property
    def reader(self) -> object:
        """What reads its file: it lives as long as one of its parts, or of their rows."""
        return self if self._mapped is None else self._mapped

    def is_cut_at(self, hash_: int) -> bool:
        """Whether no page has hashes (`hi`) both below this one and from it on."""
        page = self._page_from(hash_)
        return page == 0 or int(self._last[page - 1]) < hash_

    def part(self, low: int, high: int) -> Run:
        """Its rows with `low <= hi < high`, where they lie: whole pages of the file if it is cut at both."""
        if not (self.is_cut_at(low) and self.is_cut_at(high)):
            return Run(self.between(low, high), self.name)
        pages = slice(self._page_from(low), self._page_from(high))
        found = Run([], self.name)
        found.pages, found.hi, found.lo = self.pages[pages], self.hi[pages], self.lo[pages]
        found.rows = sum(page.num_rows for page in found.pages)
        found._mapped, found._written, found._filters = self._mapped, self._written[pages], self._filters[pages]
        found._places = {name: np.ascontiguousarray(places[:, pages]) for name, places in self._places.items()}
        return found

    def touch(self) -> None:
        """Read a mapped run once, so that the first look-ups do not wait for its pages one by one."""
        if self._mapped is not None:
            self._advise(mmap.MADV_SEQUENTIAL)
            for begin in range(0, len(self._mapped), _TOUCHED_BYTES):
                self._touch(np.frombuffer(self._mapped, np.uint8)[begin : begin + _TOUCHED_BYTES])
            self.read_as_usual()

    def _touch(self, part: npt.NDArray[np.uint8]) -> None:
        if not self._advise(_MADV_POPULATE_READ, part):
            part[:: mmap.PAGESIZE].max(initial=0)

    def unmap(self, low: int = 0, high: int = HASHES) -> None:
        """Let go of the pages that hold this part of its file, without the interpreter; they stay in memory."""
        if self._mapped is not None:
            self._advise(mmap.MADV_DONTNEED, self._bytes_of(low, high))

    def forget(self, path: Path, low: int, high: int) -> None:
        """Give back the memory that holds this part of its file, and that nobody else has mapped."""
        if self._mapped is None or sys.platform != "linux":
            return
        self.unmap(low, high)
        part = self._bytes_of(low, high)
        with contextlib.suppress(OSError), path.open("rb") as file:
            begin = part.ctypes.data - _address(self._mapped)
            os.posix_fadvise(file.fileno(), begin, part.nbytes, os.POSIX_FADV_DONTNEED)

    def _page_from(self, hash_: int) -> int:
        """The first page whose hashes are all from this one on, or one behind the last."""
        return int(np.searchsorted(self._first, np.uint64(hash_))) if hash_ < HASHES else len(self.hi)

    @cached_property
    def _first(self) -> U64:
        """The first hash of each page."""
        return np.array([page[0] for page in self.hi], np.uint64)

    @cached_property
    def _last(self) -> U64:
        """The last hash of each page."""
        return np.array([page[-1] for page in self.hi], np.uint64)

    def _bytes_of(self, low: int, high: int) -> npt.NDArray[np.uint8]:
        """Where in the file the pages with these hashes lie: each from its `hi` to that of the next."""
        assert self._mapped is not None
        begins = [*(self.places("hi")[0] - _address(self._mapped)).tolist(), len(self._mapped)]
        begin, end = begins[self._page_from(low)], begins[self._page_from(high)]
        return np.frombuffer(self._mapped, np.uint8)[begin:end]

    def gather_filters(self, disk: Disk, directory: Path) -> None:
        """Copy the filters of its pages next to each other, into a file of this directory that has no name then.

        Each lies a page from the next one, and a look-up of a thousand new hashes reads hundreds of them. Where there
        is little room they are read where they are. What is copied is synced: memory whose writing has failed may be
        dropped, and what is read then is something else.
        """
        if self._mapped is None or len(self._written) < 2:
            return
        before = self.searched  # now, and not while somebody waits for it
        padded = [np.append(own, np.zeros(-len(own) % _WORD_ROWS, np.uint16)) for own in self._written]
        path = directory / f"{Path(self.name).stem}.filters-{threading.get_ident()}.left"
        try:
            if shutil.disk_usage(directory).free < _ROOM * sum(piece.nbytes for piece in padded):
                return
            disk.write(path, (piece.data.cast("B") for piece in padded))
            with path.open("rb") as file:
                gathered = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint16)
        except OSError:
            return
        finally:
            with contextlib.suppress(OSError):
                disk.remove(path)
        self._advise(_MADV_POPULATE_READ, gathered)
        begins = np.cumsum([0, *map(len, padded)]).tolist()
        self._filters = [gathered[at : at + len(own)] for at, own in zip(begins[:-1], self._written, strict=True)]
        self.__dict__["searched"] = before.with_filters(self._filters)

    def ask_ahead(self) -> None:
        """Let the system begin to read what every look-up needs of a mapped run: filters, and the ends of its pages.

        Behind a start whose page cache is empty the first look-up waited for each of these.
        """
        for part in (*self._ends(), *self._filters):
            self._advise(mmap.MADV_WILLNEED, part)

    def wait_for_ends(self) -> None:
        """Wait for the ends of its pages, without the interpreter, and work out what is known by them."""
        for part in self._ends():
            self._advise(_MADV_POPULATE_READ, part)
        _ = self.searched

    def read_through(self) -> Self:
        """It is read from its beginning to its end."""
        self._advise(mmap.MADV_SEQUENTIAL)
        return self

    def read_here_and_there(self) -> None:
        """Nothing is read ahead of it.

        Nothing that is read of it counts as used either (Linux): it is dropped before what nobody will read again.
        """
        self._advise(mmap.MADV_RANDOM)

    def read_as_usual(self) -> None:
        """It is read as any file."""
        self._advise(mmap.MADV_NORMAL)

    def _ends(self) -> list[U64]:
        return [end for page in self.hi for end in (page[:1], page[-1:])]

    def _advise(self, advice: int, part: npt.NDArray[Any] | None = None) -> bool:
        if self._mapped is None:
            return False
        begin, size = _address(self._mapped), len(self._mapped)
        if part is not None:
            begin, size = part.ctypes.data, part.nbytes
        return _advise(begin, size, advice)

    @cached_property
    def searched(self) -> kernels.Searched:
        """As the C searches it. Hashes are uniform, so that the place of one in its page is nearly known."""
        sizes = np.array([*map(len, self.hi)], np.int64)
        density = np.array([*map(_density, self.hi)], np.float64)
        hi, lo = (np.ascontiguousarray(self.places(name)[0]) for name in ("hi", "lo"))
        filters = self._filters
        if self._mapped is None and self.rows >= _FILTERED_ROWS:
            filters = [filter_of(*page) for page in zip(self.hi, self.lo, strict=True)]
        return kernels.Searched(hi, lo, sizes, self._first, density, filters)

    def between(self, low: int, high: int) -> Iterator[pa.RecordBatch]:
        """The rows with `low <= hi < high`. Pages that have none are not read."""
        for number in range(int(np.searchsorted(self._last, np.uint64(low))), self._page_from(high)):
            hi = self.hi[number]
            begin = int(np.searchsorted(hi, np.uint64(low)))
            end = len(hi) if high >= HASHES else int(np.searchsorted(hi, np.uint64(high)))
            if begin < end:
                yield self.pages[number].slice(begin, end - begin)


def _advise(begin: int, size: int, advice: int) -> bool:
    """Tell the system how memory is read, without the interpreter: it may wait for a disk. Whether it has listened."""
    before = begin % mmap.PAGESIZE
    failed: int = _LIBRARY.madvise(ctypes.c_void_p(begin - before), ctypes.c_size_t(size + before), advice)
    return not failed


def _address(mapped: mmap.mmap) -> int:
    return int(pa.py_buffer(mapped).address)


def _density(hi: U64) -> float:
    """Rows of a page by hash, if they were at even distances."""
    return len(hi) / max(float(hi[-1] - hi[0]), 1.0)


def filter_of(hi: U64, lo: U64) -> npt.NDArray[np.uint16]:
    """The filter of a page with these hashes, two bytes each (docs/formats.md): bits of `lo`, in a word by `hi`."""
    found = kernels.filter_of(hi, lo, _density(hi))
    if found is None:
        words = len(hi) // _WORD_ROWS
        even = np.minimum((hi - hi[0]).astype(np.float64) * _density(hi), len(hi) - 1).astype(np.int64)
        word = np.minimum(even // _WORD_ROWS, words - 1)
        flags = np.zeros((words, 64), np.bool_)
        for shift in (0, 6, 12, 18, 24) if words else ():
            flags[word, lo >> np.uint64(shift) & np.uint64(63)] = True
        found = np.zeros(len(hi), np.uint16)
        found[: _WORD_ROWS * words] = np.packbits(flags, bitorder="little").view(np.uint16)
    return found


def schema_in_file(schema: pa.Schema) -> pa.Schema:
    """The columns of a run in a file: these, and the filter of each page."""
    return schema.append(_FILTER)


def with_filter(page: pa.RecordBatch) -> pa.RecordBatch:
    """A page as it is written."""
    found = filter_of(*(page.column(name).to_numpy() for name in ("hi", "lo")))
    return page.append_column(_FILTER, pa.array(found))


def _spans(column: pa.Array) -> tuple[tuple[int, int], tuple[int, int]]:
    """Address and size in bytes of what is read of a column: of its values; of binary strings of offsets and bytes."""
    if column.null_count:
        raise pa.ArrowInvalid("its pages have nulls")
    _, values, *text = column.buffers()
    if column.type != pa.binary():
        width = column.type.bit_width // 8
        spans = (values.address + width * column.offset, width * len(column)), (0, 0)
        is_whole = values.size >= width * (column.offset + len(column))
    else:
        spans = (values.address + 4 * column.offset, 4 * (len(column) + 1)), (0, 0)
        is_whole = values.size >= 4 * (column.offset + len(column) + 1)
        if text[0] is not None:
            spans = spans[0], (text[0].address, text[0].size)
    if not is_whole:
        raise pa.ArrowInvalid("its pages are shorter than they say")
    return spans


def map_run(path: Path, name: str, schema: pa.Schema, before: pa.Schema | None = None) -> Run:
    """A run mapped from its file; `pa.ArrowInvalid` where its columns are others, or not such as can be searched.

    `OlderRunError` where they are those that it had `before`.

    Pages that were written before there were filters, or with other ones, have none.
    """
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise pa.ArrowInvalid("it is empty")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _advise(
        _address(mapped), len(mapped), mmap.MADV_RANDOM
    )  # or the system reads all of it where it reads the beginnings of pages
    reader = pa.ipc.open_file(pa.py_buffer(mapped))
    if before is not None and reader.schema in (before, before.append(_OLD_FILTER)):
        raise OlderRunError("it is of an older format")
    if reader.schema not in (schema_in_file(schema), schema, schema.append(_OLD_FILTER)):
        raise pa.ArrowInvalid(f"its columns are {', '.join(f'{field.name} {field.type}' for field in reader.schema)}")
    run = _in_file([reader.get_batch(number) for number in range(reader.num_record_batches)], name, mapped)
    run.read_as_usual()
    return run


def map_written(path: Path, name: str, schema: pa.Schema, begin: int, end: int) -> Run:
    """Pages of a run that is still written: those in these bytes of its file, which begin and end between pages."""
    before = begin % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), end - begin + before, access=mmap.ACCESS_READ, offset=begin - before)
    messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(mapped).slice(before if begin else _MAGIC_BYTES))
    pages = [pa.ipc.read_record_batch(message, schema) for message in messages if message.type == "record batch"]
    return _in_file(pages, name, mapped)


def _in_file(pages: Sequence[pa.RecordBatch], name: str, mapped: mmap.mmap) -> Run:
    """A run of pages as they stand in a file, with filters or without."""
    pages = [page for page in pages if page.num_rows]
    filters = [page.column(_FILTER.name) for page in pages if _FILTER in page.schema]
    columns = [name for name in pages[0].schema.names if name != _FILTER.name] if pages else []
    return Run([page.select(columns) for page in pages], name, mapped, filters)

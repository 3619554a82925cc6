"""Whole lines of a damaged segment of the notifications: each record is proven by its entry in the recordId index.

The entry has the hash of the id, the day and the seq, and the fingerprint of all eight fields. Only `processedAt` is
not in it: whoever uses these records proves that by making the segment again and comparing its checksum.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from store import index
from store.catalog import RunRow
from store.flush import checksum_of
from store.hashing import Hasher
from store.limits import DAY_US
from store.log import parse_notifications
from store.remake import hashed
from store.runs import Run, map_run
from store.schema import STORED
from store.segments import LogSegment
from store.whole import whole

__all__ = ["Salvage"]

_READ_BYTES = 8 << 20


class Salvage:
    """Reads damaged segments of one stopped store; `rows` are the runs of its index."""

    def __init__(self, root: Path, hasher: Hasher, rows: Sequence[RunRow]) -> None:
        self._root = root
        self._hasher = hasher
        self._rows = rows

    @cached_property
    def _runs(self) -> list[Run]:
        """No run at all where one of them is damaged: nothing is proven by rot."""
        with contextlib.suppress(FileNotFoundError):
            if all(checksum_of(self._root / row.name) == (row.bytes, row.sum) for row in self._rows):
                return [map_run(self._root / row.name, row.name, index.INDEX_SCHEMA) for row in self._rows]
        return []

    def records(self, segment: LogSegment) -> Iterator[pa.Table]:
        """The proven records of what is left of a segment, schema `STORED`."""
        path = self._root / segment.path
        if not self._runs or not path.exists():
            return
        with path.open("rb") as file:
            rest, left = b"", segment.bytes
            while left > 0 and (piece := file.read(min(_READ_BYTES, left))):
                left -= len(piece)
                lines = (rest + piece).split(b"\n")
                rest = lines.pop()
                yield self._proven(_parsed([line for line in lines if _is_json(line)]))

    def _proven(self, rows: pa.Table) -> pa.Table:
        """Those rows that the index has just as they are."""
        if not rows.num_rows:
            return rows
        known = hashed(self._hasher, rows)
        seqs = rows.column("seq").to_numpy()
        days = whole(rows.column("time")).cast(pa.int64()).to_numpy() // DAY_US
        order = np.lexsort((known.id_lo, known.id_hi))
        hits = index.find(self._runs, known.id_hi[order], known.id_lo[order])
        at = order[hits.needle]
        same = (hits.seq == seqs[at]) & (hits.day == days[at]) & (hits.fp == known.fingerprint[at])
        return rows.take(pa.array(np.unique(at[same])))


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


def _parsed(lines: list[bytes]) -> pa.Table:
    """The records of those lines that hold one."""
    try:
        return parse_notifications(b"".join(line + b"\n" for line in lines)).drop_null().combine_chunks()
    except (pa.ArrowException, ValueError):
        if len(lines) < 2:
            return STORED.empty_table()
        middle = len(lines) // 2
        return pa.concat_tables([_parsed(lines[:middle]), _parsed(lines[middle:])]).combine_chunks()

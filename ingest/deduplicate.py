"""What becomes of each record of a commit: new, a duplicate, or a conflict, as if they had come one by one.

Records meet by the 128-bit hash of their recordId: among themselves, among hot rows and in the runs. Equal hash and
equal fingerprint is a duplicate. Equal hash and another fingerprint is decided by comparing the records themselves: the
same recordId is a conflict, another one is a collision of hashes, and so simply a new record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from store import kernels
from store.arrays import I64, U64
from store.codes import changed
from store.index import Hits
from store.schema import CANONICAL_FIELDS

__all__ = ["ACCEPTED", "CONFLICT", "DUPLICATE", "Known", "Outcomes", "decide", "grouped"]

ACCEPTED, DUPLICATE, CONFLICT = 0, 1, 2


class Known(Protocol):
    """What is stored already, as `store.head.Head` tells it."""

    def find_ids(self, hi: U64, lo: U64) -> Hits:
        """Index rows that share a hash with one of these; `hi` ascends."""

    def rows_at(self, days: I64, seqs: I64) -> pa.Table:
        """Stored rows by seq."""


@dataclass(frozen=True)
class Outcomes:
    """For each row its status, its seq (or that of the stored record), and for conflicts the fields that differ."""

    status: npt.NDArray[np.int8]
    seq: I64
    fields: dict[int, tuple[str, ...]]


def decide(rows: pa.Table, hi: U64, lo: U64, fp: U64, known: Known, first_seq: int) -> Outcomes:
    """The outcomes of records in their order of arrival; accepted ones get seqs from `first_seq` on."""
    order, starts = grouped(hi, lo)
    hits = known.find_ids(hi[order], lo[order])
    of_hit = order[hits.needle]
    same = hits.fp == fp[of_hit]
    status = np.full(len(hi), ACCEPTED, dtype=np.int8)
    seq = np.zeros(len(hi), dtype=np.int64)
    status[of_hit[same]] = DUPLICATE
    seq[of_hit[same]] = hits.seq[same]

    doubtful = np.zeros(len(hi), dtype=bool)  # a stored record shares the hash and is another one
    doubtful[of_hit] = True
    doubtful &= status != DUPLICATE
    unclear = _repeats(order, starts, fp, doubtful, status, seq)
    fields: dict[int, tuple[str, ...]] = {}
    if len(unclear):
        other = ~same
        stored = _stored_by_row(known, of_hit[other], hits.day[other], hits.seq[other])
        _decide_in_order(rows, unclear, stored, status, seq, fields)
    _number(status, seq, first_seq)
    return Outcomes(status, seq, fields)


def grouped(hi: U64, lo: U64) -> tuple[I64, I64]:
    """The rows grouped by hash, each group in order of arrival, and where each group begins; `hi` ascends."""
    order = kernels.argsort(hi)
    new = changed(hi[order])
    if (changed(lo[order]) & ~new).any():  # two hashes share their upper half
        order = np.lexsort((lo, hi))
        new = changed(hi[order]) | changed(lo[order])
    return order, np.flatnonzero(new)


def _repeats(
    order: I64, starts: I64, fp: U64, doubtful: npt.NDArray[np.bool_], status: npt.NDArray[np.int8], seq: I64
) -> I64:
    """Settle the groups whose records are all the same: the first is new or known, the others duplicates of it.

    Returns the rows of the other groups in order of arrival. A row of this commit is named by minus its number - 1.
    """
    sizes = np.diff(np.append(starts, len(order)))
    prints = fp[order]
    clear = np.minimum.reduceat(prints, starts) == np.maximum.reduceat(prints, starts)
    clear &= ~np.logical_or.reduceat(doubtful[order], starts)
    leader = np.repeat(order[starts], sizes)
    repeated = np.ones(len(order), dtype=bool)
    repeated[starts] = False
    repeated &= np.repeat(clear, sizes) & (status[leader] == ACCEPTED)
    status[order[repeated]] = DUPLICATE
    seq[order[repeated]] = -leader[repeated] - 1
    return np.sort(order[np.repeat(~clear, sizes)])


@dataclass(frozen=True)
class _Stored:
    """Stored records that share a hash with a row and have another fingerprint, as plain values."""

    by_row: dict[int, list[tuple[int, tuple[object, ...]]]]


def _stored_by_row(known: Known, row: I64, day: I64, seq: I64) -> _Stored:
    by_row: dict[int, list[tuple[int, tuple[object, ...]]]] = {}
    if len(row):
        found = known.rows_at(day, seq)
        values = dict(zip(found.column("seq").to_pylist(), _values(found), strict=True))
        for number, at in zip(row.tolist(), seq.tolist(), strict=True):
            by_row.setdefault(number, []).append((at, values[at]))
    return _Stored(by_row)


def _values(rows: pa.Table) -> list[tuple[object, ...]]:
    """The eight fields of each row, comparable exactly (Decimals compare by value)."""
    columns = [
        (rows.column(name).cast(pa.int64()) if name == "time" else rows.column(name)).to_pylist()
        for name in CANONICAL_FIELDS
    ]
    return list(zip(*columns, strict=True))


def _decide_in_order(
    rows: pa.Table, unclear: I64, stored: _Stored,
    status: npt.NDArray[np.int8], seq: I64, fields: dict[int, tuple[str, ...]],
) -> None:  # fmt: skip
    """Decide the unclear rows one by one, by comparing the records."""
    values = _values(rows.take(pa.array(unclear)))
    accepted: dict[str, tuple[int, tuple[object, ...]]] = {}  # of this commit, by recordId: name of the row, values
    for row, mine in zip(unclear.tolist(), values, strict=True):
        if status[row] == DUPLICATE:
            continue
        record_id = str(mine[0])
        match: tuple[int, tuple[object, ...]] | None = None
        for at, theirs in stored.by_row.get(row, []):
            if theirs[0] == record_id:
                match = (at, theirs)
        if match is None and record_id in accepted:
            match = accepted[record_id]
        if match is None:
            accepted[record_id] = (-row - 1, mine)
            continue
        differing = tuple(name for name, a, b in zip(CANONICAL_FIELDS, mine, match[1], strict=True) if a != b)
        seq[row] = match[0]
        status[row] = CONFLICT if differing else DUPLICATE
        if differing:
            fields[row] = differing


def _number(status: npt.NDArray[np.int8], seq: I64, first_seq: int) -> None:
    """Give accepted rows their seqs, and rows that name one of them its seq."""
    accepted = status == ACCEPTED
    seq[accepted] = first_seq + np.arange(int(accepted.sum()))
    named = np.flatnonzero(~accepted & (seq < 0))
    seq[named] = seq[-seq[named] - 1]

"""The recordId index: which ids were stored, where, and the fingerprint of what was stored.

Rows are (hi, lo, word, fp): the 128-bit hash of the recordId, the day and the seq of the record in one word, and a
64-bit fingerprint of the whole record. 32 bytes for each record, whatever its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from store import kernels
from store.arrays import I64, U64
from store.hashing_rows import halves
from store.limits import DAY_US
from store.runs import Run
from store.search import search

__all__ = ["INDEX_SCHEMA", "Hits", "entries", "find", "find_each", "pack_words", "sorted_entries", "unpack_words"]

INDEX_SCHEMA = pa.schema([(name, pa.uint64()) for name in ("hi", "lo", "word", "fp")])

_SEQ_BITS = np.uint64(47)
_SEQ_MASK = np.uint64((1 << 47) - 1)


@dataclass(frozen=True)
class Hits:
    """Index rows that share a hash with what was asked for: `needle` is the position in the question."""

    needle: I64
    day: I64
    seq: I64
    fp: U64


def pack_words(times_us: I64, seqs: I64) -> U64:
    """Day and seq of each record in one word: seq in the low 47 bits."""
    return ((times_us // DAY_US).astype(np.uint64) << _SEQ_BITS) | seqs.astype(np.uint64)


def unpack_words(words: U64) -> tuple[I64, I64]:
    """(day since the epoch, seq) of each word."""
    return (words >> _SEQ_BITS).astype(np.int64), (words & _SEQ_MASK).astype(np.int64)


def entries(hi: U64, lo: U64, words: U64, fp: U64) -> Run:
    """A run in memory of these rows."""
    return Run([sorted_entries(pa.record_batch([hi, lo, words, fp], schema=INDEX_SCHEMA))])


def sorted_entries(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows sorted by hi, lo, word (what `merge_ranges` combines them with)."""
    hi, lo, word = (rows.column(name).to_numpy() for name in ("hi", "lo", "word"))
    order = kernels.argsort(hi)
    ordered = hi[order]
    if (ordered[1:] == ordered[:-1]).any():
        order = np.lexsort((word, lo, hi))
    columns = [column.to_numpy()[order] for column in rows.columns]
    return pa.record_batch(columns, schema=INDEX_SCHEMA)


def find(runs: Sequence[Run], hi: U64, lo: U64) -> Hits:
    """All rows of the runs that have one of the hashes; `hi` must ascend."""
    found = search(runs, hi, lo)
    if not len(found):
        nothing = np.zeros(0, dtype=np.int64)
        return Hits(nothing, nothing, nothing, nothing.astype(np.uint64))
    day, seq = unpack_words(found.numbers("word"))
    return Hits(found.needle, day, seq, found.numbers("fp"))


def find_each(runs: Sequence[Run], ids: Sequence[int]) -> list[tuple[int, int, int]]:
    """(hash, seq, fingerprint) of all rows of the runs that have one of a few 128-bit hashes."""
    ordered = sorted(ids)
    hits = find(runs, *halves(ordered))
    if not len(hits.needle):
        return []
    hashes = [ordered[needle] for needle in hits.needle.tolist()]
    return list(zip(hashes, hits.seq.tolist(), hits.fp.tolist(), strict=True))

"""What a commit needs of records whatever becomes of them: hashes and canonical texts.

Chunks are prepared beside the committer, which is one thread and only does what depends on the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from store.arrays import I64, U64
from store.canonical import render_records
from store.hashing import Hasher
from store.schema import RECORD

__all__ = ["Prepared", "joined", "prepared"]


@dataclass(frozen=True)
class Prepared:
    """Records (schema `RECORD`) with the hashes of their ids and keys, fingerprints, and canonical JSON texts."""

    rows: pa.Table
    id_hi: U64
    id_lo: U64
    fingerprint: U64
    key_hi: U64
    key_lo: U64
    texts: pa.Array

    def taken(self, positions: I64) -> Prepared:
        """Some of the records."""
        if len(positions) == self.rows.num_rows:
            return self
        at = pa.array(positions)
        return Prepared(
            self.rows.take(at).combine_chunks(),
            self.id_hi[positions],
            self.id_lo[positions],
            self.fingerprint[positions],
            self.key_hi[positions],
            self.key_lo[positions],
            self.texts.take(at),
        )

    def ids_of(self, row: int) -> tuple[str, str]:
        """The recordId and the sourceId of one."""
        return self.rows.column("recordId")[row].as_py(), self.rows.column("sourceId")[row].as_py()


def prepared(records: pa.RecordBatch | pa.Table, hasher: Hasher) -> Prepared:
    """Prepare records."""
    rows = pa.Table.from_batches([records]) if isinstance(records, pa.RecordBatch) else records
    id_hi, id_lo, key_hi, key_lo, fingerprint = hasher.hashes(rows)
    return Prepared(rows, id_hi, id_lo, fingerprint, key_hi, key_lo, render_records(rows))


def joined(pieces: Sequence[Prepared]) -> Prepared:
    """Several pieces as one, in their order."""
    if len(pieces) == 1:
        return pieces[0]
    if not pieces:
        nothing = np.zeros(0, dtype=np.uint64)
        return Prepared(RECORD.empty_table(), nothing, nothing, nothing, nothing, nothing, pa.array([], pa.string()))
    return Prepared(
        rows=pa.concat_tables([piece.rows for piece in pieces]).combine_chunks(),
        id_hi=np.concatenate([piece.id_hi for piece in pieces]),
        id_lo=np.concatenate([piece.id_lo for piece in pieces]),
        fingerprint=np.concatenate([piece.fingerprint for piece in pieces]),
        key_hi=np.concatenate([piece.key_hi for piece in pieces]),
        key_lo=np.concatenate([piece.key_lo for piece in pieces]),
        texts=pa.concat_arrays([piece.texts for piece in pieces]),
    )

"""Stored records by their seq, from hot rows and from Parquet: what decides a conflict and answers a recordId."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store.arrays import I64
from store.errors import MEND, CorruptionError
from store.rot import sound
from store.schema import STORED
from store.snapshot import SealedFile, Snapshot

__all__ = ["rows_at"]


def rows_at(snapshot: Snapshot, days: I64, seqs: I64) -> pa.Table:
    """The stored rows with these seqs (and the days of their times), in order of seq, each once.

    A row that cannot be found is corruption, never an unknown record.
    """
    seqs, first = np.unique(seqs, return_index=True)
    days = days[first]
    found = [_in_table(table, seqs[seqs > snapshot.flushed]) for table in snapshot.hot]
    flushed = seqs <= snapshot.flushed
    for day in np.unique(days[flushed]).tolist():
        wanted = seqs[flushed & (days == day)]
        for file in snapshot.files:
            if file.day == day:
                inside = wanted[(wanted >= file.min_seq) & (wanted <= file.max_seq)]
                if len(inside):
                    found.append(_in_file(file, inside))
    rows = pa.concat_tables([STORED.empty_table(), *found]).combine_chunks().sort_by("seq")
    if rows.num_rows != len(seqs):
        missing = np.setdiff1d(seqs, rows.column("seq").to_numpy())
        raise CorruptionError(
            f"the record with seq {missing[0]} is in the index and not in the Parquet ({len(missing)} such): "
            f"a file under records/ was lost or changed. `oncelake verify` names it; stop the service, {MEND}."
        )
    return rows


def _in_table(table: pa.Table, seqs: I64) -> pa.Table:
    """Hot tables hold dense seqs."""
    if not table.num_rows or not len(seqs):
        return STORED.empty_table()
    rows = seqs - table.column("seq")[0].as_py()
    return table.take(pa.array(rows[(rows >= 0) & (rows < table.num_rows)]))


def _in_file(file: SealedFile, seqs: Sequence[int] | I64) -> pa.Table:
    """Read the seqs of each row group first, and other columns only of row groups that hold a wanted one."""
    wanted = pa.array(seqs, pa.int64())
    found = []
    sound([file])
    with pq.ParquetFile(file.path) as parquet:
        for group in range(parquet.num_row_groups):
            here = pc.is_in(parquet.read_row_group(group, columns=["seq"]).column("seq"), value_set=wanted)
            if pc.any(here).as_py():
                rows = parquet.read_row_group(group, columns=STORED.names)
                found.append(rows.filter(here).cast(STORED))
    return pa.concat_tables(found) if found else STORED.empty_table()

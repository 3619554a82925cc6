"""What small commits have stored and nobody has looked at yet: rows as plain values, in dicts by their hashes.

To make columns and sorted runs of each small commit took most of its time. So they wait here, where the next commit
finds them in two dicts, and become columns together: once there are enough of them, or somebody reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

import numpy as np
import pyarrow as pa

from store import index, summaries
from store.arrays import U64
from store.hashing_rows import Hashes, halves
from store.plain import Row
from store.runs import Run
from store.schema import RECORD, STORED
from store.summaries import Summary
from store.whole import whole

__all__ = ["Committed", "CommittedRows", "Fresh", "columns_of", "runs_beside"]

_MANY_ROWS = 4_096
"""The runs of so many records are worth another thread."""

_US_UTC = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Committed:
    """The accepted records of one commit (schema `STORED`) with the hashes of their ids and keys."""

    rows: pa.Table
    id_hi: U64
    id_lo: U64
    fingerprint: U64
    key_hi: U64
    key_lo: U64
    _making: Lock = field(default_factory=Lock, compare=False, repr=False)

    @property
    def count(self) -> int:
        """Records."""
        return int(self.rows.num_rows)

    @property
    def runs(self) -> tuple[Run, Run]:
        """Its part of the index and of the summaries; made once, whoever asks first."""
        with self._making:
            return self._runs

    @cached_property
    def _runs(self) -> tuple[Run, Run]:
        times = whole(self.rows.column("time")).cast(pa.int64()).to_numpy()
        words = index.pack_words(times, self.rows.column("seq").to_numpy())
        return (
            index.entries(self.id_hi, self.id_lo, words, self.fingerprint),
            summaries.of_records(self.key_hi, self.key_lo, self.rows),
        )


@dataclass(frozen=True)
class CommittedRows:
    """The accepted records of a small commit, their hashes beside them.

    `summaries` tell by key everything that is stored of it with this commit; `bytes` is what the records take as text,
    `columns` are the records (schema `RECORD`) where they have been made already.
    """

    first_seq: int
    processed_at_us: int
    records: Sequence[Row]
    hashes: Sequence[Hashes]
    summaries: Mapping[int, Summary]
    bytes: int
    columns: pa.Table | None = None

    @property
    def count(self) -> int:
        """Records."""
        return len(self.records)


class Fresh:
    """Small commits in their order. Only grows, so that who knows how many there were may read those meanwhile.

    `ids` tells (seq, fingerprint) by the hash of a recordId, `summaries` all that is stored of a key that came up. None
    of the ids shares its hash with another stored one: such a commit is decided in columns.
    """

    def __init__(self) -> None:
        self.commits: list[CommittedRows] = []
        self.ids: dict[int, tuple[int, int]] = {}
        self.summaries: dict[int, Summary] = {}

    def add(self, committed: CommittedRows) -> None:
        """One more commit: after those that are here."""
        for seq, (id_, print_, _) in enumerate(committed.hashes, committed.first_seq):
            self.ids[id_] = (seq, print_)
        self.summaries.update(committed.summaries)
        self.commits.append(committed)

    def committed(self, commits: int) -> Committed:
        """The first so many commits in columns."""
        chosen = self.commits[:commits]
        rows = pa.concat_tables(_tables(chosen)).combine_chunks()
        first = chosen[0].first_seq
        seqs = np.arange(first, first + rows.num_rows)
        times = np.repeat([commit.processed_at_us for commit in chosen], [commit.count for commit in chosen])
        stored = pa.table([seqs, *rows.columns, pa.array(times).cast(_US_UTC)], schema=STORED)
        ids, prints, keys = zip(*(hashes for commit in chosen for hashes in commit.hashes), strict=True)
        return Committed(stored, *halves(ids), np.array(prints, np.uint64), *halves(keys))


def _tables(commits: Sequence[CommittedRows]) -> Iterator[pa.Table]:
    """The records of the commits, those without columns together."""
    for has_columns, group in itertools.groupby(commits, lambda commit: commit.columns is not None):
        if has_columns:
            yield from (commit.columns for commit in group)
        else:
            yield columns_of([record for commit in group for record in commit.records])


def runs_beside(threads: Executor, committed: Committed | CommittedRows | None) -> Future[object]:
    """Work the runs of many records out while their lines are synced, so that settling soon after finds them made."""
    if isinstance(committed, Committed) and committed.count >= _MANY_ROWS:
        return threads.submit(lambda: committed.runs)
    nothing: Future[object] = Future()
    nothing.set_result(None)
    return nothing


def columns_of(records: Sequence[Row]) -> pa.Table:
    """Records as a table (schema `RECORD`)."""
    columns = [pa.array(column, kind) for kind, column in zip(_RAW, zip(*records, strict=True), strict=True)]
    columns[1] = columns[1].cast(_US_UTC)
    return pa.table(columns, schema=RECORD)


_RAW = [pa.int64() if name == "time" else RECORD.field(name).type for name in RECORD.names]

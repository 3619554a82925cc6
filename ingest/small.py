"""Commits of few records, one record at a time: what `deduplicate`, `history` and `messages` do for columns.

NumPy and pyarrow cost microseconds a call before the first record, some 200 calls a commit; a client that waits alone
paid all of them. The rules are the same, the bytes too (tests hold both ways equal), and only what is beyond doubt is
decided here: where a hash is known with another fingerprint the whole commit is decided in columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import pyarrow as pa

from ingest.deduplicate import ACCEPTED, DUPLICATE, Outcomes
from ingest.prepare import Prepared
from outbox.alerts import threshold_of
from outbox.messages import alert_line, notification_line, previous_of
from store.arrays import I64
from store.fresh import CommittedRows, columns_of
from store.hashing import Hasher
from store.hashing_rows import Hashes, halves
from store.head import Commit
from store.journal import Rules
from store.plain import Row, record_text, units_of
from store.summaries import Summary

__all__ = ["SMALL_ROWS", "Known", "Small", "decided_one_by_one", "small_of", "with_small"]

SMALL_ROWS = 256
"""More records than that are cheaper in columns."""

_HASHED_ROWS = 24
"""More records than that are hashed in columns."""


class Known(Protocol):
    """What is stored already, as `store.view.View` tells it."""

    def find_each_id(self, ids: Sequence[int]) -> list[tuple[int, int, int]]:
        """(hash, seq, fingerprint) of what shares a 128-bit hash with one of these few."""

    def find_each_summary(self, keys: Collection[int]) -> dict[int, Summary] | None:
        """What is known of a few keys, to go on with; None where that is too much."""


@dataclass(frozen=True)
class Small:
    """A few records with their values in units of 10^-9, their hashes, and their columns where these were made."""

    rows: list[Row]
    units: list[int]
    hashes: list[Hashes]
    columns: pa.Table | None = None

    def taken(self, positions: I64) -> Small:
        """Some of the records."""
        if len(positions) == len(self.rows):
            return self
        at = positions.tolist()
        return Small([self.rows[i] for i in at], [self.units[i] for i in at], [self.hashes[i] for i in at])

    def ids_of(self, row: int) -> tuple[str, str]:
        """The recordId and the sourceId of one."""
        return self.rows[row][0], self.rows[row][2]

    def prepared(self) -> Prepared:
        """The same in columns."""
        ids, prints, keys = zip(*self.hashes, strict=True)
        texts = pa.array(map(record_text, self.rows), pa.string())
        columns = self.columns or columns_of(self.rows)
        return Prepared(columns, *halves(ids), np.array(prints, np.uint64), *halves(keys), texts)


def small_of(records: Iterable[Row], hasher: Hasher) -> Small:
    """Records with what depends on nothing else."""
    rows = [cast("Row", tuple(record)) for record in records]  # plain ones, for the sake of `Hashes`
    units = [units_of(row[5]) for row in rows]
    if len(rows) <= _HASHED_ROWS:
        return Small(rows, units, list(map(hasher.rows.hashes, rows, units)))
    columns = columns_of(rows)
    lanes = zip(*(lane.tolist() for lane in hasher.hashes(columns)), strict=True)
    hashes = [(id_hi << 64 | id_lo, print_, key_hi << 64 | key_lo) for id_hi, id_lo, key_hi, key_lo, print_ in lanes]
    return Small(rows, units, hashes, columns)


def decided_one_by_one(records: Small, known: Known, first_seq: int) -> Outcomes | None:
    """The outcomes of records in their order of arrival; None where records must be compared to know them."""
    seen: dict[int, tuple[int, int]] = {}
    for id_, seq, print_ in known.find_each_id([hashes[0] for hashes in records.hashes]):
        if id_ in seen:
            return None
        seen[id_] = (seq, print_)
    status, seqs = [], []
    for id_, print_, _ in records.hashes:
        match = seen.get(id_)
        if match is None:
            seen[id_] = (first_seq, print_)
            status.append(ACCEPTED)
            seqs.append(first_seq)
            first_seq += 1
        elif match[1] == print_:
            status.append(DUPLICATE)
            seqs.append(match[0])
        else:
            return None
    return Outcomes(np.array(status, np.int8), np.array(seqs, np.int64), {})


def with_small(
    commit: Commit, new: Small, known: Known, first_seq: int, processed_at: str, rules: Rules
) -> Commit | None:
    """The commit with the accepted records and their lines; None where their history is too long for this way."""
    summaries = known.find_each_summary({hashes[2] for hashes in new.hashes})
    if summaries is None:
        return None
    notifications, alerts = [], []
    first_alert_seq = 0
    is_general = not (rules.by_destination or rules.by_unit)
    threshold = threshold_of("", "", rules)
    for seq, (row, units, (_, _, key)) in enumerate(zip(new.rows, new.units, new.hashes, strict=True), first_seq):
        _, time_us, _, destination_id, type_, _, unit, _ = row
        summary = summaries.get(key)
        if summary is None:
            summary = summaries[key] = Summary()
        text = record_text(row)
        notifications.append(notification_line(seq, processed_at, text, previous_of(summary)))
        if not is_general:
            threshold = threshold_of(destination_id, unit, rules)
        if units > threshold:
            alerts.append(alert_line(seq, processed_at, text, threshold))
            first_alert_seq = first_alert_seq or seq
        summary.add_record(seq, time_us, type_, units, unit)
    lines = "".join(notifications).encode()
    return dataclasses.replace(
        commit,
        committed=CommittedRows(
            first_seq, commit.processed_at_us, new.rows, new.hashes, summaries, len(lines), new.columns
        ),
        notifications=lines,
        alerts="".join(alerts).encode(),
        first_alert_seq=first_alert_seq,
    )

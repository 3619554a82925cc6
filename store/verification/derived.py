"""The index and the summaries, proven from the records, and that no recordId is stored twice."""

# ruff: noqa: S608 - statements are put together from names and numbers of this package only; values are bound

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from store.arrays import I64, U64
from store.hashing import Hasher
from store.limits import DAY_US
from store.messages_sql import SUMMARIES_OF_RECORDS
from store.verification.report import Findings
from store.verification.runs import OpenRun, batches_of, check_facts, summaries_of
from store.whole import whole

__all__ = ["Derived"]

_SEQ_BITS = 47
_SEQ_MASK = np.uint64((1 << _SEQ_BITS) - 1)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SORTED_AT_ONCE = 1 << 24
"""Hashes that are sorted in one piece when equal recordIds are looked for."""

_LISTED = 101


class Derived:
    """Takes the records in any order (`add`), then holds the runs against them (`check_*`)."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        scratch: Path,
        hasher: Hasher,
        seqs: tuple[int, int],
        findings: Findings,
    ) -> None:
        self._connection = connection
        self._hasher = hasher
        self._seq, self._flushed = seqs
        self._findings = findings
        # on disk, 16 bytes a record: the hash of each recordId, and one number for what its index entry must be
        self._ids = np.memmap(scratch / "ids", np.uint64, "w+", shape=(self._seq + 1,))
        self._entries = np.memmap(scratch / "entries", np.uint64, "w+", shape=(self._flushed + 1,))
        self._known = np.zeros(self._seq + 1, dtype=bool)
        connection.execute(
            """
            CREATE TABLE earlier (
                destinationId VARCHAR, reference VARCHAR, unit VARCHAR, count BIGINT, positive DECIMAL(38, 9),
                negative DECIMAL(38, 9), firstTime TIMESTAMPTZ, lastTime TIMESTAMPTZ, lastSeq BIGINT,
                hi UBIGINT, lo UBIGINT, flushed BOOLEAN);
            CREATE TABLE hot_ids (seq BIGINT, recordId VARCHAR);
            """
        )

    def add(self, rows: pa.Table, flushed: bool) -> None:
        """Records of one range (also registered as `records`), all of them flushed or none."""
        seqs = rows.column("seq").to_numpy()
        hi, lo = self._hasher.identify(whole(rows.column("recordId")))
        self._ids[seqs] = hi ^ (lo * _GOLDEN)
        self._known[seqs] = True
        if flushed:
            days = whole(rows.column("time")).cast(pa.int64()).to_numpy() // DAY_US
            words = (days.astype(np.uint64) << np.uint64(_SEQ_BITS)) | seqs.astype(np.uint64)
            self._entries[seqs] = _digest(hi, lo, words, self._hasher.fingerprint(rows))
        else:
            self._connection.execute("INSERT INTO hot_ids SELECT seq, recordId FROM records")
        sums = self._connection.sql(SUMMARIES_OF_RECORDS).to_arrow_table()
        key_hi, key_lo = self._hasher.keys(whole(sums.column("destinationId")), whole(sums.column("reference")))
        sums = sums.append_column("hi", pa.array(key_hi)).append_column("lo", pa.array(key_lo))
        self._connection.register("sums", sums)
        self._connection.execute("INSERT INTO earlier SELECT *, ? FROM sums", [flushed])
        self._connection.unregister("sums")

    def check_index(self, runs: Sequence[OpenRun]) -> None:
        """Exactly one right entry for each flushed record, sorted in every run."""
        seen = np.zeros(self._flushed + 1, dtype=bool)
        for run in runs:
            last = (-1, -1, -1)
            row = 0
            seqs: list[I64] = []
            for batch in batches_of(run, self._findings):
                hi, lo, words, prints = (batch.column(name).to_numpy() for name in ("hi", "lo", "word", "fp"))
                if len(hi):
                    self._check_order(run, row, last, hi, lo, words)
                    last = (int(hi[-1]), int(lo[-1]), int(words[-1]))
                seqs.append(self._check_entries(run, _digest(hi, lo, words, prints), words, seen))
                row += len(hi)
            self._findings.checked["index"] += row
            check_facts(run, row, seqs, self._findings)
        missing = np.flatnonzero(~seen[1:] & self._known[1 : self._flushed + 1]) + 1
        self._findings.add_seqs("index", "internal/index", "no entry for {}", missing[: 10 * _LISTED].tolist())

    def _check_order(self, run: OpenRun, row: int, last: tuple[int, int, int], hi: U64, lo: U64, words: U64) -> None:
        same_hi = hi[1:] == hi[:-1]
        wrong = (hi[1:] < hi[:-1]) | (same_hi & (lo[1:] < lo[:-1]))
        wrong |= same_hi & (lo[1:] == lo[:-1]) & (words[1:] <= words[:-1])
        if (int(hi[0]), int(lo[0]), int(words[0])) <= last:
            self._findings.add("index", run.row.name, f"entry {row} is not above the one before it")
        for position in np.flatnonzero(wrong)[:_LISTED].tolist():
            message = f"entry {row + position + 1} is not above the one before it"
            self._findings.add("index", run.row.name, message, seq=int(words[position + 1] & _SEQ_MASK))

    def _check_entries(self, run: OpenRun, digests: U64, words: U64, seen: npt.NDArray[np.bool_]) -> I64:
        seqs = (words & _SEQ_MASK).astype(np.int64)
        inside = (seqs >= 1) & (seqs <= self._flushed)
        inside[inside] = self._known[seqs[inside]]
        name = run.row.name
        for seq in seqs[~inside][:_LISTED].tolist():
            self._findings.add("index", name, f"an entry of seq {seq}, which is not among the flushed records", seq=seq)
        good = seqs[inside]
        for seq in good[self._entries[good] != digests[inside]][:_LISTED].tolist():
            self._findings.add("index", name, f"the entry of seq {seq} does not fit its record", seq=seq)
        twice = good[seen[good]]
        before = int(np.count_nonzero(seen))
        seen[good] = True
        if int(np.count_nonzero(seen)) - before != len(good) - len(twice):  # the same seq twice in this batch
            values, counts = np.unique(good, return_counts=True)
            twice = np.concatenate([twice, values[counts > 1]])
        for seq in twice[:_LISTED].tolist():
            self._findings.add("index", name, f"a second entry of seq {seq}", seq=seq)
        return np.array([seqs.min(), seqs.max()]) if len(seqs) else seqs

    def check_summaries(self, runs: Sequence[OpenRun]) -> None:
        """Added up over the runs, the sums of each key and unit are those of its flushed records."""
        self._connection.execute(
            """
            CREATE TABLE kept (
                file INTEGER, hi UBIGINT, lo UBIGINT, unit VARCHAR, count BIGINT, positive DECIMAL(38, 9),
                negative DECIMAL(38, 9), first BIGINT, last BIGINT, lastSeq BIGINT)
            """
        )
        for number, run in enumerate(runs):
            row = 0
            seqs: list[I64] = []
            last: tuple[int, int, bytes] | None = None
            for batch in summaries_of(run, self._findings):
                if batch.num_rows:
                    last = self._check_summary_order(run, row, last, batch)
                    seqs.append(batch.column("lastSeq").to_numpy())
                self._connection.register("batch", pa.Table.from_batches([batch]))
                self._connection.execute("INSERT INTO kept SELECT ?, * FROM batch", [number])
                self._connection.unregister("batch")
                row += batch.num_rows
            self._findings.checked["summaries"] += row
            if seqs:
                seqs = [np.array([run.row.min_seq, max(int(piece.max()) for piece in seqs)])]
            check_facts(run, row, seqs, self._findings)
        for hi, lo, unit, files, kept, right in self._connection.sql(_DIFFERING).fetchall():
            keys = self._connection.execute(
                "SELECT destinationId, reference, lastSeq FROM earlier WHERE hi = ? AND lo = ? LIMIT 1", [hi, lo]
            ).fetchall()
            whose, seq = f"an unknown key {hi:016x}{lo:016x}", None
            for destination, reference, last_seq in keys:
                whose, seq = f"destinationId {destination!r}, reference {reference!r}", last_seq
            self._findings.add(
                "summary",
                runs[files[-1]].row.name if files else "internal/summaries",
                f"{whose}, unit {unit!r}: kept (count, positive, negative, first, last, lastSeq) {kept}, "
                f"the records give {right}",
                seq=seq,
            )

    def _check_summary_order(
        self, run: OpenRun, row: int, last: tuple[int, int, bytes] | None, batch: pa.RecordBatch
    ) -> tuple[int, int, bytes]:
        hi, lo = batch.column("hi").to_numpy(), batch.column("lo").to_numpy()
        wrong = (hi[1:] < hi[:-1]) | ((hi[1:] == hi[:-1]) & (lo[1:] < lo[:-1]))
        doubtful = np.flatnonzero((hi[1:] == hi[:-1]) & (lo[1:] == lo[:-1]))
        if len(doubtful):
            units = batch.column("unit").cast(pa.binary())
            above = pc.greater(units.take(pa.array(doubtful + 1)), units.take(pa.array(doubtful)))
            wrong[doubtful] = ~above.to_numpy(zero_copy_only=False)
        for position in np.flatnonzero(wrong)[:_LISTED].tolist():
            self._findings.add("summary", run.row.name, f"row {row + position + 1} is not above the one before it")
        units_of = [batch.column("unit")[at].as_py().encode() for at in (0, batch.num_rows - 1)]
        if last is not None and (int(hi[0]), int(lo[0]), units_of[0]) <= last:
            self._findings.add("summary", run.row.name, f"row {row} is not above the one before it")
        return int(hi[-1]), int(lo[-1]), units_of[1]

    def check_ids(self, fetch: Callable[[I64], pa.Table]) -> None:
        """No recordId stands twice. `fetch` gives `seq` and `recordId` of flushed seqs."""
        ranges = max(1, -(-self._seq // _SORTED_AT_ONCE))
        step = -(-(1 << 64) // ranges)
        for low in range(0, 1 << 64, step):
            high = min(low + step, 1 << 64) - 1
            chosen = np.flatnonzero(self._known & (self._ids >= np.uint64(low)) & (self._ids <= np.uint64(high)))
            hashes = self._ids[chosen]
            order = np.argsort(hashes)
            ordered = hashes[order]
            pair = ordered[1:] == ordered[:-1]
            if pair.any():
                alike = np.zeros(len(order), dtype=bool)
                alike[1:] |= pair
                alike[:-1] |= pair
                self._check_alike(np.sort(chosen[order[alike]]), fetch)

    def _check_alike(self, seqs: I64, fetch: Callable[[I64], pa.Table]) -> None:
        """Equal hashes may be those of different ids: what counts are the ids."""
        self._connection.register("candidates", fetch(seqs[seqs <= self._flushed]))
        self._connection.register("asked", pa.table({"seq": seqs}))
        found = self._connection.sql(
            f"""
            SELECT recordId, list(DISTINCT seq ORDER BY seq) AS seqs
            FROM (FROM candidates UNION ALL SELECT h.seq, h.recordId FROM hot_ids AS h SEMI JOIN asked USING (seq))
            GROUP BY recordId HAVING count(DISTINCT seq) > 1
            ORDER BY seqs LIMIT {_LISTED}
            """
        ).fetchall()
        for record_id, shared in found:
            message = f"recordId {record_id!r} is stored as seqs {', '.join(map(str, shared))}"
            self._findings.add("recordId", "outbox/notifications", message, seq=shared[1])
        self._connection.unregister("candidates")
        self._connection.unregister("asked")


_DIFFERING = f"""
WITH compared AS (
    SELECT 0 AS side, file, hi, lo, unit, count, positive, negative, first, last, lastSeq FROM kept
    UNION ALL
    SELECT
        1, NULL, hi, lo, unit, count, positive, negative, epoch_us(firstTime), epoch_us(lastTime), lastSeq
    FROM earlier WHERE flushed
)
SELECT
    hi, lo, unit, list(DISTINCT file ORDER BY file) FILTER (side = 0) AS files,
    concat_ws(', ', sum(count) FILTER (side = 0), sum(positive) FILTER (side = 0), sum(negative) FILTER (side = 0),
        min(first) FILTER (side = 0), max(last) FILTER (side = 0), max(lastSeq) FILTER (side = 0)) AS held,
    concat_ws(', ', sum(count) FILTER (side = 1), sum(positive) FILTER (side = 1), sum(negative) FILTER (side = 1),
        min(first) FILTER (side = 1), max(last) FILTER (side = 1), max(lastSeq) FILTER (side = 1)) AS meant
FROM compared SEMI JOIN (
    SELECT hi, lo, unit FROM compared GROUP BY ALL
    HAVING sum(CASE side WHEN 1 THEN count ELSE -count END) <> 0
        OR sum(CASE side WHEN 1 THEN positive ELSE -positive END) <> 0
        OR sum(CASE side WHEN 1 THEN negative ELSE -negative END) <> 0
        OR min(first) FILTER (side = 1) IS DISTINCT FROM min(first) FILTER (side = 0)
        OR max(last) FILTER (side = 1) IS DISTINCT FROM max(last) FILTER (side = 0)
        OR max(lastSeq) FILTER (side = 1) IS DISTINCT FROM max(lastSeq) FILTER (side = 0)
    LIMIT {_LISTED}
) USING (hi, lo, unit)
GROUP BY ALL
ORDER BY hi, lo, unit
"""


def _digest(hi: U64, lo: U64, words: U64, prints: U64) -> U64:
    """One number for an index entry; a change of one of the four always changes it."""
    digest = hi.copy()
    for lane in (lo, words, prints):
        digest = ((digest << np.uint64(31)) | (digest >> np.uint64(33))) * _GOLDEN ^ lane
    return digest

"""The rollups, proven from the records: hour by hour, destination by destination, unit by unit."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store.verification.report import Findings
from store.verification.runs import OpenRun, batches_of, check_facts

__all__ = ["Rollups"]

_LISTED = 101

_CELLS = """
(
    hour BIGINT, destinationId VARCHAR, unit VARCHAR, positives BIGINT, negatives BIGINT, positive DECIMAL(38, 9),
    negative DECIMAL(38, 9)
)
"""

_OF_RECORDS = """
INSERT INTO hours_meant
SELECT
    epoch_us(time) // 3600000000, destinationId, unit, count(*) FILTER (type = 'positive'),
    count(*) FILTER (type = 'negative'), coalesce(sum(value) FILTER (type = 'positive'), 0),
    coalesce(sum(value) FILTER (type = 'negative'), 0)
FROM records GROUP BY ALL
"""

_DIFFERING = f"""
WITH compared AS (
    SELECT * FROM hours_meant
    UNION ALL
    SELECT hour, destinationId, unit, -positives, -negatives, -positive, -negative FROM hours_kept
)
SELECT hour, destinationId, unit, sum(positives), sum(negatives), sum(positive), sum(negative)
FROM compared GROUP BY hour, destinationId, unit
HAVING sum(positives) <> 0 OR sum(negatives) <> 0 OR sum(positive) <> 0 OR sum(negative) <> 0
ORDER BY ALL LIMIT {_LISTED}
"""  # noqa: S608


class Rollups:
    """Takes the flushed records range by range (`add`), then holds the rollups against them (`check`)."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, flushed: int, findings: Findings) -> None:
        self._connection = connection
        self._flushed = flushed
        self._findings = findings
        connection.execute(f"CREATE TABLE hours_meant {_CELLS}; CREATE TABLE hours_kept {_CELLS}")

    def add(self) -> None:
        """The records of one range, all of them flushed, registered as `records`."""
        self._connection.execute(_OF_RECORDS)

    def check(self, runs: Sequence[OpenRun]) -> None:
        """Each stands for a range of seqs, together for all flushed ones, and they add up to the records."""
        covered = 0
        for run in sorted(runs, key=lambda run: run.row.min_seq):
            if run.row.min_seq != covered + 1:
                message = f"begins at seq {run.row.min_seq}, the one before it ends at {covered}"
                self._findings.add("rollup", run.row.name, message, seq=covered + 1)
            covered = run.row.max_seq
            self._take(run)
        if covered != self._flushed:
            message = f"the rollups end at seq {covered}, flushed are {self._flushed}"
            self._findings.add("rollup", "internal/rollups", message, seq=min(covered, self._flushed) + 1)
        for hour, destination, unit, *surplus in self._connection.sql(_DIFFERING).fetchall():
            at = np.datetime64(hour, "h")
            message = (
                f"destinationId {destination!r}, unit {unit!r}, hour {at}: the records have {surplus} more "
                "(positives, negatives, positive, negative)"
            )
            self._findings.add("rollup", "internal/rollups", message)

    def _take(self, run: OpenRun) -> None:
        rows = records = 0
        last: tuple[int, bytes, bytes] | None = None
        for batch in batches_of(run, self._findings):
            if not batch.num_rows:
                continue
            rows += batch.num_rows
            records += pc.sum(pc.add(batch.column("positives"), batch.column("negatives"))).as_py()
            last = self._check_order(run, last, batch)
            self._connection.register("batch", pa.Table.from_batches([batch]))
            self._connection.execute("INSERT INTO hours_kept FROM batch")
            self._connection.unregister("batch")
        self._findings.checked["rollups"] += rows
        check_facts(run, rows, [], self._findings)
        span = run.row.max_seq - run.row.min_seq + 1
        if records != span:
            message = f"counts {records} records, of seqs {run.row.min_seq} to {run.row.max_seq} there are {span}"
            self._findings.add("rollup", run.row.name, message, seq=run.row.min_seq)

    def _check_order(
        self, run: OpenRun, last: tuple[int, bytes, bytes] | None, batch: pa.RecordBatch
    ) -> tuple[int, bytes, bytes]:
        hours = batch.column("hour").to_numpy()
        above = hours[1:] > hours[:-1]
        same = np.flatnonzero(hours[1:] == hours[:-1])
        if len(same):
            names = [batch.column(name).cast(pa.binary()) for name in ("destinationId", "unit")]
            here, there = ([column.take(pa.array(same + step)) for column in names] for step in (0, 1))
            rising = pc.or_(
                pc.greater(there[0], here[0]), pc.and_(pc.equal(there[0], here[0]), pc.greater(there[1], here[1]))
            )
            above[same] = rising.to_numpy(zero_copy_only=False)
        ends = [
            (int(hours[at]), *(batch.column(name)[at].as_py().encode() for name in ("destinationId", "unit")))
            for at in (0, batch.num_rows - 1)
        ]
        if not above.all() or (last is not None and ends[0] <= last):
            self._findings.add("rollup", run.row.name, "its rows are not in order of hour, destinationId and unit")
        return ends[1]

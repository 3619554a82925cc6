"""The records as the Parquet files and the notification log hold them, a range of seqs at a time."""

# ruff: noqa: S608 - statements are put together from names and numbers of this package only; values are bound

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from store.holding import Holding
from store.limits import DAY_US
from store.schema import STORED
from store.verification.report import Findings, VanishedError

__all__ = ["FileFacts", "ParquetRecords", "read_lines"]

_EPOCH = date(1970, 1, 1)
_WIDE = 3
"""How often the files may be read over; beyond it (after compaction) they are brought into the order of seqs first."""

_COLUMNS = ", ".join(STORED.names)


@dataclass(frozen=True)
class FileFacts:
    """What a Parquet file really holds."""

    name: str
    rows: int
    min_seq: int
    max_seq: int
    min_time: int
    max_time: int


class ParquetRecords:
    """The rows of the Parquet files. Files that cannot be read are reported and left out."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, holding: Holding, names: Sequence[str], findings: Findings
    ) -> None:
        self._connection = connection
        self._holding = holding
        self._findings = findings
        self._staged = False
        self._by_path = {str(holding.path(name)): name for name in names}
        self.facts = {facts.name: facts for facts in self._examined([name for name in names if self._has_schema(name)])}
        for facts in self.facts.values():
            self._check_day(facts)

    def prepare(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Choose how `rows` of these ranges will be read."""
        everything = sum(facts.rows for facts in self.facts.values())
        read = sum(facts.rows for first, last in ranges for facts in self._overlapping(first, last))
        if read > _WIDE * everything:
            step = max(1, ranges[0][1] - ranges[0][0] + 1)
            scan = self._scan(list(self.facts))
            try:
                self._connection.execute(f"CREATE TABLE staged AS SELECT {_COLUMNS} FROM {scan} ORDER BY seq // {step}")
            except duckdb.IOException as error:
                raise VanishedError(str(error)) from error
            self._staged = True

    def rows(self, first: int, last: int) -> pa.Table:
        """The rows with `first <= seq <= last`, in no order; nulls and all."""
        names = [facts.name for facts in self._overlapping(first, last)]
        if not names:
            return STORED.empty_table()
        source = "staged" if self._staged else self._scan(names)
        return self._table(f"SELECT {_COLUMNS} FROM {source} WHERE seq BETWEEN {first:d} AND {last:d}")

    def files_of(self, seqs: Sequence[int]) -> list[tuple[int, str]]:
        """(seq, file) of every row with one of these seqs."""
        names = [facts.name for facts in self._overlapping(min(seqs), max(seqs))]
        self._connection.register("asked", pa.table({"seq": pa.array(seqs, pa.int64())}))
        try:
            found = self._table(
                f"SELECT seq, filename FROM {self._scan(names)} SEMI JOIN asked USING (seq) ORDER BY ALL LIMIT 1000"
            ).to_pylist()
        finally:
            self._connection.unregister("asked")
        return [(row["seq"], self._by_path[row["filename"]]) for row in found]

    def record_ids(self, seqs: npt.NDArray[np.int64]) -> pa.Table:
        """`seq` and `recordId` of the rows with these seqs."""
        if not self.facts:
            return STORED.empty_table().select(["seq", "recordId"])
        self._connection.register("asked", pa.table({"seq": seqs}))
        try:
            source = "staged" if self._staged else self._scan(list(self.facts))
            return self._table(f"SELECT seq, recordId FROM {source} SEMI JOIN asked USING (seq)")
        finally:
            self._connection.unregister("asked")

    def dense_to(self, limit: int) -> int:
        """The newest seq up to `limit` that is there with all before it."""
        present = np.zeros(limit + 2, dtype=bool)
        if self.facts:
            scan = self._scan(list(self.facts))
            for batch in self._connection.sql(f"SELECT seq FROM {scan} WHERE seq IS NOT NULL").to_arrow_reader(1 << 20):
                seqs = batch.column(0).to_numpy()
                present[seqs[(seqs >= 1) & (seqs <= limit)]] = True
        return int(np.argmin(present[1:]))

    def _overlapping(self, first: int, last: int) -> list[FileFacts]:
        return [facts for facts in self.facts.values() if facts.min_seq <= last and facts.max_seq >= first]

    def _scan(self, names: Sequence[str]) -> str:
        paths = ", ".join(_quoted(self._holding.path(name)) for name in names)
        return f"read_parquet([{paths}], hive_partitioning = false, union_by_name = false)"

    def _table(self, statement: str) -> pa.Table:
        try:
            return self._connection.sql(statement).to_arrow_table()
        except duckdb.IOException as error:
            raise VanishedError(str(error)) from error

    def _has_schema(self, name: str) -> bool:
        """Whether a file has the columns of `STORED`."""
        path = self._holding.path(name)
        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowException) as error:
            self._unreadable(name, error)
            return False
        if schema.names != STORED.names or schema.types != STORED.types:
            columns = ", ".join(f"{field.name} {field.type}" for field in schema)
            self._findings.add("parquet", name, f"its columns are {columns}")
            return False
        return True

    def _unreadable(self, name: str, error: Exception) -> None:
        if not self._holding.path(name).exists():
            raise VanishedError(f"{name} is gone") from error
        self._findings.add("parquet", name, f"cannot be read: {error}")

    def _examined(self, names: Sequence[str]) -> list[FileFacts]:
        """What the files hold, from their seqs and times; those that cannot be read are found one by one."""
        if not names:
            return []
        try:
            rows = self._connection.sql(
                "SELECT filename, count(*), min(seq), max(seq), min(epoch_us(time)), max(epoch_us(time)) "
                f"FROM {self._scan(names)} GROUP BY filename ORDER BY filename"
            ).fetchall()
        except duckdb.Error as error:
            if len(names) == 1:
                self._unreadable(names[0], error)
                return []
            return [facts for name in names for facts in self._examined([name])]
        found = [FileFacts(self._by_path[path], *values) for path, *values in rows if None not in values]
        for name in sorted(set(names) - {facts.name for facts in found}):
            self._findings.add("parquet", name, "holds no rows with seq and time")
        return found

    def _check_day(self, facts: FileFacts) -> None:
        """Every row's date is that of the directory."""
        directory = Path(facts.name).parent
        try:
            day = (date.fromisoformat(directory.name.removeprefix("date=")) - _EPOCH).days
        except ValueError:
            day = -1
        if str(directory.parent) != "records" or not directory.name.startswith("date="):
            day = -1
        if not facts.min_time // DAY_US == facts.max_time // DAY_US == day:
            self._findings.add("parquet", facts.name, f"holds times of other days than that of {directory}")

    def probe(self, name: str) -> None:
        """Decode every column of a file whose checksum is wrong, and do without it where that fails."""
        try:
            self._connection.sql(f"SELECT max(hash(t)) FROM {self._scan([name])} AS t").fetchall()
        except duckdb.Error as error:
            self._unreadable(name, error)
            self.facts.pop(name, None)


_PARSED = """
WITH texts AS (
    SELECT CASE WHEN json_valid(line) THEN line END AS line FROM lines
)
SELECT
    TRY_CAST(line->>'$.seq' AS BIGINT) AS seq,
    line->>'$.record.recordId' AS recordId,
    epoch_us(TRY_CAST(rtrim(line->>'$.record.time', 'Z') AS TIMESTAMP)) AS time,
    line->>'$.record.sourceId' AS sourceId,
    line->>'$.record.destinationId' AS destinationId,
    line->>'$.record.type' AS type,
    TRY_CAST(line->>'$.record.value' AS DECIMAL(38, 9)) AS value,
    line->>'$.record.unit' AS unit,
    line->>'$.record.reference' AS reference,
    epoch_us(TRY_CAST(rtrim(line->>'$.processedAt', 'Z') AS TIMESTAMP)) AS processedAt
FROM texts
"""


def read_lines(connection: duckdb.DuckDBPyConnection, lines: Sequence[bytes]) -> pa.Table:
    """The records of notification lines, schema `STORED`; lines that hold none are left out.

    The casts may round or drop what is not canonical: the line made again from the record then differs from this one.
    """
    texts = pa.array([line.decode("utf-8", "replace") for line in lines], pa.string())
    connection.register("lines", pa.table({"line": texts}))
    try:
        parsed = connection.sql(_PARSED).to_arrow_table()
    finally:
        connection.unregister("lines")
    whole = parsed.drop_null()
    return pa.table([whole.column(name).cast(STORED.field(name).type) for name in STORED.names], schema=STORED)


def _quoted(path: Path) -> str:
    """A path as a SQL text that DuckDB does not take for a pattern."""
    text = "".join(f"[{char}]" if char in "*?[" else char for char in str(path))
    return "'" + text.replace("'", "''") + "'"

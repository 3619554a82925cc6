"""Aggregations: DuckDB SQL over the Parquet files and the hot rows of a snapshot, in one query.

Totals take whole hours from the rollups and read only the records that these do not stand for.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from store.engine import Engine, Stop, as_tables
from store.errors import AnswerTooLargeError, QueryError
from store.filters import Filters, Place, at, chosen, conditions, may_match
from store.limits import DAY_US
from store.rollups import HOUR_US, ROLLUP_SCHEMA, covering
from store.rot import sound
from store.schema import CANONICAL_FIELDS, SCALE, STORED
from store.snapshot import SealedFile, Snapshot
from store.sums import from_limbs, group_sums, limbs
from store.whole import whole

__all__ = [
    "RECORDS",
    "TOTALS",
    "Page",
    "as_of",
    "by_unit",
    "records",
    "totals",
    "totals_in_batches",
]

_DECIMAL = pa.decimal128(38, SCALE)
_FIRST_DAYS = [(1 << power) - 1 for power in range(1, 22)]
"""After so many days with files the next part of a question begins: after one, three, seven."""

TOTALS = pa.schema(
    [
        pa.field("destinationId", pa.string()),
        pa.field("unit", pa.string()),
        pa.field("count", pa.int64()),
        pa.field("positive", _DECIMAL),
        pa.field("negative", _DECIMAL),
        pa.field("net", _DECIMAL),
    ]
)
"""Totals by destination and unit, ordered by both."""

RECORDS = pa.schema([STORED.field(name) for name in ("seq", *CANONICAL_FIELDS)])
"""Records as an aggregation lists them."""


class Page(NamedTuple):
    """Records in order, and the place of the last one where there are more behind it."""

    batches: Iterator[pa.RecordBatch]
    end: Place | None


def as_of(snapshot: Snapshot, filters: Filters) -> int:
    """The seq that an answer stands for."""
    if filters.as_of is None:
        return snapshot.seq
    if filters.as_of > snapshot.seq:
        raise QueryError(f"asOf is {filters.as_of}, the newest seq is {snapshot.seq}", parameter="asOf")
    return filters.as_of


def totals(engine: Engine, snapshot: Snapshot, filters: Filters) -> pa.Table:
    """Totals by destination and unit (`TOTALS`), exact, by code point."""
    with totals_in_batches(engine, snapshot, filters) as batches:
        return pa.Table.from_batches(batches, TOTALS)


@contextlib.contextmanager
def totals_in_batches(
    engine: Engine, snapshot: Snapshot, filters: Filters, stop: Stop | None = None, max_rows: int = 0
) -> Iterator[Iterator[pa.RecordBatch]]:
    """The same, streamed: there may be as many groups as records. `AnswerTooLargeError` beyond `max_rows` (0: none)."""
    rolled = _rolled_up(snapshot, filters)
    source = _source(snapshot, filters, rolled)
    sums = f"""
        SELECT
            destinationId,
            unit,
            count(*) AS count,
            coalesce(sum(value) FILTER (type = 'positive'), 0)::DECIMAL(38, 9) AS positive,
            coalesce(sum(value) FILTER (type = 'negative'), 0)::DECIMAL(38, 9) AS negative
        FROM ({source.sql})
        GROUP BY destinationId, unit
    """  # noqa: S608  (the source is made of fixed texts)
    if rolled is not None:
        source.tables["rollup"] = rolled.rows
        sums = f"""
            SELECT
                destinationId, unit, sum(count)::BIGINT AS count, sum(positive) AS positive, sum(negative) AS negative
            FROM ({sums} UNION ALL {_of_rollup(filters)})
            GROUP BY destinationId, unit
        """  # noqa: S608
    sql = f"""
        SELECT *, (positive - negative)::DECIMAL(38, 9) AS net
        FROM ({sums})
        WHERE count > 0
        ORDER BY destinationId, unit
    """  # noqa: S608
    seen = _Seen(None, max_rows)
    with engine.query(sql, source.parameters, source.tables, rows=source.rows, stop=stop, watch=seen) as batches:
        yield (batch.cast(TOTALS) for batch in batches)


def by_unit(totals: pa.Table) -> pa.Table:
    """Totals of all destinations together: the columns of `TOTALS` but destinationId, ordered by unit."""
    columns = TOTALS.names[1:]
    if not totals.num_rows:
        return TOTALS.empty_table().select(columns)
    units = whole(totals.column("unit")).dictionary_encode()
    order = np.argsort(units.indices.to_numpy(), kind="stable")
    codes = units.indices.to_numpy()[order]
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    sums = [
        from_limbs(group_sums(limbs(whole(totals.column(name)))[order], starts))
        for name in ("positive", "negative", "net")
    ]
    counts = np.add.reduceat(totals.column("count").to_numpy()[order], starts)
    table = pa.table([units.dictionary.take(pa.array(codes[starts])), counts, *sums], names=columns)
    return table.sort_by("unit")


@contextlib.contextmanager
def records(
    engine: Engine,
    snapshot: Snapshot,
    filters: Filters,
    limit: int | None = None,
    stop: Stop | None = None,
    max_rows: int = 0,
) -> Iterator[Page]:
    """The matching records (`RECORDS`) in order, streamed: all, or the first `limit` of them.

    `AnswerTooLargeError` where there would be more than `max_rows` (0: none).
    """
    seen = _Seen(limit, max_rows)
    began = time.monotonic()
    with contextlib.ExitStack() as opened:
        found: list[Iterator[pa.RecordBatch]] = []
        for span in _spans(snapshot, filters, limit):
            source = _source(snapshot, span)
            sql = f"""
                WITH matching AS ({source.sql})
                SELECT {", ".join(RECORDS.names)}
                FROM matching
                ORDER BY destinationId, time, seq
                {"LIMIT $limit" if limit is not None else ""}
            """  # noqa: S608
            if limit is not None:
                source.parameters["limit"] = limit + 1 - seen.rows
            spent_s = time.monotonic() - began if found else 0.0
            query = engine.query(
                sql, source.parameters, source.tables, rows=source.rows, stop=stop, watch=seen, spent_s=spent_s
            )
            found.append(opened.enter_context(query))
            if seen.has_more:
                break
        end = seen.place if seen.has_more else None
        yield Page((batch.cast(RECORDS) for batch in _first(itertools.chain(*found), limit)), end)


def _spans(snapshot: Snapshot, filters: Filters, limit: int | None) -> list[Filters]:
    """Questions that answer this one when they are asked one after another, until there are `limit` records and one.

    The records of one destination stand in the order of their times, so that those of the first days come first: one
    day of those that have files, then the next two, the next four and so on.
    """
    if limit is None or len(filters.destination_ids) != 1:
        return [filters]
    start, end, after = filters.start_us, filters.end_us, filters.after
    if after is not None and after[0] == filters.destination_ids[0]:
        start = max(after[1], start or 0)
    filters = replace(filters, start_us=start)
    days = sorted({file.day for file in snapshot.files if may_match(file, filters, snapshot.flushed)})
    edges = [days[number] * DAY_US for number in _FIRST_DAYS if number < len(days)]
    return [
        replace(filters, start_us=begin, end_us=until)
        for begin, until in zip([start, *edges], [*edges, end], strict=True)
    ]


class _Seen:
    """Looks at the rows of an answer while it is made: how many, and where the last one of a page stands."""

    def __init__(self, limit: int | None, max_rows: int) -> None:
        self.rows = 0
        self.place: Place | None = None
        self._limit = limit
        self._max_rows = max_rows

    @property
    def has_more(self) -> bool:
        """Whether there are more than the first `limit`."""
        return self._limit is not None and self.rows > self._limit

    def __call__(self, batch: pa.RecordBatch) -> None:
        before, self.rows = self.rows, self.rows + batch.num_rows
        if self._limit is not None and before < self._limit <= self.rows:
            self.place = _place(batch, self._limit - before - 1)
        if self._max_rows and min(self.rows, self._limit or self.rows) > self._max_rows:
            raise AnswerTooLargeError(
                f"the answer has more than {self._max_rows} rows (api.max_answer_rows): "
                "ask for it in pages with limit and cursor, or for a shorter time or fewer destinations"
            )


def _place(rows: pa.RecordBatch, row: int) -> Place:
    time = rows.column("time")[row].cast(pa.int64()).as_py()
    return rows.column("destinationId")[row].as_py(), time, rows.column("seq")[row].as_py()


def _first(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    """The first `limit` rows."""
    left = limit
    for batch in batches:
        if left is None:
            yield batch
        elif left:
            yield batch.slice(0, left)
            left -= min(left, batch.num_rows)


@dataclass(frozen=True)
class _Source:
    """The SQL of the matching rows with its parameters and tables, and how many rows it reads at most."""

    sql: str
    parameters: dict[str, Any]
    tables: dict[str, pa.Table]
    rows: int


@dataclass(frozen=True)
class _RolledUp:
    """Rows of rollups, which stand for the records up to seq `covered` from `start_us` until `end_us` (None: all)."""

    rows: pa.Table
    covered: int
    start_us: int | None
    end_us: int | None

    def holds(self, file: SealedFile, filters: Filters) -> bool:
        """Whether no record of the file has to be read: none above `covered`, and none of an hour that is cut."""
        edges = []
        if filters.start_us is not None and self.start_us is not None:
            edges.append((filters.start_us, self.start_us))
        if filters.end_us is not None and self.end_us is not None:
            edges.append((self.end_us, filters.end_us))
        return file.max_seq <= self.covered and not any(
            begin < end and file.min_time_us < end and file.max_time_us >= begin for begin, end in edges
        )


def _rolled_up(snapshot: Snapshot, filters: Filters) -> _RolledUp | None:
    """What the rollups can answer of a question: whole hours of records up to a seq; None where it is nothing."""
    if filters.source_ids or filters.references or filters.after is not None:
        return None
    rollups, covered = covering(snapshot.rollups, min(snapshot.flushed, as_of(snapshot, filters)))
    if not rollups:
        return None
    begin = None if filters.start_us is None else -(-filters.start_us // HOUR_US)
    end = None if filters.end_us is None else filters.end_us // HOUR_US
    pieces = [
        piece
        for rollup in rollups
        for piece in rollup.between(
            rollup.hours[0] if begin is None else begin, rollup.hours[1] if end is None else end
        )
    ]
    if begin is not None and end is not None and begin >= end:
        return None
    return _RolledUp(
        pa.Table.from_batches(pieces, ROLLUP_SCHEMA),
        covered,
        None if begin is None else begin * HOUR_US,
        None if end is None else end * HOUR_US,
    )


def _of_rollup(filters: Filters) -> str:
    """The SQL of sums from the rollup, with the parameters of `conditions`."""
    chosen_by, _ = chosen(filters)
    positive, negative = (filters.type in (None, name) for name in ("positive", "negative"))
    return f"""
        SELECT
            destinationId,
            unit,
            {"positives" if positive else "0"} + {"negatives" if negative else "0"} AS count,
            {"positive" if positive else "0::DECIMAL(38, 9)"} AS positive,
            {"negative" if negative else "0::DECIMAL(38, 9)"} AS negative
        FROM rollup
        WHERE TRUE {"".join(f" AND {condition}" for condition in chosen_by)}
    """  # noqa: S608


def _source(snapshot: Snapshot, filters: Filters, rolled: _RolledUp | None = None) -> _Source:
    """The matching rows, from files up to the flushed seq and from hot tables above it, but those rolled up."""
    newest = as_of(snapshot, filters)
    flushed = min(snapshot.flushed, newest)
    where, parameters = conditions(filters)
    columns = ", ".join(RECORDS.names)
    files = [file for file in snapshot.files if may_match(file, filters, flushed)]
    outside = ""
    if rolled is not None:
        files = [file for file in files if not rolled.holds(file, filters)]
        outside = _outside(rolled, parameters) if files else ""
    hot = as_tables([table for table in snapshot.hot if table.num_rows], STORED)
    parts = []
    tables = {}
    if files:
        sound(files)
        parameters["files"] = [str(file.path) for file in files]
        below = "TRUE"  # mostly all rows are: then the seqs need not be read at all
        if any(file.max_seq > flushed for file in files):
            below = "seq <= $flushed"
            parameters["flushed"] = flushed
        parts.append(
            f"SELECT {columns} FROM read_parquet($files, hive_partitioning = false) WHERE {below}{outside}{where}"  # noqa: S608
        )
    if hot.num_rows or not files:
        tables["hot"] = hot
        parameters |= {"hot_after": snapshot.flushed, "newest": newest}
        parts.append(f"SELECT {columns} FROM hot WHERE seq > $hot_after AND seq <= $newest{where}")  # noqa: S608
    rows = sum(file.rows for file in files) + hot.num_rows + (rolled.rows.num_rows if rolled else 0)
    return _Source(" UNION ALL ".join(parts), parameters, tables, rows)


def _outside(rolled: _RolledUp, parameters: dict[str, Any]) -> str:
    """The condition on records that the rollups do not stand for."""
    parameters["covered"] = rolled.covered
    either = ["seq > $covered"]
    for name, operator, us in (("whole_from", "<", rolled.start_us), ("whole_until", ">=", rolled.end_us)):
        if us is not None:
            either.append(f"time {operator} ${name}")
            parameters[name] = at(us)
    return f" AND ({' OR '.join(either)})"

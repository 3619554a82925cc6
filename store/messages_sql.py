"""The notification and alert lines of any range of seqs, made from stored records by DuckDB alone.

This is the second, independent way to the bytes of the outboxes: `verify` compares them with what was written, and
whatever has to be made again (`replay`, feeds whose segments are gone) is made here. Nothing is shared with the module
that writes them but the contract, section 5.

All statements read relations by these names, which the caller makes on its connection:

- `records`: the records of the range, columns of `store.schema.STORED`
- `history`: what lies before the range, one row for each key and unit: the columns of `SUMMARY_COLUMNS`; only keys of
  the range matter, see `HISTORY_OF_RECORDS`
- `alert_rules`, `alert_thresholds`: see `load_rules`
"""

# ruff: noqa: S608 - statements are put together from names and numbers of this package only; values are bound

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa

__all__ = [
    "HISTORY_OF_RECORDS",
    "HISTORY_OF_SUMMARIES",
    "SUMMARIES_OF_RECORDS",
    "SUMMARY_COLUMNS",
    "RulesSince",
    "alert_lines",
    "load_rules",
    "notification_lines",
]

_BATCH_ROWS = 65_536

SUMMARY_COLUMNS = (
    "destinationId",
    "reference",
    "unit",
    "count",
    "positive",
    "negative",
    "firstTime",
    "lastTime",
    "lastSeq",
)

_SUMS = """
    count(*) AS count,
    coalesce(sum(value) FILTER (type = 'positive'), 0)::DECIMAL(38, 9) AS positive,
    coalesce(sum(value) FILTER (type = 'negative'), 0)::DECIMAL(38, 9) AS negative,
    min(time) AS firstTime, max(time) AS lastTime, max(seq) AS lastSeq
"""

SUMMARIES_OF_RECORDS = f"SELECT destinationId, reference, unit, {_SUMS} FROM records GROUP BY ALL"
"""The summary rows that `records` add to the history of whatever follows."""

HISTORY_OF_RECORDS = f"""
SELECT destinationId, reference, unit, {_SUMS}
FROM earlier SEMI JOIN records USING (destinationId, reference)
GROUP BY ALL
"""
"""`history` from `earlier`, the stored records with seqs below those of `records`."""


HISTORY_OF_SUMMARIES = """
SELECT destinationId, reference, unit, sum(count)::BIGINT AS count,
    sum(positive)::DECIMAL(38, 9) AS positive, sum(negative)::DECIMAL(38, 9) AS negative,
    min(firstTime) AS firstTime, max(lastTime) AS lastTime, max(lastSeq) AS lastSeq
FROM earlier SEMI JOIN records USING (destinationId, reference)
GROUP BY ALL
"""
"""`history` from `earlier`, summary rows (any number for a key and unit) of all records below those of `records`."""


def _time(column: str) -> str:
    # through a timestamp without zone: formatting one with a zone needs the ICU extension
    return f"strftime(make_timestamp(epoch_us({column})), '%Y-%m-%dT%H:%M:%S.%fZ')"


def _decimal(column: str) -> str:
    # DuckDB writes all nine digits, so there is a point and only zeros after it are taken off
    return f"rtrim(rtrim({column}::VARCHAR, '0'), '.')"


def _record(prefix: str) -> str:
    """The canonical form of a record, contract section 1. `to_json` escapes only what JSON asks for."""
    return f"""concat(
        '{{"recordId":', to_json({prefix}recordId)::VARCHAR, ',"time":"', {_time(prefix + "time")},
        '","sourceId":', to_json({prefix}sourceId)::VARCHAR,
        ',"destinationId":', to_json({prefix}destinationId)::VARCHAR, ',"type":"', {prefix}type,
        '","value":"', {_decimal(prefix + "value")}, '","unit":', to_json({prefix}unit)::VARCHAR,
        ',"reference":', to_json({prefix}reference)::VARCHAR, '}}')"""


_TOTAL = f"""concat(
    '{{"unit":', to_json(unit)::VARCHAR, ',"count":', count, ',"positive":"', {_decimal("positive")},
    '","negative":"', {_decimal("negative")}, '","net":"', {_decimal("(positive - negative)")}, '"}}')"""

_BEFORE = "ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING"

_NOTIFICATIONS = f"""
WITH several AS (
    -- keys whose records have more than one unit: their totals are lists, and take the longer way
    SELECT destinationId, reference
    FROM (
        SELECT destinationId, reference, unit FROM records
        UNION ALL
        SELECT destinationId, reference, unit FROM history
    )
    GROUP BY ALL
    HAVING min(unit) <> max(unit)
),
single AS (
    SELECT
        r.seq, r.unit,
        count(*) OVER before + coalesce(h.count, 0) AS count,
        coalesce(sum(CASE r.type WHEN 'positive' THEN r.value ELSE 0 END) OVER before, 0)
            + coalesce(h.positive, 0) AS positive,
        coalesce(sum(CASE r.type WHEN 'negative' THEN r.value ELSE 0 END) OVER before, 0)
            + coalesce(h.negative, 0) AS negative,
        least(min(r.time) OVER before, h.firstTime) AS firstTime,
        greatest(max(r.time) OVER before, h.lastTime) AS lastTime,
        greatest(max(r.seq) OVER before, h.lastSeq) AS lastSeq
    FROM (FROM records ANTI JOIN several USING (destinationId, reference)) AS r
    LEFT JOIN history AS h USING (destinationId, reference)
    WINDOW before AS (PARTITION BY r.destinationId, r.reference {_BEFORE})
),
units AS (
    SELECT DISTINCT destinationId, reference, unit
    FROM (
        SELECT destinationId, reference, unit FROM records
        UNION ALL
        SELECT destinationId, reference, unit FROM history
    )
    SEMI JOIN several USING (destinationId, reference)
),
by_unit AS (
    -- every record of such a key beside each unit of the key, with what was before it in that unit
    SELECT
        r.seq, u.unit,
        count(*) FILTER (r.unit = u.unit) OVER before + coalesce(h.count, 0) AS count,
        coalesce(sum(r.value) FILTER (r.unit = u.unit AND r.type = 'positive') OVER before, 0)
            + coalesce(h.positive, 0) AS positive,
        coalesce(sum(r.value) FILTER (r.unit = u.unit AND r.type = 'negative') OVER before, 0)
            + coalesce(h.negative, 0) AS negative,
        least(min(r.time) FILTER (r.unit = u.unit) OVER before, h.firstTime) AS firstTime,
        greatest(max(r.time) FILTER (r.unit = u.unit) OVER before, h.lastTime) AS lastTime,
        greatest(max(r.seq) FILTER (r.unit = u.unit) OVER before, h.lastSeq) AS lastSeq
    FROM records AS r
    JOIN units AS u USING (destinationId, reference)
    LEFT JOIN history AS h
        ON h.destinationId = r.destinationId AND h.reference = r.reference AND h.unit = u.unit
    WINDOW before AS (PARTITION BY r.destinationId, r.reference, u.unit {_BEFORE})
),
summaries AS (
    SELECT seq, count, firstTime, lastTime, lastSeq, {_TOTAL} AS totals
    FROM single WHERE count > 0
    UNION ALL
    SELECT
        seq, sum(count)::BIGINT, min(firstTime), max(lastTime), max(lastSeq), string_agg({_TOTAL}, ',' ORDER BY unit)
    FROM by_unit WHERE count > 0
    GROUP BY seq
)
SELECT r.seq, concat(
    '{{"seq":', r.seq, ',"processedAt":"', {_time("r.processedAt")}, '","record":', {_record("r.")}, ',"previous":',
    CASE WHEN s.seq IS NULL
        THEN '{{"count":0,"firstTime":null,"lastTime":null,"lastSeq":null,"totals":[]}}'
        ELSE concat(
            '{{"count":', s.count, ',"firstTime":"', {_time("s.firstTime")}, '","lastTime":"', {_time("s.lastTime")},
            '","lastSeq":', s.lastSeq, ',"totals":[', s.totals, ']}}')
    END, '}}', chr(10)) AS line
FROM records AS r LEFT JOIN summaries AS s USING (seq)
ORDER BY r.seq
"""

_ALERTS = f"""
WITH weighed AS (
    SELECT r.*, coalesce(of_destination.threshold, of_unit.threshold, rules.threshold) AS threshold
    FROM records AS r
    JOIN alert_rules AS rules ON r.seq BETWEEN rules.firstSeq AND rules.lastSeq
    LEFT JOIN alert_thresholds AS of_destination
        ON of_destination.rules = rules.rules AND of_destination.field = 'destinationId'
        AND of_destination.name = r.destinationId
    LEFT JOIN alert_thresholds AS of_unit
        ON of_unit.rules = rules.rules AND of_unit.field = 'unit' AND of_unit.name = r.unit
)
SELECT seq, concat(
    '{{"seq":', seq, ',"processedAt":"', {_time("processedAt")}, '","record":', {_record("")},
    ',"threshold":"', {_decimal("threshold")}, '"}}', chr(10)) AS line
FROM weighed
WHERE value > threshold
ORDER BY seq
"""


@dataclass(frozen=True)
class RulesSince:
    """Alert thresholds in force from a seq on, until the next rules. Decimals as text."""

    first_seq: int
    threshold: str
    by_unit: Mapping[str, str] = field(default_factory=dict)
    by_destination: Mapping[str, str] = field(default_factory=dict)


def notification_lines(connection: duckdb.DuckDBPyConnection) -> pa.RecordBatchReader:
    """Columns `seq`, `line` (with its newline), in seq order, one for each of `records`."""
    return connection.sql(_NOTIFICATIONS).to_arrow_reader(_BATCH_ROWS)


def alert_lines(connection: duckdb.DuckDBPyConnection) -> pa.RecordBatchReader:
    """Columns `seq`, `line` (with its newline), in seq order, for those of `records` above their threshold."""
    return connection.sql(_ALERTS).to_arrow_reader(_BATCH_ROWS)


def load_rules(connection: duckdb.DuckDBPyConnection, rules: Sequence[RulesSince]) -> None:
    """Make the tables that `alert_lines` reads. `rules` in the order in which they came into force."""
    connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE alert_rules
            (rules BIGINT, firstSeq BIGINT, lastSeq BIGINT, threshold DECIMAL(38, 9));
        CREATE OR REPLACE TEMP TABLE alert_thresholds
            (rules BIGINT, field VARCHAR, name VARCHAR, threshold DECIMAL(38, 9));
        """
    )
    ends = [later.first_seq - 1 for later in rules[1:]] + [2**63 - 1]
    for number, (since, end) in enumerate(zip(rules, ends, strict=False)):
        values = [number, since.first_seq, end, since.threshold]
        connection.execute("INSERT INTO alert_rules VALUES (?, ?, ?, ?)", values)
        for name_of, thresholds in (("unit", since.by_unit), ("destinationId", since.by_destination)):
            if thresholds:
                rows = pa.table({"name": list(thresholds), "threshold": list(thresholds.values())})
                connection.register("given_thresholds", rows)
                connection.execute(
                    "INSERT INTO alert_thresholds SELECT ?, ?, name, threshold FROM given_thresholds", [number, name_of]
                )
                connection.unregister("given_thresholds")

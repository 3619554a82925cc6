"""Totals by destination, time-filtered, beside the same SQL typed into DuckDB over the same files."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa

from bench.context import Context
from bench.measure import Line, alternate
from store.engine import Engine
from store.filters import Filters
from store.queries import totals as ask
from store.store import Store, StoreSettings

__all__ = ["END_US", "START_US", "timed", "totals", "totals_of"]


START_US = 1_709_251_200_000_000 + 36 * 3_600_000_000
END_US = START_US + 72 * 3_600_000_000
"""Three of the seven days, begun and ended at noon."""

_SQL = """
    SELECT destinationId, unit, count(*) AS count,
        coalesce(sum(value) FILTER (type = 'positive'), 0)::DECIMAL(38, 9) AS positive,
        coalesce(sum(value) FILTER (type = 'negative'), 0)::DECIMAL(38, 9) AS negative,
        (positive - negative)::DECIMAL(38, 9) AS net
    FROM read_parquet('{glob}', hive_partitioning = false)
    WHERE time >= make_timestamptz({start}) AND time < make_timestamptz({end})
    GROUP BY destinationId, unit ORDER BY destinationId, unit
"""


def totals(context: Context) -> list[Line]:
    """Over the big lake, in this process, each asked three times a round."""
    root = context.lake
    typed = duckdb.connect(config={"threads": "2"})
    typed.execute("SET TimeZone = 'UTC'")
    store = Store(StoreSettings(root))
    engine = Engine(root, context.work / "temp")
    sql = _SQL.format(glob=root / "records" / "**" / "*.parquet", start=START_US, end=END_US)
    answers: dict[str, pa.Table] = {}

    def ours() -> None:
        answers["ours"] = ask(engine, store.snapshot(), Filters(start_us=START_US, end_us=END_US))

    def peer() -> None:
        answers["peer"] = typed.sql(sql).to_arrow_table()

    ours()
    peer()
    try:
        mine, theirs = alternate(
            context.rounds, lambda _: _best(ours) * 1e3, lambda _: _best(peer) * 1e3
        )  # fmt: skip
        rows = store.seq
        files = len(store.snapshot().files)
    finally:
        store.close()
        engine.close()
        typed.close()
    assert answers["ours"].to_pydict() == answers["peer"].to_pydict(), "the answers differ"
    what = f"by destination, 3 of 7 days of {rows:,}"
    note = f"{files} Parquet files; answers equal to the last digit"
    return [Line("totals", what, "ms", mine, "DuckDB, same SQL", theirs, 1.3, at_least=False, note=note)]


def totals_of(root: Path, work: Path) -> float:
    """Seconds of the same question to a stopped lake, the best of three."""
    store = Store(StoreSettings(root))
    engine = Engine(root, work / "temp")
    try:
        return _best(lambda: ask(engine, store.snapshot(), Filters(start_us=START_US, end_us=END_US)))
    finally:
        store.close()
        engine.close()


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _best(action: Callable[[], object]) -> float:
    return min(timed(action) for _ in range(3))

"""Bulk files through the inbox of the real service, beside DuckDB's bare copy of the same file."""

from __future__ import annotations

import shutil
import statistics
import sys

from bench.context import BULK, Context
from bench.measure import Line, alternate, say
from bench.process import Ingested, Service, run_json, verify
from bench.totals import timed

__all__ = ["bulk_known", "bulk_ndjson", "bulk_parquet", "memory"]


def bulk_ndjson(context: Context) -> list[Line]:
    """One NDJSON file into an empty lake."""
    line = _beside_copy(context, "bulk_ndjson", "ndjson")
    line.target = 0.33
    return [line]


def bulk_parquet(context: Context) -> list[Line]:
    """One Parquet file into an empty lake."""
    line = _beside_copy(context, "bulk_parquet", "parquet")
    absolute = Line("bulk_parquet", "from the inbox, empty index", "records/s", line.ours, target=300_000)
    return [line, absolute]


def _beside_copy(context: Context, row: str, form: str) -> Line:
    given = context.input(form)
    runs: list[Ingested] = []

    def ours(number: int) -> float:
        runs.append(context.bulk(given, check=number == 0))
        return runs[-1].rate

    def peer(number: int) -> float:
        target = context.fresh("copy")
        seconds = run_json(sys.executable, "-m", "bench.peer_copy", str(given.path), str(target))["seconds"]
        shutil.rmtree(target)
        return given.records / seconds

    mine, theirs = alternate(context.rounds, ours, peer)
    return Line(row, "from the inbox, empty index", "records/s", mine, "DuckDB copy", theirs, note=_told(runs))


def _told(runs: list[Ingested]) -> str:
    cpu = statistics.median(run.cpu_s / run.records for run in runs) * 1e6
    busy = statistics.median(run.cpu_s / run.stored_s for run in runs)
    receipt = statistics.median(run.records / run.receipt_s for run in runs)
    return f"{cpu:.1f} µs of CPU a record, {busy:.2f} cores busy; {receipt:,.0f} records/s until the receipt"


def bulk_known(context: Context) -> list[Line]:
    """The same file size into a lake that knows ten times as many ids, beside an empty one."""
    lake = context.lake
    empty = context.input()
    runs: list[Ingested] = []

    def ours(number: int) -> float:
        with Service(lake, **BULK) as service:
            runs.append(context.grow(service))
        return runs[-1].rate

    def peer(number: int) -> float:
        return context.bulk(empty, check=False).rate

    mine, theirs = alternate(context.rounds, ours, peer)
    if not context.options.no_verify:
        say(f"  verify took {timed(lambda: verify(lake)):.0f} s")
    target = 0.67 if context.records >= 1_000_000 else None
    what = f"{10 * context.records:,} ids known"
    return [Line("bulk_known", what, "records/s", mine, "oncelake, empty index", theirs, target, note=_told(runs))]


def memory(context: Context) -> list[Line]:
    """The most anonymous memory that any service of this run had."""
    if not Service.peaks:
        context.bulk(context.input(), check=False)
    what = f"RssAnon of the service, most of {len(Service.peaks)} runs"
    note = "the target (1 GiB) is for 20 million records in and 100 million ids known, which no row here reaches"
    return [Line("memory", what, "MiB", [max(Service.peaks)], note=note)]

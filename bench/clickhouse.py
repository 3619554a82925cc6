"""chDB (ClickHouse in a wheel): the same NDJSON into a MergeTree, and the same totals."""

from __future__ import annotations

import shutil

from bench.context import BULK, Context
from bench.measure import Line, alternate
from bench.peers import interpreter
from bench.process import Service, run_json
from bench.totals import END_US, START_US, totals_of

__all__ = ["chdb"]


def chdb(context: Context) -> list[Line]:
    """Load and totals, each in a directory of its own."""
    python = interpreter("chdb", "chdb")
    given = context.input()
    mine: list[float] = []
    theirs: list[float] = []

    def ours(number: int) -> float:
        data = context.fresh("beside-chdb")
        with Service(data, **BULK) as service:
            done = service.ingest(given.path, given.path.name, given.records)
        mine.append(totals_of(data, context.work) * 1e3)
        shutil.rmtree(data)
        return done.rate

    def peer(number: int) -> float:
        data = context.fresh("chdb")
        arguments = (str(given.path), str(data), str(START_US), str(END_US))
        done = run_json(python, "-m", "bench.peer_chdb", *arguments)
        assert done["rows"] == given.records
        theirs.append(done["totals"] * 1e3)
        shutil.rmtree(data, ignore_errors=True)
        return given.records / float(done["load"])

    loads = alternate(context.rounds, ours, peer)
    asked = f"totals, 3 of 7 days of {given.records:,}"
    note = "chDB neither deduplicates, notifies nor syncs"
    return [
        Line("chdb", "bulk NDJSON", "records/s", loads[0], "chDB, MergeTree", loads[1], note=note),
        Line("chdb", asked, "ms", mine, "chDB, MergeTree", theirs, 1.0, at_least=False),
    ]

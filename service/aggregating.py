"""`oncelake aggregate`: totals and records by destination, read beside a running service or without one."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from api.answers import json_answer
from api.questions import Question
from api.rows import ARROW, CSV, NDJSON, PARQUET, flat_answer
from service.config import Config
from store.canonical import render_decimals, render_times
from store.engine import Engine
from store.errors import ConfigError
from store.filters import Filters
from store.holding import HANDLES, Holding
from store.queries import RECORDS, TOTALS, records, totals
from store.reading import read_snapshot
from store.snapshot import Snapshot
from store.times import parse_bound

__all__ = ["aggregate"]

_FORMS = {"csv": CSV, "ndjson": NDJSON, "arrow": ARROW, "parquet": PARQUET}


def aggregate(config: Config, options: argparse.Namespace) -> int:
    """Print an aggregation as a table, or in a format of the API."""
    root = Path(config.store.data_dir)
    filters = Filters(
        start_us=_time("--start-time", options.start_time),
        end_us=_time("--end-time", options.end_time),
        type=options.type,
        destination_ids=tuple(options.destination_id),
        source_ids=tuple(options.source_id),
        references=tuple(options.reference),
        units=tuple(options.unit),
        as_of=options.as_of,
    )
    with Holding(root) as holding, tempfile.TemporaryDirectory(prefix="oncelake-") as temp:
        snapshot = read_snapshot(root, holding)
        memory, threads = config.store.query_memory, config.store.query_threads
        engine = Engine(root, Path(temp), memory=memory, threads=threads, also=HANDLES)
        try:
            question = Question(filters, options.include)
            if options.format == "table":
                _show(engine, snapshot, filters, options.include)
            elif options.format == "json":
                with json_answer(engine, snapshot, question) as answer:
                    _write(answer.pieces)
                _write([b"\n"])
            else:
                with flat_answer(engine, snapshot, question, _FORMS[options.format]) as answer:
                    _write(answer.pieces)
        finally:
            engine.close()
    return 0


def _write(pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def _show(engine: Engine, snapshot: Snapshot, filters: Filters, include: str) -> None:
    console = Console()
    sums = totals(engine, snapshot, filters)
    as_of = snapshot.seq if filters.as_of is None else filters.as_of
    table = Table(*TOTALS.names, title=f"Totals by destination, as of seq {as_of}")
    texts = [render_decimals(sums.column(name)).to_pylist() for name in ("positive", "negative", "net")]
    firsts = [sums.column(name).to_pylist() for name in ("destinationId", "unit", "count")]
    for row in zip(*firsts, *texts, strict=True):
        table.add_row(*map(str, row))
    console.print(table)
    if include == "totals":
        return
    listing = Table(*RECORDS.names, title="Records")
    with records(engine, snapshot, filters) as page:
        for batch in page.batches:
            columns = {name: batch.column(name) for name in RECORDS.names}
            columns["time"] = render_times(columns["time"])
            columns["value"] = render_decimals(columns["value"])
            for row in zip(*(column.to_pylist() for column in columns.values()), strict=True):
                listing.add_row(*map(str, row))
    console.print(listing)


def _time(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    found = parse_bound(text)
    if found is None:
        raise ConfigError(f"{option} is {text!r}; it must be RFC 3339 with an offset, as in 2024-03-01T12:00:00Z")
    return found

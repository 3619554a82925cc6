"""`python -m bench`: runs the rows, prints the table, writes JSON, Markdown and a plot into bench/results/."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bench.beside import beside
from bench.bulk import bulk_known, bulk_ndjson, bulk_parquet, memory
from bench.clickhouse import chdb
from bench.context import Context
from bench.dedup import dedup
from bench.forward import forward
from bench.growth import growth
from bench.held import held
from bench.measure import Line, Others, Skip, code, machine, markdown, say
from bench.plot import svg
from bench.postgres import postgres
from bench.process import Service
from bench.single import single
from bench.start import start
from bench.totals import totals
from bench.worker import worker

_ROWS: dict[str, Callable[[Context], list[Line]]] = {
    "bulk_ndjson": bulk_ndjson,
    "bulk_parquet": bulk_parquet,
    "postgres": postgres,
    "worker": worker,
    "chdb": chdb,
    "single": single,
    "forward": forward,
    "beside": beside,
    "held": held,
    "dedup": dedup,
    "bulk_known": bulk_known,
    "totals": totals,
    "start": start,
    "growth": growth,
    "memory": memory,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all without any: {', '.join(_ROWS)}")
    parser.add_argument("--records", type=int, help="of a bulk file (1,000,000); ten times as many are known")
    parser.add_argument("--rounds", type=int, help="how often each side is measured (3)")
    parser.add_argument("--quick", action="store_true", help="100,000 records, one round: that it runs, not how fast")
    parser.add_argument("--full", action="store_true", help="dedup with 100 million ids too (10 GB of memory, minutes)")
    parser.add_argument("--growth", metavar="MILLIONS", help="sizes of the row growth, as in 1,10,100")
    parser.add_argument("--no-verify", action="store_true", help="leave out verify over the big lake")
    parser.add_argument("--work", type=Path, help="a directory on the disk to measure (default: a new one in /var/tmp)")
    parser.add_argument("--keep", action="store_true", help="leave what is in the work directory")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser


def main() -> int:
    """Run; 1 where a row failed (a target that is not met is no failure)."""
    options = _parser().parse_args()
    options.records = options.records or (100_000 if options.quick else 1_000_000)
    options.rounds = options.rounds or (1 if options.quick else 3)
    if unknown := [row for row in options.rows if row not in _ROWS]:
        _parser().error(f"there is no row {unknown[0]}; rows are {', '.join(_ROWS)}")
    base = Path("/var/tmp") if Path("/var/tmp").is_dir() else None
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="oncelake-bench-", dir=options.work or base))
    work.chmod(0o755)  # PostgreSQL runs as another user and reads the input
    context = Context(options, work)
    about = machine(work) | {"records": options.records, "rounds": options.rounds, "code": code()}
    lines: list[Line] = []
    skipped: dict[str, str] = {}
    failed = False
    seconds = {}
    others = {}
    try:
        for row in [row for row in _ROWS if not options.rows or row in options.rows]:
            say(row)
            began = time.monotonic()
            beside = Others()
            try:
                lines += _ROWS[row](context)
            except Skip as why:
                skipped[row] = str(why)
                say(f"  skipped: {why}")
            except Exception as error:  # noqa: BLE001  (the other rows still run)
                traceback.print_exc()
                skipped[row] = "it failed: " + (str(error).strip() or repr(error)).splitlines()[-1]
                failed = True
            seconds[row] = round(time.monotonic() - began, 1)
            others[row] = beside.cores
            say(f"  {seconds[row]} s; other processes kept {others[row]} cores busy")
    finally:
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)
    if about["code"] != code():
        about["warning"] = "the code changed during this run: its rows did not measure the same thing"
        say(about["warning"])
    _write(options.results, about | {"seconds": seconds, "coresBusyWithOthers": others}, lines, skipped, context)
    return int(failed)


def _write(
    results: Path, about: dict[str, object], lines: list[Line], skipped: dict[str, str], context: Context
) -> None:
    table = markdown(lines, skipped)
    told = ", ".join(f"{key} {value}" for key, value in about.items() if key != "versions")
    versions = about["versions"]
    assert isinstance(versions, dict)
    told += "\n\n" + ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{table}\n{told}")
    results.mkdir(parents=True, exist_ok=True)
    stem = results / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    found = {
        "machine": about,
        "lines": [line.to_json() for line in lines],
        "skipped": skipped,
        "growth": context.growth,
        "ingests": Service.ingests,
    }
    stem.with_suffix(".json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    plotted = ""
    if context.growth:
        title = f"Files of {context.records:,} records from the inbox: records a second"
        stem.with_suffix(".svg").write_text(svg(context.growth, title))
        plotted = f"\n![records a second against what is stored]({stem.name}.svg)\n"
    stem.with_suffix(".md").write_text(f"# Benchmarks {stem.name}\n\n{table}{plotted}\n{told}\n")
    say(f"written to {stem}.json, .md{' and .svg' if plotted else ''}")


if __name__ == "__main__":
    sys.exit(main())

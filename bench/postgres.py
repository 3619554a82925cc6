"""PostgreSQL: COPY into a staging table, then INSERT … ON CONFLICT DO NOTHING. No sums, no notifications."""

from __future__ import annotations

import shutil

from bench.cluster import TABLE, postgres_cluster, psql
from bench.context import Context
from bench.measure import Line, alternate
from bench.totals import timed

__all__ = ["postgres"]


def postgres(context: Context) -> list[Line]:
    """The same records into an empty table, from CSV, which is the fastest that it reads."""
    given, csv = context.input(), context.input("csv")
    with postgres_cluster(context.work) as home:

        def peer(number: int) -> float:
            psql(
                home,
                "DROP TABLE IF EXISTS staging, records",
                f"CREATE UNLOGGED TABLE staging {TABLE.format(key='')}",
                f"CREATE TABLE records {TABLE.format(key='PRIMARY KEY')}",
                "CHECKPOINT",
            )
            seconds = timed(
                lambda: psql(
                    home,
                    f"COPY staging FROM '{csv.path}' (FORMAT csv, HEADER)",
                    "INSERT INTO records SELECT * FROM staging ON CONFLICT DO NOTHING",
                )
            )
            assert psql(home, "SELECT count(*) FROM records").stdout.split()[2] == str(csv.records)
            return csv.records / seconds

        mine, theirs = alternate(context.rounds, lambda number: context.bulk(given, check=False).rate, peer)
    shutil.rmtree(context.work / "postgres", ignore_errors=True)
    return [Line("postgres", "bulk NDJSON", "records/s", mine, "COPY, INSERT ON CONFLICT", theirs, 3.0)]

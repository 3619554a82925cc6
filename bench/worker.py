"""One worker that inserts, sums and publishes record by record with PostgreSQL and Redis."""

from __future__ import annotations

from bench.cluster import TABLE, postgres_cluster, psql, redis_server
from bench.context import Context
from bench.measure import Line, alternate
from bench.peers import debian, interpreter
from bench.process import run_json

__all__ = ["worker"]

_RECORDS = 5_000


def worker(context: Context) -> list[Line]:
    """5,000 records through the worker, a whole file through ours."""
    debian("redis-server", "redis-server")
    python = interpreter("psycopg", "psycopg[binary]")
    given, few = context.input(), context.input(records=_RECORDS)
    with postgres_cluster(context.work) as home, redis_server(context.work) as socket:

        def peer(number: int) -> float:
            psql(
                home,
                "DROP TABLE IF EXISTS records, sums",
                f"CREATE TABLE records {TABLE.format(key='PRIMARY KEY')}",
                'CREATE TABLE sums ("destinationId" text, "reference" text, "unit" text, "count" bigint, '
                '"total" numeric(38, 9), PRIMARY KEY ("destinationId", "reference", "unit"))',
            )
            done = run_json(python, "-m", "bench.peer_worker", str(few.path), str(home), str(socket))
            return _RECORDS / float(done["seconds"])

        mine, theirs = alternate(context.rounds, lambda number: context.bulk(given, check=False).rate, peer)
    return [Line("worker", "bulk NDJSON", "records/s", mine, "PostgreSQL and Redis", theirs, 100.0)]

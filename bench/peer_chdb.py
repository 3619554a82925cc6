"""chDB's side: `python -m bench.peer_chdb FILE DIRECTORY START_US END_US`. It imports nothing of ours."""

from __future__ import annotations

import json
import sys
import time

from chdb import session

_COLUMNS = (
    "recordId String, time DateTime64(6, 'UTC'), sourceId String, destinationId String, type LowCardinality(String), "
    "value Decimal(38, 9), unit LowCardinality(String), reference String"
)


def _run(path: str, directory: str, start: str, end: str) -> dict[str, float]:
    database = session.Session(directory)
    for statement in ("CREATE DATABASE bench", "SET max_threads = 2", "SET max_insert_threads = 2"):
        database.query(statement)
    database.query(
        f"CREATE TABLE bench.records ({_COLUMNS}) ENGINE = MergeTree PARTITION BY toDate(time) "
        "ORDER BY (destinationId, time)"
    )
    began = time.perf_counter()
    structure = _COLUMNS.replace("'", "\\'")
    database.query(
        f"INSERT INTO bench.records SELECT * FROM file('{path}', 'JSONEachRow', '{structure}') "
        "SETTINGS date_time_input_format = 'best_effort', max_insert_threads = 2, max_threads = 2"
    )
    load = time.perf_counter() - began
    sql = (
        "SELECT destinationId, unit, count(), sumIf(value, type = 'positive') AS p, "
        f"sumIf(value, type = 'negative') AS n, p - n FROM bench.records "
        f"WHERE time >= fromUnixTimestamp64Micro({start}) AND time < fromUnixTimestamp64Micro({end}) "
        "GROUP BY destinationId, unit ORDER BY destinationId, unit "
        "SETTINGS max_threads = 2"
    )
    took = []
    for _ in range(3):
        began = time.perf_counter()
        database.query(sql, "Arrow").bytes()
        took.append(time.perf_counter() - began)
    rows = int(database.query("SELECT count() FROM bench.records", "CSV").data())
    return {"load": load, "totals": min(took), "rows": rows}


if __name__ == "__main__":
    print(json.dumps(_run(*sys.argv[1:5])))

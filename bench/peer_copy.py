"""DuckDB's bare copy of a file to Parquet partitioned by day: `python -m bench.peer_copy SOURCE TARGET`."""

from __future__ import annotations

import json
import sys
import time

import duckdb

_COLUMNS = {
    "recordId": "VARCHAR", "time": "TIMESTAMPTZ", "sourceId": "VARCHAR", "destinationId": "VARCHAR",
    "type": "VARCHAR", "value": "DECIMAL(38,9)", "unit": "VARCHAR", "reference": "VARCHAR",
}  # fmt: skip


def _copy(source: str, target: str) -> float:
    connection = duckdb.connect(config={"threads": "2"})
    connection.execute("SET TimeZone = 'UTC'")
    columns = ", ".join(f"{name}: '{kind}'" for name, kind in _COLUMNS.items())
    read = (
        f"read_json('{source}', format = 'newline_delimited', columns = {{{columns}}})"
        if source.endswith(".ndjson")
        else f"read_parquet('{source}')"
    )
    began = time.perf_counter()
    connection.execute(
        f"COPY (SELECT *, time::DATE AS date FROM {read}) TO '{target}' "
        "(FORMAT parquet, PARTITION_BY (date), COMPRESSION zstd)"
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps({"seconds": _copy(sys.argv[1], sys.argv[2])}))

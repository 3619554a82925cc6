"""Readers of a data directory in processes of their own, which ask the same again and again until they are told to end.

`python -m tests.support.readers KIND ROOT SEQ` writes a line when it has begun, ends when standard input does, and then
writes what it saw as JSON: how many answers, how many missing files, and what was wrong. Records up to `SEQ` are in the
Parquet from the start, and each has the value of its seq.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store.engine import Engine
from store.filters import Filters
from store.holding import HANDLES, Holding
from store.queries import totals
from store.reading import read_snapshot
from store.verify import verify

__all__ = ["KINDS"]

_GLOB = "SELECT seq, value FROM read_parquet($glob, hive_partitioning = true)"


class Missing(Exception):
    """A file was listed and is gone."""


def glob(root: Path, seq: int) -> str | None:
    """What an analyst does: DuckDB over the glob."""
    try:
        rows = duckdb.sql(_GLOB, params={"glob": f"{root}/records/**/*.parquet"}).to_arrow_table()
    except duckdb.IOException as error:
        if "No such file" in str(error) or "Cannot open file" in str(error):
            raise Missing from error
        raise
    return judged(rows, seq)


def listing(root: Path, seq: int) -> str | None:
    """What another program does: list, then open one file after the other, a directory at a time."""
    tables = []
    try:
        for directory in sorted((root / "records").iterdir()):
            tables += [pq.read_table(path, columns=["seq", "value"]) for path in sorted(directory.iterdir())]
    except FileNotFoundError as error:
        raise Missing from error
    return judged(pa.concat_tables(tables), seq)


def judged(rows: pa.Table, seq: int) -> str | None:
    """What is wrong with the rows: each of those from the start is there once, each other one at most."""
    seqs = rows.column("seq")
    if pc.count_distinct(seqs).as_py() != rows.num_rows:
        return f"{rows.num_rows} rows have {pc.count_distinct(seqs).as_py()} seqs"
    old = rows.filter(pc.less_equal(seqs, seq))
    found = (old.num_rows, int(pc.sum(old.column("value")).as_py() or 0))
    return None if found == (seq, seq * (seq + 1) // 2) else f"{found} up to seq {seq}"


def command(root: Path, seq: int) -> str | None:
    """What `oncelake aggregate` does; it never misses a file."""
    with Holding(root) as holding, tempfile.TemporaryDirectory() as temp:
        snapshot = read_snapshot(root, holding)
        engine = Engine(root, Path(temp), also=HANDLES)
        try:
            found = totals(engine, snapshot, Filters(start_us=1)).to_pylist()  # not whole hours: rollups do not answer
        finally:
            engine.close()
    newest = snapshot.seq
    counted = (sum(row["count"] for row in found), int(sum(row["positive"] for row in found)))
    return None if newest >= seq and counted == (newest, newest * (newest + 1) // 2) else f"{counted} as of {newest}"


def proof(root: Path, seq: int) -> str | None:
    """`oncelake verify`; it never misses a file."""
    report = verify(root)
    return None if report.ok and report.as_of >= seq else str(report.to_json())


KINDS: dict[str, Callable[[Path, int], str | None]] = {
    "glob": glob,
    "listing": listing,
    "command": command,
    "proof": proof,
}


def main(kind: str, root: Path, seq: int) -> None:
    """Ask until standard input ends."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    reads = missing = 0
    wrong: list[str] = []
    print("begun", flush=True)
    while not ended.is_set():
        try:
            if (found := KINDS[kind](root, seq)) is not None:
                wrong.append(found)
            reads += 1
        except Missing:
            missing += 1
    print(json.dumps({"reads": reads, "missing": missing, "wrong": wrong[:5]}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))

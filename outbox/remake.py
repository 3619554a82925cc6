"""The lines of a feed made again from the stored records, to the byte, with bounded memory.

A `previous` covers every record before it, so the records below a range are read once: what they add up to for the
keys of the range. After that the range is made a piece at a time, each piece adding to the history of the next.
"""

# ruff: noqa: S608 - statements are put together from names and numbers of this package only

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from store.engine import as_tables
from store.errors import CorruptionError
from store.journal import RulesFrom
from store.messages_sql import (
    HISTORY_OF_RECORDS,
    HISTORY_OF_SUMMARIES,
    SUMMARIES_OF_RECORDS,
    RulesSince,
    alert_lines,
    load_rules,
    notification_lines,
)
from store.rot import sound
from store.schema import STORED
from store.snapshot import Snapshot

__all__ = ["Origin", "remade"]

_PIECE_ROWS = 50_000
"""Records that are looked at together; about 1 kB each in memory."""

_COLUMNS = ", ".join(STORED.names)


@dataclass(frozen=True)
class Origin:
    """What lines are made from: the records, and the alert rules in the order in which they came into force."""

    snapshot: Snapshot
    rules: Sequence[RulesFrom]


def remade(
    origin: Origin,
    feed: str,
    first: int,
    last: int,
    temp: Path,
    *,
    memory: str = "192MB",
    piece_rows: int = _PIECE_ROWS,
) -> Generator[tuple[int, bytes], None, None]:
    """(seq, line without its newline) of seqs `first` to `last`, which must be committed, in order.

    DuckDB keeps to `memory` and spills into `temp`. `CorruptionError` where records of the range are missing.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory,
        "threads": "2",
        "temp_directory": str(temp),
        "preserve_insertion_order": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    with contextlib.closing(duckdb.connect(":memory:", config=config)) as connection:
        if feed == "notifications":
            _add_up_before(connection, origin.snapshot, first, last)
        else:
            load_rules(connection, [_since(rules) for rules in origin.rules])
        for begin in range(first, last + 1, piece_rows):
            end = min(begin + piece_rows - 1, last)
            rows = _piece(connection, origin.snapshot, begin, end)
            connection.register("records", rows)
            if feed == "notifications":
                connection.execute("CREATE OR REPLACE TEMP VIEW earlier AS FROM so_far")
                connection.execute(f"CREATE OR REPLACE TEMP TABLE history AS {HISTORY_OF_SUMMARIES}")
                yield from _lines(notification_lines(connection))
                if end < last:
                    connection.execute(f"INSERT INTO so_far {SUMMARIES_OF_RECORDS}")
            else:
                yield from _lines(alert_lines(connection))
            connection.unregister("records")


def _add_up_before(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, first: int, last: int) -> None:
    """Make `so_far`: what the records below `first` add up to, for the keys of the range."""
    with (
        _stored(connection, snapshot, "range", first, last) as records,
        _stored(connection, snapshot, "below", 1, first - 1) as below,
    ):
        connection.execute(
            f"CREATE TEMP TABLE records AS SELECT DISTINCT destinationId, reference FROM ({records}) AS stored"
        )
        connection.execute(f"CREATE OR REPLACE TEMP VIEW earlier AS {below}")
        connection.execute(f"CREATE TEMP TABLE so_far AS {HISTORY_OF_RECORDS}")
        connection.execute("DROP VIEW earlier")
        connection.execute("DROP TABLE records")


def _piece(connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, first: int, last: int) -> pa.Table:
    """The records of these seqs."""
    with _stored(connection, snapshot, "piece", first, last) as sql:
        rows = connection.sql(sql).to_arrow_table()
    if rows.num_rows != last - first + 1:
        raise CorruptionError(
            f"of seqs {first} to {last} there are {rows.num_rows} stored records: run oncelake verify, it says which "
            "are missing"
        )
    return rows.cast(STORED)


@contextlib.contextmanager
def _stored(
    connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, name: str, first: int, last: int
) -> Iterator[str]:
    """A statement that gives the records of these seqs, from files up to the flushed seq and from hot rows above."""
    upto = min(last, snapshot.flushed)
    wanted = [file for file in snapshot.files if file.min_seq <= upto and file.max_seq >= first]
    sound(wanted)
    files = [str(file.path) for file in wanted]
    hot = as_tables([table for table in snapshot.hot if table.num_rows], STORED)
    above = max(first - 1, snapshot.flushed)
    connection.register(f"{name}_hot", hot)
    parts = [f"SELECT {_COLUMNS} FROM {name}_hot WHERE seq > {above} AND seq <= {last}"]
    if files:
        relation = connection.read_parquet(files, hive_partitioning=False)
        relation.create_view(f"{name}_files")
        parts.append(f"SELECT {_COLUMNS} FROM {name}_files WHERE seq BETWEEN {first} AND {upto}")
    try:
        yield " UNION ALL ".join(parts)
    finally:
        connection.unregister(f"{name}_hot")
        connection.execute(f"DROP VIEW IF EXISTS {name}_files")


def _lines(batches: pa.RecordBatchReader) -> Iterator[tuple[int, bytes]]:
    for batch in batches:
        texts = batch.column(1).cast(pa.binary()).to_pylist()
        yield from ((seq, text[:-1]) for seq, text in zip(batch.column(0).to_pylist(), texts, strict=True))


def _since(rules: RulesFrom) -> RulesSince:
    return RulesSince(rules.first_seq, rules.rules.threshold, rules.rules.by_unit, rules.rules.by_destination)

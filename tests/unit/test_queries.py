"""Totals and records of a snapshot, against the same questions answered record by record in Python."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store import engine as engine_module
from store.engine import Engine, Stop
from store.errors import QueryError, QueryMemoryError, QueryTimeError
from store.filters import Filters
from store.queries import RECORDS, TOTALS, by_unit, records, totals
from store.snapshot import Snapshot
from tests.support.snapshots import DAY_US, START_US, record, snapshot_of


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="queries'") as name:  # the quote must not end the setting
        yield Path(name)


@pytest.fixture(scope="module")
def engine(root: Path) -> Iterator[Engine]:
    (root / "tmp").mkdir()
    found = Engine(root, root / "tmp", memory="64MB")
    yield found
    found.close()


def rows_of(engine: Engine, snapshot: Snapshot, filters: Filters, limit: int | None = None) -> list[dict[str, Any]]:
    with records(engine, snapshot, filters, limit) as page:
        table = pa.Table.from_batches(page.batches, RECORDS)
    times = table.column("time").cast(pa.int64()).to_pylist()
    return [{**row, "time": time} for row, time in zip(table.to_pylist(), times, strict=True)]


def expected_rows(rows: list[dict[str, Any]], filters: Filters) -> list[dict[str, Any]]:
    """The question, answered record by record."""
    found = [
        {"seq": seq, **row}
        for seq, row in enumerate(rows, 1)
        if (filters.as_of is None or seq <= filters.as_of)
        and (filters.start_us is None or row["time"] >= filters.start_us)
        and (filters.end_us is None or row["time"] < filters.end_us)
        and (filters.type is None or row["type"] == filters.type)
        and (not filters.destination_ids or row["destinationId"] in filters.destination_ids)
        and (not filters.source_ids or row["sourceId"] in filters.source_ids)
        and (not filters.references or row["reference"] in filters.references)
        and (not filters.units or row["unit"] in filters.units)
    ]
    found = [row for row in found if filters.after is None or place(row) > place_of(filters.after)]
    return sorted(found, key=place)


def place(row: dict[str, Any]) -> tuple[bytes, int, int]:
    return row["destinationId"].encode(), row["time"], row["seq"]


def place_of(after: tuple[str, int, int]) -> tuple[bytes, int, int]:
    return after[0].encode(), after[1], after[2]


def expected_totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    sums: dict[tuple[str, str], list[Any]] = {}
    with localcontext(prec=60):
        for row in rows:
            total = sums.setdefault((row["destinationId"], row["unit"]), [0, Decimal(0), Decimal(0)])
            total[0] += 1
            total[1 if row["type"] == "positive" else 2] += row["value"]
        return [
            {"destinationId": d, "unit": u, "count": n, "positive": p, "negative": m, "net": p - m}
            for (d, u), (n, p, m) in sorted(sums.items(), key=lambda item: (item[0][0].encode(), item[0][1].encode()))
        ]


def by_quarters(number: int) -> int:
    return START_US + number * 900_000_000


# Code points whose order differs from that of UTF-16 and of any locale.
names = st.sampled_from(["a", "B", "b", "ö", "\uff5e", "😀", "a'b", '"; DROP TABLE hot; --', "%"])
record_lists = st.lists(
    st.builds(
        record,
        time=st.integers(0, 20).map(lambda n: START_US + n * DAY_US // 2) | st.integers(0, 9).map(by_quarters),
        sourceId=names,
        destinationId=names,
        type=st.sampled_from(["positive", "negative"]),
        value=st.sampled_from([Decimal("0"), Decimal("0.000000001"), Decimal("99999999999999999999.999999999")]),
        unit=st.sampled_from(["SEK", "kg"]),
        reference=names,
    ),
    max_size=25,
)
some = st.lists(names, max_size=2).map(tuple)
moments = (
    st.none() | st.integers(-1, 21).map(lambda n: START_US + n * DAY_US // 2) | st.integers(-1, 10).map(by_quarters)
)
questions = st.builds(
    Filters,
    start_us=moments,
    end_us=moments,
    type=st.sampled_from([None, "positive", "negative"]),
    destination_ids=some | names.map(lambda name: (name,)),
    source_ids=some,
    references=some,
    units=st.sampled_from([(), ("SEK",), ("SEK", "kg"), ("none",)]),
    as_of=st.none() | st.integers(0, 25),
    after=st.none()
    | st.tuples(names, st.integers(0, 20).map(lambda n: START_US + n * DAY_US // 2), st.integers(0, 25)),
)


@settings(deadline=None, max_examples=100)
@given(
    record_lists,
    questions,
    st.integers(0, 25),
    st.integers(0, 3),
    st.none() | st.integers(1, 5),
    st.sets(st.integers(1, 25), max_size=3),
)
def test_answers_are_those_of_a_loop_over_the_records(
    root: Path,
    engine: Engine,
    rows: list[dict[str, Any]],
    filters: Filters,
    flushed: int,
    overlap: int,
    limit: int | None,
    rolled_up: set[int],
) -> None:
    """Whatever is asked, wherever the line between files and hot rows runs, and while a flush has both.

    Rollups stand for all, some or none of the flushed records.
    """
    flushed = min(flushed, len(rows))
    snapshot = snapshot_of(root, rows, flushed, overlap, sorted(seq for seq in rolled_up if seq <= flushed))
    filters = replace(filters, as_of=None if filters.as_of is None else min(filters.as_of, len(rows)))
    expected = expected_rows(rows, filters)
    assert rows_of(engine, snapshot, filters, limit) == expected[:limit]
    found = totals(engine, snapshot, filters)
    assert found.schema.equals(TOTALS)
    assert found.to_pylist() == expected_totals(expected)
    together = expected_totals([{**row, "destinationId": ""} for row in expected])
    assert [{"destinationId": "", **row} for row in by_unit(found).to_pylist()] == together


def test_a_seq_that_is_not_there_yet_cannot_be_asked_for(root: Path, engine: Engine) -> None:
    """The error names the parameter and the newest seq; the newest one itself can."""
    snapshot = snapshot_of(root, [record()], 0)
    with pytest.raises(QueryError, match="asOf is 2, the newest seq is 1") as error:
        totals(engine, snapshot, Filters(as_of=2))
    assert error.value.parameter == "asOf"
    assert totals(engine, snapshot, Filters(as_of=1)).num_rows == 1


def test_an_empty_store_has_an_empty_answer(root: Path, engine: Engine) -> None:
    """No files, no hot rows, no error."""
    snapshot = Snapshot(0, 0, (), ())
    assert totals(engine, snapshot, Filters()).num_rows == 0
    assert rows_of(engine, snapshot, Filters()) == []


def test_files_that_cannot_match_are_not_opened(root: Path, engine: Engine) -> None:
    """By time, and by seq: they are gone here, and nobody notices."""
    rows = [record(time=START_US + n * DAY_US) for n in range(3)]
    snapshot = snapshot_of(root, rows, 3)
    for file in snapshot.files[1:]:
        file.path.unlink()
    assert totals(engine, snapshot, Filters(end_us=START_US + DAY_US)).column("count").to_pylist() == [1]
    assert totals(engine, snapshot, Filters(as_of=1)).column("count").to_pylist() == [1]


def test_a_page_of_one_destination_opens_the_days_that_it_needs(root: Path, engine: Engine) -> None:
    """Day by day, as its records are listed; the next page begins at the day of its cursor."""
    rows = [record(destinationId="d", time=START_US + n // 3 * DAY_US + n) for n in range(24)]
    snapshot = snapshot_of(root, rows, 22)
    one = Filters(destination_ids=("d",))
    assert [row["seq"] for row in rows_of(engine, snapshot, one, 24)] == list(range(1, 25))
    for file in snapshot.files:
        if file.day not in (snapshot.files[0].day, snapshot.files[0].day + 5):
            file.path.unlink()
    assert [row["seq"] for row in rows_of(engine, snapshot, one, 2)] == [1, 2]
    later = replace(one, after=("d", rows[15]["time"], 16))
    assert [row["seq"] for row in rows_of(engine, snapshot, later, 1)] == [17]
    with pytest.raises(duckdb.IOException):
        rows_of(engine, snapshot, one, 3)


def test_many_values_of_one_filter_are_one_question(root: Path, engine: Engine) -> None:
    """A thousand destinations, of which two are there."""
    rows = [record(destinationId=name) for name in ("d5", "d700", "other")]
    filters = Filters(destination_ids=tuple(f"d{n}" for n in range(1_000)))
    assert totals(engine, snapshot_of(root, rows, 2), filters).column("destinationId").to_pylist() == ["d5", "d700"]


def test_queries_beside_each_other_see_their_own_rows(root: Path, engine: Engine) -> None:
    """Each has its own hot rows under the same name."""
    snapshots = [snapshot_of(root, [record(destinationId=f"d{n}")] * (n + 1), 0) for n in range(8)]
    found: dict[int, list[Any]] = {}

    def ask(number: int) -> None:
        for _ in range(5):
            found[number] = totals(engine, snapshots[number], Filters()).select(["destinationId", "count"]).to_pylist()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [{"destinationId": f"d{n}", "count": n + 1}] for n in range(8)}


def test_one_answer_is_read_while_others_are_asked_for(root: Path, engine: Engine) -> None:
    """Whoever reads slowly holds nobody up."""
    snapshot = snapshot_of(root, [record()] * 3, 0)
    with records(engine, snapshot, Filters()) as slow:
        assert totals(engine, snapshot, Filters()).num_rows == 1
        assert sum(batch.num_rows for batch in slow.batches) == 3


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_parquet('/etc/passwd')",
        "COPY (SELECT 1) TO '/tmp/oncelake-escape.csv'",
        "SET memory_limit = '10GB'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "LOAD httpfs",
        "ATTACH '/tmp/oncelake-escape.db'",
        "SELECT * FROM read_parquet('https://example.invalid/x.parquet')",
        "SELECT * FROM local_rows",
    ],
)
def test_the_engine_reads_the_data_directory_and_nothing_else(engine: Engine, sql: str) -> None:
    """Even if a statement of somebody else's came through, other files, the network and its own settings are shut."""
    local_rows = pa.table({"x": [1]})
    assert local_rows.num_rows == 1
    with pytest.raises(duckdb.Error), engine.query(sql, {}, {}, rows=0) as batches:
        list(batches)
    assert not Path("/tmp/oncelake-escape.csv").exists()
    assert not Path("/tmp/oncelake-escape.db").exists()


def test_a_large_answer_waits_on_disk_and_comes_whole(root: Path, engine: Engine) -> None:
    """Far more than the spool keeps in memory; nothing stays behind in the directory."""
    sql = "SELECT range AS n, repeat('x', 90) AS text FROM range(300_000) ORDER BY n DESC"
    with engine.query(sql, {}, {}, rows=300_000) as batches:
        numbers = [number for batch in batches for number in batch.column("n").to_pylist()]
    assert numbers == list(range(299_999, -1, -1))
    assert [path for path in (root / "tmp").rglob("*") if path.is_file()] == []


def test_an_answer_that_nobody_reads_to_its_end_is_dropped(engine: Engine) -> None:
    """And the next one is not held up by it."""
    with engine.query("SELECT range AS n FROM range(2_000_000)", {}, {}, rows=2_000_000) as batches:
        assert next(batches).num_rows
    with engine.query("SELECT 1 AS n", {}, {}, rows=2_000_000) as batches:
        assert next(batches).num_rows == 1


def test_a_question_that_is_withdrawn_stops_running(engine: Engine) -> None:
    """In the middle of a sort that would take minutes, and those that wait behind it as well."""
    slow = "SELECT sum(hash(a.range + b.range)) FROM range(1_000_000) a, range(10_000_000) b"
    stop = Stop()
    failures: list[BaseException] = []

    def ask(sql: str) -> None:
        try:
            with engine.query(sql, {}, {}, rows=10**9, stop=stop) as batches:
                list(batches)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(sql,)) for sql in (slow, "SELECT 1")]
    for thread in threads:
        thread.start()
    while not stop._running:
        pass
    # An interrupt before DuckDB has begun is lost, so it is sent until it has an effect.
    while any(thread.is_alive() for thread in threads):
        stop.set()
        threads[0].join(0.02)
    assert [type(failure) for failure in failures][:1] == [duckdb.InterruptException]
    with pytest.raises(duckdb.InterruptException), engine.query("SELECT 1", {}, {}, rows=0, stop=stop):
        pass


def test_a_query_that_takes_too_long_is_ended(root: Path) -> None:
    """In the middle of its work, and the next one in the same lane has its own time."""
    hasty = Engine(root, root / "tmp", memory="64MB", time_s=0.3)
    slow = "SELECT sum(hash(a.range + b.range)) FROM range(1_000_000) a, range(10_000_000) b"
    with pytest.raises(QueryTimeError, match="0.3 s .store.query_timeout_s"), hasty.query(slow, {}, {}, rows=0):
        pass
    with hasty.query("SELECT 1 AS n", {}, {}, rows=0) as batches:
        assert next(batches).num_rows == 1
    hasty.close()
    patient = Engine(root, root / "tmp", memory="64MB", time_s=600.0)
    with pytest.raises(QueryTimeError, match="600 s"), patient.query(slow, {}, {}, rows=0, spent_s=600.0):
        pytest.fail("what a question has spent counts")
    patient.close()


def test_too_little_memory_is_said_with_the_key_to_raise(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows, and it goes."""
    monkeypatch.setattr(engine_module, "_SMALL_MEMORY", "8MB")
    small = Engine(root, root / "tmp", memory="8MB", threads=1)
    sql = "SELECT list(range ORDER BY hash(range)) AS l FROM range(3_000_000)"
    with pytest.raises(QueryMemoryError, match="store.query_memory"), small.query(sql, {}, {}, rows=10**9) as batches:
        list(batches)
    small.close()

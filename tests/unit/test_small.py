"""Small commits are decided and rendered record by record: the same as in columns, to the byte."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest import committer as committers
from ingest import plan, small
from ingest.plan import Result
from store.canonical import render_decimals, render_records, render_times
from store.errors import DiskFullError
from store.fresh import columns_of
from store.hashing import Hasher
from store.journal import Rules
from store.plain import record_text, time_text, units_of, units_text
from store.schema import TIME_MAX_US
from store.store import Store
from store.summaries import SUMMARY_SCHEMA, in_columns
from tests.support.direct import Direct, assert_holds, batch_of, open_store, record_of, single, weaken
from tests.support.model import Canonical, Model

letters = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])
texts = st.text(letters, min_size=1, max_size=40) | st.sampled_from(["a", 'q"\\', "日本" * 16, "é" * 256, "b" * 8])
values = st.decimals(min_value=-(10**20) + 1, max_value=10**20 - 1, places=9) | st.sampled_from(
    [Decimal(text) for text in ("0", "0.000", "0.000000001", "-0.000000999", "100", "1.50", "12345678901234567890.5")]
)  # fmt: skip
times = st.integers(0, TIME_MAX_US - 1)
rows = st.tuples(texts, times, texts, texts, st.sampled_from(["positive", "negative"]), values, texts, texts)

few = st.builds(
    lambda number, *fields: record_of(
        number, **dict(zip(("destinationId", "type", "value", "unit", "reference"), fields, strict=True))
    ),
    st.integers(0, 9),
    st.sampled_from(["d1", "ü"]),
    st.sampled_from(["positive", "negative"]),
    st.sampled_from([Decimal("0.1"), Decimal(500), Decimal("500.000000001"), Decimal(-7), Decimal(10**20 - 1)]),
    st.sampled_from(["SEK", "kg", "€", "a"]),
    st.sampled_from(["r1", "r2"]),
)
RULES = Rules("500", {"kg": "0"}, {"ü": "0.1"})
steps = st.lists(
    st.lists(few, min_size=1, max_size=30) | st.sampled_from(["flush", "read", "batch", "rejected"]), max_size=9
)


@given(st.lists(rows, min_size=1, max_size=30), st.sampled_from([64, 3]))
def test_a_record_has_the_hashes_and_the_text_of_the_columns(records: list[Canonical], bits: int) -> None:
    """What is hashed and rendered alone is what a column of it would give."""
    hasher, table = Hasher(b"seed", bits), columns_of(records)
    alone = [hasher.rows.hashes(row, units_of(row[5])) for row in records]
    together = (lane.tolist() for lane in hasher.hashes(table))
    assert alone == [(a << 64 | b, print_, c << 64 | d) for a, b, c, d, print_ in zip(*together, strict=True)]
    assert [record_text(row) for row in records] == render_records(table).to_pylist()


@given(st.integers(-(10**38) + 1, 10**38 - 1), times)
@example(0, 59_999_999)
@example(-1, 60_000_000)
def test_a_sum_and_a_time_have_the_text_of_the_columns(units: int, time_us: int) -> None:
    """Also sums, which have more digits than a value."""
    exact = pa.array([f"{units}e-9"]).cast(pa.decimal128(38, 9))
    assert render_decimals(exact).to_pylist() == [units_text(units)]
    assert render_times(pa.array([time_us]).cast(pa.timestamp("us", "UTC"))).to_pylist() == [time_text(time_us)]


@contextmanager
def _lake(root: Path, bits: int) -> Iterator[tuple[Store, Direct]]:
    weaken(root, bits)
    store = open_store(root)
    ticks = iter(range(1_709_294_400_000_000, 1_709_294_400_000_000 + 10**9, 1_234_567))
    committer = Direct(store, now_us=lambda: next(ticks))
    committer._rules = RULES
    yield store, committer
    committer.stop()
    store.close()


def _taken(committer: Direct, records: list[Canonical]) -> list[Result]:
    """What becomes of single records that share a commit."""
    committer.held = True
    promises = [committer.submit(single(record)) for record in records]
    committer.held = False
    committer.drain()
    return [promise.result(0) for promise in promises]


def _step(store: Store, committer: Direct, step: Any) -> Any:
    if step == "flush":
        return store.flush_once()
    if step == "read":
        return store.snapshot().seq
    if step == "batch":
        return committer.take([record_of(number) for number in range(5, 8)])
    if step == "rejected":
        return committer.take([None])
    return _taken(committer, step)


def _kept(store: Store) -> Any:
    """Everything that a store has written and knows."""
    logs = {
        str(path.relative_to(store.root)): path.read_bytes()
        for log in ("outbox/notifications", "outbox/alerts", "rejected")
        for path in sorted((store.root / log).glob("*.jsonl"))
    }
    known = []
    for number in range(10):
        found = store.find(f"id-{number}")
        known.append(found and found.to_pylist())
    view = store.settle()
    summaries = [run for hot in (view.active, view.frozen) for run in hot.summaries] + list(view.summaries)
    tables = [pa.Table.from_batches(map(in_columns, run.pages), SUMMARY_SCHEMA) for run in summaries]
    told = pa.concat_tables([SUMMARY_SCHEMA.empty_table(), *tables])
    keys = ["hi", "lo", "unit"]
    sums = told.group_by(keys).aggregate([(name, "sum") for name in ("count", "positive", "negative")])
    return logs, known, sums.sort_by([(key, "ascending") for key in keys]).to_pylist()


@settings(max_examples=60, deadline=None)
@given(steps, st.sampled_from([64, 1]), st.sampled_from([24, 3]), st.sampled_from([2_048, 7]))
def test_small_commits_write_and_know_what_columns_would(
    chosen: list[Any], bits: int, hashed_rows: int, small_rows: int
) -> None:
    """One by one and in columns: the same answers, lines, index and summaries, also where hashes collide."""
    with tempfile.TemporaryDirectory() as directory:
        found = []
        for name, rows_at_most in (("small", 256), ("columns", 0)):
            with (
                _lake(Path(directory) / name, bits) as (store, committer),
                patch.object(plan, "SMALL_ROWS", rows_at_most),
                patch.object(small, "_HASHED_ROWS", hashed_rows),
                patch.object(committers, "_SETTLED_ROWS", small_rows),
            ):
                answers = [_step(store, committer, step) for step in chosen]
                found.append((answers, *_kept(store)))
        assert found[0] == found[1]


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[tuple[Store, Direct]]:
    store = open_store(tmp_path / "data")
    yield store, Direct(store)
    store.close()


def test_small_commits_wait_to_become_columns_and_are_read_all_the_same(lake: tuple[Store, Direct]) -> None:
    """Nobody pays for columns before somebody reads, and whoever reads sees every record."""
    store, committer = lake
    model = Model()
    for number in range(20):
        _taken(committer, [record_of(number)])
        model.take([record_of(number)])
    assert store._view.active.small_rows == 20
    before = store.snapshot()
    assert sum(table.num_rows for table in before.hot) == 20
    assert store._view.active.small_rows == 0
    _taken(committer, [record_of(20)])
    model.take([record_of(20)])
    assert sum(table.num_rows for table in before.hot) == 20
    assert_holds(store, model)


def test_what_waits_is_bounded(lake: tuple[Store, Direct]) -> None:
    """Plain values take ten times the memory of columns."""
    store, committer = lake
    with patch.object(committers, "_SETTLED_ROWS", 8):
        for number in range(30):
            _taken(committer, [record_of(number)])
            assert store._view.active.small_rows < 8


@pytest.mark.parametrize("between", [Store.settle, Store.flush_once, lambda store: None])
def test_a_read_between_a_decision_and_its_commit_changes_nothing(
    lake: tuple[Store, Direct], between: Callable[[Store], Any]
) -> None:
    """Other threads settle and flush at any moment: the sums that a commit goes on with count nothing twice."""
    store, committer = lake
    model = Model()
    commit = store.commit

    def interrupted(what: Any) -> None:
        between(store)
        commit(what)

    with patch.object(store, "commit", interrupted):
        for number in range(0, 60, 2):
            records = [record_of(number), record_of(number + 1), record_of(number // 3)]
            _taken(committer, records)
            for record in records:
                model.take([record])
    assert_holds(store, model)


def test_a_key_of_many_units_is_looked_at_in_columns(lake: tuple[Store, Direct]) -> None:
    """What a small commit holds in memory is bounded, whatever is stored of its keys."""
    store, committer = lake
    model = Model()
    many = [record_of(number, unit=f"u{number}", destinationId="d", reference="r") for number in range(90)]
    committer.submit(batch_of(list(many)))
    model.take(list(many))
    for number in (100, 101):
        record = record_of(number, unit="u", destinationId="d", reference="r")
        _taken(committer, [record])
        model.take([record])
        assert store._view.active.small_rows == 0
    assert_holds(store, model)


def test_a_commit_that_finds_no_room_leaves_no_trace_in_the_sums(lake: tuple[Store, Direct]) -> None:
    """What a small commit goes on with is its own until it is durable."""
    store, committer = lake
    model = Model()
    same = {"destinationId": "d", "reference": "r", "unit": "SEK"}
    _taken(committer, [record_of(0, **same)])
    model.take([record_of(0, **same)])
    with patch.object(store, "commit", side_effect=DiskFullError("no room")), pytest.raises(DiskFullError):
        _taken(committer, [record_of(1, **same)])
    _taken(committer, [record_of(2, **same)])
    model.take([record_of(2, **same)])
    assert_holds(store, model)

"""Rollups: what they hold, how they are merged, and which of them stand for a seq."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store import queries
from store import rollups as module
from store.engine import Engine
from store.filters import Filters
from store.queries import totals
from store.rollups import HOUR_US, ROLLUP_SCHEMA, Rollup, adjacent_to_merge, covering, merged, of_records, pages
from store.store import Store
from store.verify import verify
from tests.support.direct import Direct, open_store, record_of
from tests.support.lake import Lake
from tests.support.snapshots import START_US, record, stored

record_lists = st.lists(
    st.builds(
        record,
        time=st.integers(0, 5_000).map(lambda minutes: START_US + minutes * 60_000_000),
        destinationId=st.sampled_from(["a", "B", "\uff5e", "😀", ""]),
        type=st.sampled_from(["positive", "negative"]),
        value=st.sampled_from([Decimal("0"), Decimal("0.000000001"), Decimal("99999999999999999999.999999999")]),
        unit=st.sampled_from(["SEK", "kg"]),
    ),
    max_size=40,
)


def expected(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a rollup, record by record."""
    sums: dict[tuple[int, bytes, bytes], list[Any]] = {}
    with localcontext(prec=60):
        for row in records:
            key = (row["time"] // HOUR_US, row["destinationId"].encode(), row["unit"].encode())
            total = sums.setdefault(key, [0, 0, Decimal(0), Decimal(0)])
            side = 0 if row["type"] == "positive" else 1
            total[side] += 1
            total[2 + side] += row["value"]
    return [
        dict(zip(ROLLUP_SCHEMA.names, (hour, name.decode(), unit.decode(), *sums[hour, name, unit]), strict=True))
        for hour, name, unit in sorted(sums)
    ]


def rollup_of(records: list[dict[str, Any]], first_seq: int = 1) -> Rollup:
    rows = of_records([stored(records)])
    return Rollup(list(pages(rows)), f"{first_seq}", first_seq, first_seq + len(records) - 1)


@settings(deadline=None)
@given(record_lists)
def test_a_rollup_is_the_sums_of_its_records(records: list[dict[str, Any]]) -> None:
    """To the last digit, in order of hour and code point."""
    found = of_records([stored(records[:7]), stored(records[7:])])
    assert found.schema.equals(ROLLUP_SCHEMA)
    assert found.to_pylist() == expected(records)


@settings(deadline=None)
@given(st.lists(record_lists, max_size=4), st.sampled_from([1, 7, 1 << 19]))
def test_merged_rollups_are_the_rollup_of_all(lists: list[list[dict[str, Any]]], rows_at_once: int) -> None:
    """However few rows are added up at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MERGED_ROWS", rows_at_once)
        found = list(merged([rollup_of(records) for records in lists]))
    table = pa.Table.from_batches(found, ROLLUP_SCHEMA)
    assert table.to_pylist() == expected([row for records in lists for row in records])


def test_a_merge_beyond_38_digits_raises() -> None:
    """Sums of decimals that do not fit are never wrapped."""
    rows = of_records([stored([record(value=Decimal("1"))])])
    most = pa.array([Decimal("9" * 29)], ROLLUP_SCHEMA.field("positive").type)
    full = rows.set_column(rows.schema.get_field_index("positive"), ROLLUP_SCHEMA.field("positive"), most)
    with pytest.raises(OverflowError, match="does not fit"):
        list(merged([Rollup(list(pages(full)), "a", 1, 1), Rollup(list(pages(full)), "b", 2, 2)]))


def test_hours_between_two_are_found_across_pages() -> None:
    """The pages are looked into, not only chosen."""
    records = [record(time=START_US + hour * HOUR_US) for hour in (0, 0, 1, 3, 3, 7)]
    rows = of_records([stored(records)])
    rollup = Rollup(rows.to_batches(max_chunksize=2), "x", 1, 6)
    first = START_US // HOUR_US
    assert rollup.hours == (first, first + 8)
    for begin in range(-1, 10):
        for end in range(-1, 10):
            found = pa.Table.from_batches(rollup.between(first + begin, first + end), ROLLUP_SCHEMA)
            counted = Counter(dict(zip(found["hour"].to_pylist(), found["positives"].to_pylist(), strict=True)))
            assert counted == Counter(first + hour for hour in (0, 0, 1, 3, 3, 7) if begin <= hour < end)


def test_only_rollups_without_a_gap_stand_for_a_seq() -> None:
    """A rollup that reaches further than asked is of no use, and neither is what comes after it."""
    spans = [(1, 4), (5, 5), (6, 20)]
    rollups = [Rollup([], f"{first}", first, last) for first, last in spans]
    for seq, (count, covered) in {3: (0, 0), 4: (1, 4), 5: (2, 5), 19: (2, 5), 20: (3, 20), 99: (3, 20)}.items():
        chosen, found = covering(rollups[::-1], seq)
        assert (len(chosen), found) == (count, covered)
    assert covering([rollups[0], rollups[2]], 20) == ([rollups[0]], 4)
    assert covering([], 5) == ([], 0)


@pytest.mark.parametrize(
    ("spans", "count"),
    [
        ([], 0),
        ([100, 100, 100], 0),
        ([100, 100, 100, 100], 4),
        ([5000, 100, 1, 100, 100, 100], 5),  # the small one between them goes along
        ([100, 100, 5000, 100, 100], 0),  # the older ones have a larger neighbour
        ([1, 1, 1, 1], 4),
    ],
)
def test_neighbours_of_one_size_are_merged(spans: list[int], count: int) -> None:
    """Only the newest ones, so that a rollup always stands for one range of seqs."""
    assert adjacent_to_merge(spans) == count


def test_a_store_keeps_few_rollups_and_each_row_is_rewritten_seldom() -> None:
    """Of a thousand equal flushes."""
    spans: list[int] = []
    rewritten = 0
    for _ in range(1_000):
        spans.append(1_000)
        while count := adjacent_to_merge(spans):
            rewritten += sum(spans[-count:])
            spans[-count:] = [sum(spans[-count:])]
        assert len(spans) <= 18
    assert rewritten / 1_000_000 < 6


@pytest.mark.parametrize("lost", ["the rollups", "the catalog"])
def test_lost_rollups_are_made_anew_at_the_next_start(tmp_path: Path, lost: str) -> None:
    """As a store has none that was made before there were any."""
    root = tmp_path / "data"
    store = open_store(root)
    committer = Direct(store)
    for first in range(0, 30, 6):
        committer.take([record_of(number) for number in range(first, first + 6)])
        store.flush_once()
    kept = rows_of(store)
    committer.stop()
    store.close()
    if lost == "the catalog":
        (root / "internal/catalog.sqlite").unlink()
    else:
        with sqlite3.connect(root / "internal/catalog.sqlite") as database:
            database.execute("DELETE FROM runs WHERE kind = 'rollups'")
        database.close()
    again = open_store(root)
    assert [(rollup.min_seq, rollup.max_seq) for rollup in again.snapshot().rollups] == [(1, 30)]
    assert rows_of(again) == kept
    while again.tiers.merge_once():
        pass
    again.close()
    assert verify(root).ok
    assert len(list((root / "internal/rollups").iterdir())) == 1


def test_merges_keep_what_the_rollups_say(tmp_path: Path) -> None:
    """Of many flushes a few files are left, which stand for all of them without a gap."""
    store = open_store(tmp_path / "data")
    committer = Direct(store)
    for number in range(40):
        committer.take([record_of(number)])
        store.flush_once()
    kept = rows_of(store)
    while store.tiers.merge_once():
        pass
    rollups = store.snapshot().rollups
    assert len(rollups) < 8
    assert covering(rollups, store.seq) == (sorted(rollups, key=lambda rollup: rollup.min_seq), 40)
    assert rows_of(store) == kept
    committer.stop()
    store.close()
    assert verify(tmp_path / "data").ok


def test_a_merge_never_takes_the_name_of_what_it_merges(tmp_path: Path) -> None:
    """Rollups of the same hours add up to as many rows as each has: merged ones are merged again, and none is lost."""
    lake = Lake(tmp_path / "data")
    for number in range(17):
        lake.post(json.dumps(json_record(number)).encode())
        lake.store.flush_once()
        while lake.store.tiers.merge_once():
            pass
    lake.close()
    assert verify(tmp_path / "data").ok


def json_record(number: int) -> dict[str, str]:
    """Records of one hour, destination and unit."""
    return {
        "recordId": f"rec-{number}",
        "time": "2024-03-01T12:00:00Z",
        "sourceId": "s",
        "destinationId": "d",
        "type": "positive",
        "value": "1",
        "unit": "SEK",
        "reference": "r",
    }


def rows_of(store: Store) -> list[dict[str, Any]]:
    return pa.Table.from_batches(merged(store.snapshot().rollups), ROLLUP_SCHEMA).to_pylist()


MINUTE_US = 60_000_000


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Engine, list[Any]]]:
    """Records of three days in several files and rollups, the last ones hot; and the records, plainly."""
    root = tmp_path_factory.mktemp("rolled") / "data"
    store = open_store(root, segment_bytes=1 << 20)
    committer = Direct(store)
    records = [record_of(number) for number in range(240)]
    for first in range(0, 240, 40):
        committer.take(list(records[first : first + 40]))
        if first < 200:
            store.flush_once()
    engine = Engine(root, tmp_path_factory.mktemp("temp"), memory="64MB")
    yield store, engine, records
    engine.close()
    committer.stop()
    store.close()


bounds = st.none() | st.integers(-30, 3 * 24 * 4 + 30).map(lambda quarter: START_US + quarter * 15 * MINUTE_US)


@settings(max_examples=150, deadline=None)
@given(bounds, bounds, st.none() | st.integers(0, 240), st.sampled_from([None, "positive", "negative"]))
def test_totals_of_any_window_are_the_plain_sums(
    rolled: tuple[Store, Engine, list[Any]], start: int | None, end: int | None, as_of: int | None, kind: str | None
) -> None:
    """Begun and ended on the hour or within it, as of any seq: from rollups, files and hot rows together."""
    store, engine, records = rolled
    expected: dict[tuple[str, str], list[Any]] = {}
    for _, time, _, destination, of_kind, value, unit, _ in records[: 240 if as_of is None else as_of]:
        if (start is None or time >= start) and (end is None or time < end) and kind in (None, of_kind):
            sums = expected.setdefault((destination, unit), [0, Decimal(0), Decimal(0)])
            sums[0] += 1
            sums[1 if of_kind == "positive" else 2] += value
    filters = Filters(start_us=start, end_us=end, as_of=as_of, type=kind)
    found = totals(engine, store.snapshot(), filters).to_pylist()
    assert {(row["destinationId"], row["unit"]): [row["count"], row["positive"], row["negative"]] for row in found} == (
        expected
    )


def test_whole_hours_of_what_is_flushed_read_no_file(
    rolled: tuple[Store, Engine, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even those of the days on which the window begins and ends; within an hour only the files of that hour."""
    store, engine, _ = rolled
    read: list[int] = []
    monkeypatch.setattr(queries, "sound", lambda files: read.append(len(files)))
    begin = START_US + 13 * HOUR_US
    totals(engine, store.snapshot(), Filters(start_us=begin, end_us=begin + 30 * HOUR_US))
    assert read == []
    totals(engine, store.snapshot(), Filters(start_us=begin + MINUTE_US, end_us=begin + 30 * HOUR_US))
    assert len(read) == 1 and 0 < read[0] < len(store.snapshot().files)

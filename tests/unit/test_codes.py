"""Columns as numbers that sort as they do: the order of a flush, and its rollups, are those of plain Python."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from store import codes
from store.codes import changes, folded, numbers, ranks
from store.parquet import partitions
from store.rollups import HOUR_US, of_records
from store.schema import STORED

DAY_US = 24 * HOUR_US
NAMES = ["a", "a\x7f", "ab", "é", "z", "\uffff", "\U0001f600"]  # UTF-16 sorts the last two the other way round

records = st.lists(
    st.tuples(
        st.integers(0, 3 * DAY_US) | st.sampled_from([0, HOUR_US - 1, HOUR_US, DAY_US - 1, DAY_US, 84_000 * DAY_US]),
        st.sampled_from(NAMES),
        st.sampled_from(["positive", "negative"]),
        st.decimals(0, Decimal(10) ** 20 - 1, places=9),
        st.sampled_from(NAMES[:3]),
    ),
    max_size=40,
)


def stored(rows: list[Any], seqs: list[int]) -> pa.Table:
    """Records as they are kept."""
    columns: dict[str, Any] = {name: ["x"] * len(rows) for name in STORED.names}
    columns |= {"seq": seqs, "processedAt": [0] * len(rows)}
    for place, name in enumerate(("time", "destinationId", "type", "value", "unit")):
        columns[name] = [row[place] for row in rows]
    arrays = [
        pa.array(columns[field.name], pa.int64()).cast(field.type)
        if pa.types.is_timestamp(field.type)
        else pa.array(columns[field.name], field.type)
        for field in STORED
    ]
    return pa.table(arrays, schema=STORED)


@given(records, st.randoms(use_true_random=False), st.integers(0, 3))
def test_rows_are_cut_by_day_and_sorted_by_destination_time_and_seq(rows: list[Any], chance: Any, cuts: int) -> None:
    """Whatever the order of the rows, and in however many pieces they come."""
    seqs = list(range(1, len(rows) + 1))
    chance.shuffle(seqs)
    table = stored(rows, seqs)
    step = max(1, len(rows) // (cuts + 1))
    pieces = pa.concat_tables([table.slice(at, step) for at in range(0, max(len(rows), 1), step)])
    found = [(part.day, seq) for part in partitions(pieces) for seq in part.rows().column("seq").to_pylist()]
    meant = sorted(
        (time // DAY_US, destination.encode(), time, seq)
        for (time, destination, *_), seq in zip(rows, seqs, strict=True)
    )
    assert found == [(day, seq) for day, _, _, seq in meant]


@given(records)
def test_a_rollup_is_what_plain_python_adds_up(rows: list[Any]) -> None:
    """By hour, destination and unit, in the order of the code points."""
    sums: dict[Any, list[Any]] = defaultdict(lambda: [0, 0, Decimal(0), Decimal(0)])
    with localcontext(prec=60):
        for time, destination, type_, value, unit in rows:
            held = sums[time // HOUR_US, destination, unit]
            held[0 if type_ == "positive" else 1] += 1
            held[2 if type_ == "positive" else 3] += value
    found = of_records([stored(rows, list(range(1, len(rows) + 1)))])
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (*key, *sums[key]) for key in sorted(sums, key=lambda key: (key[0], key[1].encode(), key[2].encode()))
    ]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1 << 40), st.integers(0, 1 << 40)), max_size=30))
def test_columns_that_are_too_wide_for_one_number_still_sort_as_they_do(rows: list[tuple[int, int, int]]) -> None:
    """Then the distinct ones of the columns before are counted."""
    columns = [(np.array([row[place] for row in rows], dtype=np.int64), (1 << 40) + 1) for place in range(3)]
    order = np.argsort(folded(*columns), kind="stable").tolist()
    assert order == sorted(range(len(rows)), key=lambda row: rows[row])
    assert (1 << 40) ** 2 > codes._MOST


def test_groups_begin_where_values_change() -> None:
    """None of nothing."""
    assert changes(np.array([], dtype=np.int64)).tolist() == []
    assert changes(np.array([3, 3, 4, 9, 9])).tolist() == [0, 2, 3]


def test_strings_and_numbers_are_counted_from_the_least() -> None:
    """A chunked column has one count over its chunks."""
    column = pa.chunked_array([pa.array(["b", "a"]), pa.array(["c", "a"])])
    (places, size), names = ranks(column)
    assert (places.tolist(), size, names.to_pylist()) == ([1, 0, 2, 0], 3, ["a", "b", "c"])
    (counted, size), least = numbers(np.array([-3, 5, -3]))
    assert (counted.tolist(), size, least) == ([0, 8, 0], 9, -3)

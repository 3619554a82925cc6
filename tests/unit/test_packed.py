"""Summaries in few bytes: in C, by NumPy, as the verifier and as the builder of test stores read and write them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from store import kernels
from store.packed import NUMBERS, packed, unpacked
from store.runs import Run
from store.summaries import SUMMARY_RUN, in_columns, merged
from store.verification import packed as verifier
from tests import storebuilder
from tests.unit.test_kernels import decimal_of, without_c

MOST = 10**38 - 1
sums = st.integers(-MOST, MOST) | st.integers(0, 119).map(lambda bits: 1 << bits) | st.sampled_from([0, MOST, -MOST])
words = st.integers(0, 2**63 - 1) | st.integers(0, 62).map(lambda bits: 1 << bits) | st.integers(0, 300)
units = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=32) | st.just("😀" * 32)
rows = st.tuples(units, words, sums.map(decimal_of), sums.map(decimal_of), words, words, words)


def columns_of(found: list[tuple[Any, ...]]) -> tuple[pa.Array, list[pa.Array]]:
    unit, *numbers = zip(*found, strict=True)
    kinds = NUMBERS.values()
    return pa.array(unit), [pa.array(number, kind) for number, kind in zip(numbers, kinds, strict=True)]


@given(st.lists(rows, min_size=1, max_size=12), st.integers(0, 3))
@example([("", 0, Decimal(0), Decimal(0), 0, 0, 0)], 0)
@example([("SEK", 2**63 - 1, decimal_of(-MOST), decimal_of(MOST), 2**63 - 1, 0, 2**63 - 1)] * 2, 1)
def test_each_way_of_packing_gives_the_same_bytes_and_back(found: list[tuple[Any, ...]], cut: int) -> None:
    """Of every width, also where the columns do not begin where their buffers do."""
    found = found[cut % len(found) :]
    unit, numbers = columns_of([*found[:1] * cut, *found])
    unit, numbers = unit[cut:], [column[cut:] for column in numbers]
    in_c = packed(unit, numbers)
    in_c.validate(full=True)
    assert in_c.to_pylist() == [storebuilder.packed(*row) for row in found]
    assert [storebuilder.unpacked(row) for row in in_c.to_pylist()] == found
    shifted = pa.concat_arrays([in_c[:1], in_c])[1:]
    page = pa.record_batch([pa.array([1] * len(found), pa.uint64())] * 2 + [shifted], schema=SUMMARY_RUN)
    assert unpacked(shifted) == (unit, numbers)
    assert verifier.in_columns(page).columns[2:] == [unit, *numbers]
    with without_c():
        assert packed(unit, numbers) == in_c
        assert unpacked(shifted) == (unit, numbers)


@pytest.mark.parametrize("with_c", [True, False])
def test_a_unit_that_no_record_has_is_refused(monkeypatch: pytest.MonkeyPatch, *, with_c: bool) -> None:
    """There is one byte for its length."""
    if not with_c:
        monkeypatch.setattr(kernels, "_C", None)
    for length in (255, 256):
        unit, numbers = columns_of([("x" * length, 1, Decimal(1), Decimal(0), 1, 1, 1)] * 2)
        if length == 255:
            assert unpacked(packed(unit, numbers))[0] == unit
        else:
            with pytest.raises(ValueError, match="more than 255 bytes"):
                packed(unit, numbers)


def test_nothing_is_packed_as_nothing() -> None:
    """No row: in C, and without it."""
    for _ in range(2):
        nothing = packed(pa.array([], pa.string()), [pa.array([], kind) for kind in NUMBERS.values()])
        assert len(nothing) == 0
        unit, numbers = unpacked(nothing)
        assert [len(unit), *map(len, numbers)] == [0] * 7
        with without_c():
            assert len(packed(unit, numbers)) == len(unpacked(nothing)[0]) == 0


def test_most_summaries_take_few_bytes() -> None:
    """That of one record: a quarter of the 83 that its columns take."""
    unit, numbers = columns_of(
        [("SEK", 1, Decimal("125.5"), Decimal(0), 1_709_294_400_000_000, 1_709_294_400_000_000, 80_000_000)]
    )
    assert len(packed(unit, numbers)[0].as_py()) == 24


@pytest.mark.parametrize("with_c", [True, False])
@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\0more",
        b"\5\0\0\0unit",
        b"\0\1\0\0",
        b"\0\x09\0\0" + bytes(9),
        b"\0\0\0\xf0" + bytes(16),
    ],
)
def test_what_was_not_packed_is_refused(monkeypatch: pytest.MonkeyPatch, damaged: bytes, *, with_c: bool) -> None:
    """Wherever it stands: nothing beyond it is read."""
    if not with_c:
        monkeypatch.setattr(kernels, "_C", None)
    whole = storebuilder.packed("SEK", 1, Decimal(1), Decimal(2), 3, 4, 5)
    for rows_ in ([damaged], [whole, damaged], [damaged, whole]):
        with pytest.raises(pa.ArrowInvalid, match="not what a summary is packed as"):
            unpacked(pa.array(rows_, pa.binary()))


keys = st.tuples(st.integers(0, 5) | st.just(2**64 - 1), st.integers(0, 1), st.sampled_from(["kg", "SEK", "€"]))
small = st.tuples(keys, st.integers(1, 9), st.integers(-99, 99), st.integers(0, 99), st.integers(0, 99))


@given(st.lists(st.lists(small, max_size=9), min_size=1, max_size=4), st.booleans())
def test_merged_rows_are_those_of_a_dictionary(runs: list[list[tuple[Any, ...]]], with_c: bool) -> None:  # noqa: FBT001
    """Keys in several runs and several units, hashes that share a half: sorted, and added up."""
    told: dict[tuple[int, int, bytes], list[Any]] = {}
    pieces = []
    for run in runs:
        of_run: dict[tuple[int, int, bytes], list[Any]] = {}
        for (hi, lo, unit), count, value, first, seq in run:
            for totals in (of_run, told):
                total = totals.setdefault((hi, lo, unit.encode()), [0, 0, 0, first, first, 0])
                total[:3] = [total[0] + count, total[1] + value, total[2] + 2 * value]
                total[3:] = [min(total[3], first), max(total[4], first), max(total[5], seq)]
        pieces += [page_of(of_run)]
    if with_c:
        found = merged(pa.concat_batches(pieces))
    else:
        with without_c():
            found = merged(pa.concat_batches(pieces))
    assert found.equals(page_of(told))
    assert in_columns(found).num_rows == len(told) == Run([found]).rows


def page_of(totals: dict[tuple[int, int, bytes], list[Any]]) -> pa.RecordBatch:
    rows_ = [
        (
            *key[:2],
            storebuilder.packed(key[2].decode(), count, decimal_of(positive), decimal_of(negative), first, last, seq),
        )
        for key, (count, positive, negative, first, last, seq) in sorted(totals.items())
    ]
    columns = zip(*rows_, strict=True) if rows_ else ([], [], [])
    return pa.record_batch(
        [np.array(hashes, np.uint64) if at < 2 else pa.array(hashes, pa.binary()) for at, hashes in enumerate(columns)],
        schema=SUMMARY_RUN,
    )

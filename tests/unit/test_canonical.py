"""The canonical rendering against a renderer in plain Python, one row at a time."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.canonical import json_strings, render_decimals, render_integers, render_records, render_times
from store.schema import CANONICAL_FIELDS, RECORD, SCALED_VALUE_LIMIT, TIME_MAX_US

TIME = RECORD.field("time").type
VALUE = RECORD.field("value").type
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

times_us = st.integers(0, TIME_MAX_US - 1)
scaled = st.integers(-SCALED_VALUE_LIMIT, SCALED_VALUE_LIMIT) | st.integers(-3_000, 3_000)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.text(
    '"\\/\n\x00\x1f\x7f aö€😀', max_size=6
)


def plain_time(us: int) -> str:
    return (EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def plain_decimal(value: Decimal) -> str:
    digits, fraction = divmod(abs(int(Fraction(value) * 10**9)), 10**9)
    text = f"{digits}.{fraction:09}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 else text


def decimals(units: list[int]) -> pa.Array:
    return pa.array([Decimal((n < 0, tuple(map(int, str(abs(n)))), -9)) for n in units], VALUE)


def shapes(values: pa.Array) -> list[tuple[Any, list[Any]]]:
    """The array as it is, sliced, in chunks, and without rows, each with the values it stands for."""
    expected = values.to_pylist()
    middle = len(values) // 2
    return [
        (values, expected),
        (values.slice(1), expected[1:]),
        (values.slice(1, 2), expected[1:3]),
        (pa.chunked_array([values.slice(middle), values.slice(0, middle)]), expected[middle:] + expected[:middle]),
        (pa.chunked_array([], values.type), []),
        (values.slice(0, 0), []),
    ]


@given(st.lists(times_us, max_size=30))
def test_times_are_written_to_the_microsecond(us: list[int]) -> None:
    """As datetime writes them, from 1970 to 2200, sliced and chunked."""
    for array, values in shapes(pa.array(us, TIME)):
        expected = [plain_time((value - EPOCH) // timedelta(microseconds=1)) for value in values]
        assert render_times(array).to_pylist() == expected


def test_times_have_no_gap_at_the_ends_of_days_and_years() -> None:
    """The first and last microsecond of days around leap days and of the range itself."""
    days = ["1970-01-01", "1999-12-31", "2000-02-29", "2024-02-29", "2100-03-01", "2200-12-31"]
    starts = [(datetime.fromisoformat(day).replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1) for day in days]
    array = pa.array([us for start in starts for us in (start, start + 86_400_000_000 - 1)], TIME)
    ends = [f"{day}T{clock}Z" for day in days for clock in ("00:00:00.000000", "23:59:59.999999")]
    assert render_times(array).to_pylist() == ends


def test_times_outside_the_range_of_records_are_written_too() -> None:
    """A clock may be wrong: what it says is written, not something else."""
    assert render_times(pa.array([-1, TIME_MAX_US], TIME)).to_pylist() == [
        "1969-12-31T23:59:59.999999Z",
        "2201-01-01T00:00:00.000000Z",
    ]


def test_times_of_many_rows_are_those_of_each_row() -> None:
    """Rows are rendered in blocks; the seams do not show."""
    us = [number * 7_919_000_017 % TIME_MAX_US for number in range(70_000)]
    assert render_times(pa.array(us, TIME)).to_pylist() == [plain_time(value) for value in us]


@given(st.lists(scaled, max_size=30))
def test_decimals_are_plain_and_without_trailing_zeros(units: list[int]) -> None:
    """To the last digit, with no exponent, whatever the size and sign; sliced and chunked."""
    for array, values in shapes(decimals(units)):
        assert render_decimals(array).to_pylist() == [plain_decimal(value) for value in values]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", "0"),
        ("0E-9", "0"),
        ("-0", "0"),
        ("1E-9", "0.000000001"),
        ("-1E-9", "-0.000000001"),
        ("9.99E-7", "0.000000999"),
        ("0.000001", "0.000001"),
        ("-0.000001", "-0.000001"),
        ("100", "100"),
        ("125.50", "125.5"),
        ("-5", "-5"),
        ("99999999999999999999.999999999", "99999999999999999999.999999999"),
        ("-18446744073.709551616", "-18446744073.709551616"),
        ("18446744073.709551616", "18446744073.709551616"),
        ("99999999999999999999999999999.999999999", "99999999999999999999999999999.999999999"),
    ],
)
def test_a_decimal_is_written_like_this(value: str, text: str) -> None:
    """Zero has one form, small values no exponent; 2^64 units are no zero, though their low word is."""
    assert render_decimals(pa.array([Decimal(value)], VALUE)).to_pylist() == [text]


def test_decimals_of_another_scale_are_the_same_decimals() -> None:
    """A threshold read from JSON may have fewer digits."""
    assert render_decimals(pa.array([Decimal("10000"), Decimal("0.5")], pa.decimal128(20, 2))).to_pylist() == [
        "10000",
        "0.5",
    ]


@given(st.lists(texts, max_size=20))
def test_strings_are_escaped_as_json_asks_and_no_further(values: list[str]) -> None:
    """What stands between the quotes reads back as the string, and only `"`, `\\` and controls are escaped."""
    for array, expected in shapes(pa.array(values, pa.string())):
        rendered = json_strings(array).to_pylist()
        assert [json.loads(f'"{text}"') for text in rendered] == expected
        assert [len(text) for text in rendered] == [len(json.dumps(v, ensure_ascii=False)) - 2 for v in expected]


def test_strings_without_anything_to_escape_are_given_back() -> None:
    """The same buffers; what other rows of the buffer hold does not matter."""
    plain = pa.array(["a", "ö", "", "x/y"])
    assert json_strings(plain) is plain
    sliced = pa.array(['"', "b", "\\"]).slice(1, 1)
    assert json_strings(sliced) is sliced


def test_integers_are_digits() -> None:
    """The smallest and largest of 64 bits."""
    for array, values in shapes(pa.array([0, -1, 2**63 - 1, -(2**63), 7])):
        assert render_integers(array).to_pylist() == [str(value) for value in values]


records = st.fixed_dictionaries(
    {
        "recordId": texts,
        "time": times_us,
        "sourceId": texts,
        "destinationId": texts,
        "type": st.sampled_from(["positive", "negative"]),
        "value": scaled,
        "unit": texts,
        "reference": texts,
    }
)


@given(st.lists(records, max_size=8), st.booleans())
def test_records_are_compact_objects_in_canonical_order(rows: list[dict[str, Any]], as_table: bool) -> None:
    """Byte for byte what json.dumps makes of the fields; other columns do not matter."""
    columns: dict[str, pa.Array] = {
        name: pa.array([row[name] for row in rows], pa.string())
        for name in CANONICAL_FIELDS
        if name not in ("time", "value")
    }
    columns["time"] = pa.array([row["time"] for row in rows], TIME)
    columns["value"] = decimals([row["value"] for row in rows])
    batch = pa.RecordBatch.from_pydict({"seq": pa.array(range(len(rows)), pa.int64()), **columns})
    expected = [
        json.dumps(
            {
                **{name: row[name] for name in CANONICAL_FIELDS},
                "time": plain_time(row["time"]),
                "value": plain_decimal(decimals([row["value"]])[0].as_py()),
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )
        for row in rows
    ]
    rendered = render_records(pa.Table.from_batches([batch]) if as_table else batch)
    # Python spells some controls in other ways (\u0008 for \b): both are JSON, so what differs is compared as values.
    assert [json.loads(text) for text in rendered.to_pylist()] == [json.loads(text) for text in expected]
    simple = [(text, plain) for text, plain in zip(rendered.to_pylist(), expected, strict=True) if "\\u00" not in text]
    assert all(text == plain for text, plain in simple)

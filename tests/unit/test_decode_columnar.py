"""Parquet and Arrow: the column types that are taken, those that are refused, and hostile files."""

# ruff: noqa: E501  (tables of cases)
from __future__ import annotations

import io
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.decode import Limits, Rules, decode_body
from ingest.formats import Compression, Format
from store.errors import InvalidSchemaError, TooLargeError, UndecodableError
from store.schema import CANONICAL_FIELDS
from tests.unit.decoding import GOOD, arrow_bytes, as_table, facts, sample

US = pa.timestamp("us", "UTC")


def table(count: int = 1, **columns: pa.Array) -> pa.Table:
    """Ordinary columns, with some in other types."""
    plain = {name: pa.array([GOOD[name]] * count, pa.string()) for name in CANONICAL_FIELDS}
    return pa.table({**plain, **columns})


def parquet(found: pa.Table, **options: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(found, out, **options)
    return out.getvalue()


def outcome(found: pa.Table, rules: Rules | None = None, **limits: int) -> list[tuple[object, ...]]:
    """Through an Arrow stream."""
    options = Limits(**limits)
    return facts(decode_body(arrow_bytes(found), Format.ARROW_STREAM, Compression.NONE, rules or Rules(), options))


def errors(found: list[tuple[object, ...]]) -> list[object]:
    return [row[3] if len(row) == 4 else None for row in found]


@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.int64(), pa.uint64(), pa.decimal32(5, 2), pa.decimal64(18, 9),
     pa.decimal128(38, 0), pa.decimal128(38, 30), pa.decimal256(76, 9), pa.decimal256(76, 40), pa.decimal256(76, 60),
     pa.decimal128(10, -2), pa.decimal256(50, 0)],
    ids=str,
)  # fmt: skip
def test_numbers_of_any_exact_type_are_taken(kind: pa.DataType) -> None:
    """Decimals of any precision and scale, integers of any width."""
    values = pa.array([Decimal(100), Decimal(0)] if pa.types.is_decimal(kind) else [100, 0], kind)
    found = outcome(table(2, value=values))
    assert [row[2][5] for row in found] == [100, 0]  # type: ignore[index]


def test_numbers_that_do_not_fit_are_rejected_row_by_row() -> None:
    """Scale, range and sign, exactly, without harm to the rows beside; nothing wraps or is rounded."""
    texts = [
        "1.5",
        "0.0000000001",
        "1e30",
        "-1",
        "99999999999999999999.999999999",
        "100000000000000000000",
        None,
        "3e31",
    ]
    values = pa.array([None if text is None else Decimal(text) for text in texts], pa.decimal256(76, 30))
    wanted = [None, "value_scale", "value_range", "value_negative", None, "value_range", "missing", "value_range"]
    expected = [None if code is None else (("value", code),) for code in wanted]
    assert errors(outcome(table(8, value=values))) == expected
    small = pa.array([2**64 - 1, 5], pa.uint64())
    assert [row[2][5] for row in outcome(table(2, value=small))] == [2**64 - 1, 5]  # type: ignore[index]
    large = pa.array([Decimal("1e31"), Decimal("5")], pa.decimal128(38, 0))
    assert errors(outcome(table(2, value=large))) == [(("value", "value_range"),), None]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", ["UTC", "+02:00", "Europe/Stockholm"])
def test_timestamps_of_any_unit_and_zone_are_taken(unit: str, zone: str) -> None:
    """The zone is how they are shown; digits beyond the microsecond are cut, the range is that of the contract."""
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    ticks = [0, 1_709_294_400 * per_second, -1, 2**63 - 1, None, 1_709_294_400 * per_second + per_second // 10**7]
    found = outcome(table(6, time=pa.array(ticks, pa.int64()).cast(pa.timestamp(unit, zone))))
    last = (("time", "time_range"),)
    assert errors(found) == [None, None, last, last, (("time", "missing"),), None]
    assert found[1][2][1] == found[5][2][1]  # type: ignore[index]


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
    ids=str,
)
def test_strings_of_any_kind_are_taken(kind: pa.DataType) -> None:
    """Large, views and dictionaries, with nulls and rule breaks as anywhere."""
    texts = ["a", None, "", "é" * 257, "a"]
    found = outcome(
        table(5, reference=pa.array(texts, pa.string()).cast(kind), recordId=pa.array(list("abcde")).cast(kind))
    )
    codes = [None, "missing", "empty", "too_long", None]
    assert errors(found) == [None if code is None else (("reference", code),) for code in codes]
    assert found == outcome(table(5, reference=pa.array(texts), recordId=pa.array(list("abcde"))))


@pytest.mark.parametrize(
    ("name", "column"),
    [("value", pa.array([1.5])), ("value", pa.array([1.5], pa.float32())), ("time", pa.array([0], pa.timestamp("us"))),
     ("time", pa.array([0])), ("time", pa.array([0], pa.date32())), ("recordId", pa.array([1])), ("unit", pa.array([["x"]])),
     ("unit", pa.array([b"x"])), ("value", pa.array([True])), ("type", pa.nulls(1)), ("value", pa.array([{"a": 1}]))],
)  # fmt: skip
def test_a_column_of_another_type_fails_the_batch(name: str, column: pa.Array) -> None:
    """The message names the column, its type, and what is allowed."""
    for data, fmt in (
        (arrow_bytes(table(**{name: column})), Format.ARROW_STREAM),
        (parquet(table(**{name: column})), Format.PARQUET),
    ):
        with pytest.raises(InvalidSchemaError, match=rf"{name}.*must be"):
            decode_body(data, fmt, Compression.NONE, Rules(), Limits())


def test_missing_doubled_and_unknown_columns_fail_the_batch() -> None:
    """Unless unknown ones are to be ignored, whatever they hold."""
    with pytest.raises(InvalidSchemaError, match="'unit' is missing"):
        outcome(table().drop_columns("unit"))
    with pytest.raises(InvalidSchemaError, match="2 times"):
        outcome(table().append_column("unit", pa.array(["x"])))
    extra = table(extra=pa.array([[1.5]]))
    with pytest.raises(InvalidSchemaError, match="extra"):
        outcome(extra)
    assert errors(outcome(extra, Rules(unknown_fields="ignore"))) == [None]
    found = decode_body(parquet(extra), Format.PARQUET, Compression.NONE, Rules(unknown_fields="ignore"), Limits())
    assert errors(facts(found)) == [None]


def test_lists_that_are_to_be_ignored_may_have_any_length() -> None:
    """In Parquet, where each has its own number of values, as in Arrow."""
    ignore = Rules(unknown_fields="ignore")
    tagged = table(4, recordId=pa.array(list("abcd")), tags=pa.array([["x", "y"], [], None, ["z", "z", "z"]]))
    found = decode_body(parquet(tagged), Format.PARQUET, Compression.NONE, ignore, Limits())
    assert facts(found) == outcome(tagged, ignore) and errors(facts(found)) == [None] * 4


def test_a_batch_may_be_bound_to_any_number_of_sources() -> None:
    """More names than one message to the helper process can hold; each row is still checked against them."""
    rules = Rules(sources=frozenset({"mine", *(f"source-{number:020}" for number in range(20_000))}))
    found = table(2, recordId=pa.array(["a", "b"]), sourceId=pa.array(["mine", "other"]))
    rows = facts(decode_body(parquet(found), Format.PARQUET, Compression.NONE, rules, Limits()))
    assert errors(rows) == [None, (("sourceId", "source_not_allowed"),)]


@pytest.mark.parametrize("packed", [False, True])
def test_text_that_is_not_utf8_rejects_its_row(packed: bool) -> None:
    """Both in Parquet and Arrow, plain and in dictionaries; the rows beside are kept."""
    raw = pa.array([b"ok", b"\xff", b"\xc3\xa9", b"\xed\xa0\x80"])
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3]), text) if packed else text
    bad = (("unit", "malformed"),)
    assert errors(outcome(table(4, unit=column))) == [None, bad, None, bad]
    found = decode_body(parquet(table(4, unit=text)), Format.PARQUET, Compression.NONE, Rules(), Limits())
    assert errors(facts(found)) == [None, bad, None, bad]
    assert b'"unit":"\\\\xff"' in found[0].rejects[0].original


def test_a_row_is_shown_as_compact_json() -> None:
    """What stands in a dead letter and in a conflict."""
    odd = as_table(sample(2)).set_column(6, "unit", pa.array(["", "SEK"]))
    (chunk,) = decode_body(parquet(odd.select(CANONICAL_FIELDS)), Format.PARQUET, Compression.NONE, Rules(), Limits())
    assert chunk.rejects[0].original.startswith('{"recordId":"rec-0-é","time":"2024-01-01T00:00:00.000000Z",'.encode())
    assert b'"value":"1.100000000"' in chunk.locate(0).original


def test_a_small_file_with_huge_repeated_texts_stays_small() -> None:
    """A dictionary can say a long text very often in few bytes: batches shrink instead of memory growing."""
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 150, pa.int8()), pa.array(["x" * 1_000_000]))
    found = table(150, reference=long)
    before = pa.total_allocated_bytes()
    for data, fmt in ((parquet(found), Format.PARQUET), (arrow_bytes(found), Format.ARROW_STREAM)):
        for chunk in decode_body(data, fmt, Compression.NONE, Rules(), Limits()):
            assert chunk.received <= 67
            assert pa.total_allocated_bytes() - before < 400 << 20


def test_a_parquet_file_over_the_limit_is_refused_by_its_metadata() -> None:
    """Before any of it is read."""
    data = parquet(table(100_000))
    with pytest.raises(TooLargeError):
        decode_body(data, Format.PARQUET, Compression.NONE, Rules(), Limits(max_decompressed_bytes=50_000))


@pytest.mark.parametrize("fmt", [Format.PARQUET, Format.ARROW_STREAM, Format.ARROW_FILE])
def test_rubbish_cannot_be_decoded(fmt: Format) -> None:
    """Whatever pyarrow raises is one clear error."""
    for data in (b"x", b"PAR1" * 10, b"ARROW1\0\0" + b"\xff" * 40, b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\0" * 100):
        try:
            assert decode_body(data, fmt, Compression.NONE, Rules(), Limits()) == []
        except UndecodableError as error:
            assert str(error)
        else:
            assert fmt is not Format.PARQUET


def test_arrow_is_told_by_its_content() -> None:
    """A file sent as a stream is read, and the other way round."""
    for wrong, file in ((Format.ARROW_STREAM, True), (Format.ARROW_FILE, False)):
        data = arrow_bytes(table(), file=file)
        assert errors(facts(decode_body(data, wrong, Compression.NONE, Rules(), Limits()))) == [None]

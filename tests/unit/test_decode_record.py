"""The rules of one record, and the names of formats: each rule with its code, all errors of a record together."""

# ruff: noqa: E501  (tables of cases)

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from ingest.batch import Record
from ingest.formats import Compression, Format, by_encoding, by_file_name, by_media_type
from ingest.record import Rejected, Rules, is_deeper, parse_carefully, parse_record
from store.errors import UnknownFormatError
from tests.unit.decoding import line


def codes(data: bytes, rules: Rules | None = None) -> list[tuple[str | None, str]]:
    """(field, code) of all errors; the shortcut and the whole check must agree."""
    found = parse_record(data, rules or Rules())
    assert found == parse_carefully(data, rules or Rules())
    return [(error.field, error.code) for error in found.errors] if isinstance(found, Rejected) else []


@pytest.mark.parametrize(
    ("token", "value"),
    [("0", "0"), ("-0", "0"), ("0e99", "0"), ("0e-999999999999999999999", "0"), ("-0.0e5", "0"), ("1.0000000000", "1"),
     ("1e19", "10000000000000000000"), ("99999999999999999999.999999999", "99999999999999999999.999999999"),
     ("1e-9", "0.000000001"), ("1000e-12", "0.000000001"), ("0.00000000000000000000000001e26", "1"), ('"1E+2"', "100"),
     ("1e" + "0" * 5_000 + "1", "10"), ("1" + "0" * 5_000 + "e-5000", "1"), ("12345678901234567890.123456789",) * 2],
)  # fmt: skip
def test_a_value_is_exact(token: str, value: str) -> None:
    """Exponents, trailing zeros and signs of zero change nothing about the number."""
    found = parse_record(line(value=token), Rules())
    assert isinstance(found, Record)
    assert found == parse_carefully(line(value=token), Rules())
    assert found.value == Decimal(value)
    assert "E+" not in str(found.value)
    assert not found.value.is_signed()


@pytest.mark.parametrize(
    ("token", "expected"),
    [("1e20", ["value_range"]), ("1e999999999999999999999999", ["value_range"]), ("1e-10", ["value_scale"]),
     ("1e-999999999999999999999999", ["value_scale"]), ("1e999999999", ["value_range"]), ("0.1234567891", ["value_scale"]),
     ("100000000000000000000.0000000001", ["value_range", "value_scale"]), ("-1", ["value_negative"]),
     ('"+1"', ["value_format"]), ('".5"', ["value_format"]), ('"5."', ["value_format"]), ('"007"', ["value_format"]),
     ('""', ["value_format"]), ('"1_000"', ["value_format"]), ('" 1"', ["value_format"]), ('"1\\n"', ["value_format"]),
     ('"NaN"', ["value_format"]), ('"Infinity"', ["value_format"]), ('"１"', ["value_format"]), ('"0x1"', ["value_format"]),
     ("true", ["type"]), ("[1]", ["type"]), ("{}", ["type"]), ("null", ["missing"])],
)  # fmt: skip
def test_a_value_that_is_not_allowed_has_its_code(token: str, expected: list[str]) -> None:
    """No value is rounded, wrapped or guessed, and a huge exponent costs nothing."""
    assert codes(line(value=token)) == [("value", code) for code in expected]


@pytest.mark.parametrize(
    ("token", "expected"),
    [("-1", []), ("-1e20", []), ("-100000000000000000000.000000001", ["value_range"]), ("-2e20", ["value_range"]),
     ("-1e21", ["value_range"])],
)  # fmt: skip
def test_negative_values_are_taken_where_configured(token: str, expected: list[str]) -> None:
    """Down to -10^20, and not below."""
    assert codes(line(value=token), Rules(negative_values="accept")) == [("value", code) for code in expected]


@pytest.mark.parametrize(
    ("text", "micros"),
    [("1970-01-01T00:00:00Z", 0), ("1970-01-01T01:00:00.000001+01:00", 1), ("1969-12-31T23:59:59-00:01", 59_000_000),
     ("2024-03-01t12:00:00.1234567899z", 1_709_294_400_123_456), ("2000-02-29T00:00:00-00:00", 951_782_400_000_000),
     ("2200-12-31T23:59:59.999999999Z", 7_289_654_399_999_999), ("2201-01-01T00:00:00+00:01", 7_289_654_340_000_000)],
)  # fmt: skip
def test_a_time_is_kept_in_utc_microseconds(text: str, micros: int) -> None:
    """Offsets are taken off, further digits cut."""
    found = parse_record(line(time=text), Rules())
    assert isinstance(found, Record)
    assert found.time_us == micros


@pytest.mark.parametrize(
    ("text", "code"),
    [("1969-12-31T23:59:59.999999Z", "time_range"), ("1970-01-01T00:00:00+00:01", "time_range"),
     ("2201-01-01T00:00:00Z", "time_range"), ("2200-12-31T23:59:59-00:01", "time_range"), ("0000-01-01T00:00:00Z", "time_range"),
     *((text, "time_format") for text in (
         "", "2024-03-01 12:00:00Z", "2024-03-01T12:00:00", "2024-03-01", "2024-03-01T12:00Z", "2024-03-01T12:00:60Z",
         "2024-03-01T24:00:00Z", "2024-03-01T12:60:00Z", "2023-02-29T00:00:00Z", "2100-02-29T00:00:00Z", "2024-13-01T00:00:00Z",
         "2024-00-01T00:00:00Z", "2024-04-31T00:00:00Z", "2024-03-01T12:00:00+24:00", "2024-03-01T12:00:00+02:60",
         "2024-03-01T12:00:00+0200", "2024-03-01T12:00:00+02", "2024-03-01T12:00:00.Z", "2024-03-01T12:00:00Z\n", "infinity",
         "２024-03-01T12:00:00Z", "2024-3-1T12:00:00Z", "2024-03-01T12:00:00,5Z", "+2024-03-01T12:00:00Z"))],
)  # fmt: skip
def test_a_time_that_is_not_allowed_has_its_code(text: str, code: str) -> None:
    """Only RFC 3339 with an offset, of the calendar, in the years 1970 to 2200."""
    assert codes(line(time=text)) == [("time", code)]


@pytest.mark.parametrize("name", ["recordId", "sourceId", "destinationId", "unit", "reference"])
def test_strings_have_limits_in_code_points_and_no_control_characters(name: str) -> None:
    """One to 256 characters (32 for unit), none of category Cc, no lone surrogates."""
    limit = 32 if name == "unit" else 256
    assert codes(line(**{name: "😀" * limit})) == []
    assert codes(line(**{name: "x" * (limit + 1)})) == [(name, "too_long")]
    assert codes(line(**{name: ""})) == [(name, "empty")]
    assert codes(line(**{name: "\ud800"})) == [(name, "surrogate")]
    assert codes(line(**{name: "a\u00a0\u2028 b"})) == []
    for control in [*range(0x20), *range(0x7F, 0xA0)]:
        assert codes(line(**{name: f"a{chr(control)}"})) == [(name, "control_character")]
    for other in (5, True, ["x"], {"x": 1}):
        assert codes(line(**{name: other})) == [(name, "type")]
    assert codes(line(**{name: None})) == [(name, "missing")]


@pytest.mark.parametrize("kind", ["Positive", "", "positive ", "neutral", "\x00"])
def test_type_is_one_of_two_words(kind: str) -> None:
    """Compared byte for byte."""
    assert codes(line(type=kind)) == [("type", "type_unknown")]


def test_all_errors_of_a_record_are_told() -> None:
    """In the order of the fields, unknown ones last, and the id where it is itself valid."""
    found = parse_record(b'{"sourceid":1,"recordId":"r","time":"x","unit":"","value":-1e-10,"type":3}', Rules())
    assert isinstance(found, Rejected)
    assert found.record_id == "r"
    assert [(error.field, error.code) for error in found.errors] == [
        ("time", "time_format"), ("sourceId", "missing"), ("destinationId", "missing"), ("type", "type"),
        ("value", "value_negative"), ("value", "value_scale"), ("unit", "empty"), ("reference", "missing"),
        ("sourceid", "unknown_field"),
    ]  # fmt: skip
    assert "did you mean sourceId" in found.errors[-1].message
    bad = parse_record(line(recordId="", unit=""), Rules())
    assert isinstance(bad, Rejected)
    assert bad.record_id is None


def test_unknown_fields_are_dropped_where_configured() -> None:
    """With `ignore` whatever stands in them is no error; their number in an answer is bounded otherwise."""
    data = line(extra=[{"a": "\x00"}], more=None)
    assert codes(data, Rules(unknown_fields="ignore")) == []
    assert codes(data) == [("extra", "unknown_field"), ("more", "unknown_field")]
    assert len(codes(line(**{f"x{at}": 1 for at in range(10_000)}))) == 21
    found = parse_record(line(**{"\ud800" + "y" * 500: 1}), Rules())
    assert isinstance(found, Rejected)
    assert len(found.errors[0].field or "") < 100
    assert (found.errors[0].field or "").encode()


def test_the_last_of_a_double_key_counts() -> None:
    """Also where the first one is not valid, or written with escapes."""
    data = line()
    assert codes(b'{"unit":5,' + data[1:]) == []
    assert codes(data[:-1] + b',"un\\u0069t":""}') == [("unit", "empty")]
    assert codes(b'{"value":null,' + data[1:]) == []


@pytest.mark.parametrize(
    "data",
    [b"", b" ", b"{", b"[]", b"1", b"null", b'"x"', b"{}x", b"{'a':1}", b'{"a":1,}', b'{"a":NaN}', b'{"a":Infinity}',
     b'{"a":01}', b'{"a":"\x01"}', b'{"a":"\\q"}', b'\xef\xbb\xbf{"a":1}', b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}',
     b'{"a":' + b"[" * 200_000, b"[" * 200_000, b'{"a":' * 100_000, line() + b"\x00", line()[:-1] + b"/**/}"],
)  # fmt: skip
def test_what_is_no_json_object_is_malformed(data: bytes) -> None:
    """One error, no field, no id, and never another exception."""
    assert codes(data) == [(None, "malformed")]


def test_messages_can_always_be_sent() -> None:
    """Hostile text in a message is bounded and free of surrogates."""
    for data in (line(time="\ud800" * 9_999), line(type="\ud800"), line(value='"' + "9" * 99_999 + 'x"')):
        found = parse_record(data, Rules())
        assert isinstance(found, Rejected)
        assert all(len(error.message.encode()) < 400 for error in found.errors)


def test_formats_are_known_by_media_type() -> None:
    """In any case and with parameters; another charset, or type, is refused with the list of known ones."""
    assert by_media_type("Application/JSON; charset=UTF-8") is Format.JSON
    assert by_media_type("application/x-ndjson") is by_media_type("application/jsonl") is Format.NDJSON
    assert by_media_type('text/csv; header=present; charset="utf-8"') is Format.CSV
    for unknown in ("", "text/plain", "text/csv; charset=latin-1"):
        with pytest.raises(UnknownFormatError):
            by_media_type(unknown)
    assert [by_encoding(name) for name in (None, "gzip", "ZSTD")] == list(Compression)
    with pytest.raises(UnknownFormatError, match="gzip, zstd"):
        by_encoding("br")


def test_formats_are_known_by_file_name() -> None:
    """By the last one or two endings."""
    assert by_file_name("a.b.csv.gz") == (Format.CSV, Compression.GZIP)
    assert by_file_name("A.JSONL.ZST") == (Format.NDJSON, Compression.ZSTD)
    assert by_file_name("x.arrow") == (Format.ARROW_FILE, Compression.NONE)
    assert by_file_name("x.arrows") == (Format.ARROW_STREAM, Compression.NONE)
    for unknown in ("x", "x.gz", "x.csv.bz2", "json", "x.txt"):
        with pytest.raises(UnknownFormatError, match=r"\.ndjson"):
            by_file_name(unknown)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("recordID", "recordId"), ("record_id", "recordId"), ("vaule", "value"), ("units", "unit"), ("val", "value"),
        ("destination", "destinationId"), ("source", "sourceId"), ("amount", None), ("", None), ("x" * 1_000, None),
    ],
)  # fmt: skip
def test_an_unknown_field_is_told_the_nearest_one(name: str, near: str | None) -> None:
    """Where one is near; letters, case and what stands between words may differ a little."""
    found = parse_record(json.dumps({name: 1}).encode(), Rules())
    assert isinstance(found, Rejected)
    message = next(error.message for error in found.errors if error.code == "unknown_field")
    assert message.endswith(f"did you mean {near}?" if near else "unit, reference.")


@pytest.mark.parametrize(
    ("data", "deep"),
    [
        (b'{"a":' * 64 + b"1" + b"}" * 64, False), (b'{"a":' * 65 + b"1" + b"}" * 65, True), (b"[]," * 1_000, False),
        (b'"' + b"[" * 100 + b'"', False), (b'"\\"' + b"[" * 100 + b'"', False), (b'"\\\\"' + b"[" * 100, True),
        (b"]" * 100 + b"[" * 100, False), (b'"' + b"[" * 100, False), (b"", False),
    ],
    ids=range(9),
)  # fmt: skip
def test_only_brackets_outside_of_strings_nest(data: bytes, deep: bool) -> None:
    """However many there are one after the other."""
    assert is_deeper(data, 64) is deep

"""NDJSON and CSV: the fast path does not differ from the exact one, and lines are counted right."""

# ruff: noqa: E501  (tables of cases)

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ingest.lines
from ingest.csvs import csv_chunks
from ingest.decode import Limits, Rules, decode_body
from ingest.formats import Compression, Format
from ingest.jsons import json_chunks
from ingest.lines import Lines
from ingest.ndjson import ndjson_chunks
from ingest.record import MAX_RECORD_BYTES, Rejected, parse_record
from store import kernels
from store.errors import InvalidSchemaError, UndecodableError
from store.journal import Position
from store.schema import CANONICAL_FIELDS
from tests.unit.decoding import GOOD, as_csv, facts, line, sample

NASTY_VALUES = ["1e31", "1e20", "99e29", "7e29", "439736758371463086871698996057034081", "1e5", "1E+5", "0e99", "-0", "-1",
                "-1e20", "-100000000000000000000.1", "99999999999999999999.999999999", "1.0000000000", "0.0000000001",
                '"1"', '"+1"', '".5"', '"5."', '"007"', '" 1"', '"1e2"', "+1", ".5", "5.", "007", "NaN", "true", "null",
                '""', "1e400", '"1e999999999"', "[]", "{}", "1" * 80, "0." + "3" * 80, "1_0", '"１"']  # fmt: skip
NASTY_TEXTS = ["", "x" * 256, "x" * 257, "é" * 256, "é" * 257, "\x00", "a\x7f", "\u0085", "\u00a0", "e" * 40, 'a"b', "a\\b",
               "\ud800", "😀", "a\nb", "a,b", "1e5", " ", "\u2028", "5e5,", ":1e5"]  # fmt: skip
NASTY_TIMES = ["2024-02-29T00:00:00Z", "2023-02-29T00:00:00Z", "2024-03-01t12:00:00z", "2024-03-01 12:00:00Z",
               "2024-03-01T12:00:60Z", "2024-03-01T24:00:00Z", "2024-03-01T12:00:00", "2024-03-01T12:00:00.123456789Z",
               "2024-03-01T12:00:00.1+23:59", "2024-03-01T12:00:00-24:00", "1970-01-01T00:00:00+00:01",
               "1969-12-31T23:59:59-00:01", "2200-12-31T23:59:59.999999999Z", "2201-01-01T00:00:00Z", "0000-01-01T00:00:00Z",
               "2200-12-31T23:59:59-01:00", "2100-02-29T00:00:00Z", "2000-02-29T00:00:00Z", "9999-12-31T23:59:59-23:59",
               "2024-04-31T00:00:00Z", "２024-03-01T12:00:00Z", "2024-03-01T12:00:00.Z", "2024-03-01T12:00:00+0200"]  # fmt: skip
NASTY_LINES = [b"", b" ", b"\t\r", b"{}", b"[]", b"null", b"garbage", b"\xff\xfe", b"{" * 2_000, b"\xef\xbb\xbf" + line(),
               line() + line(), line() + b" ", b" " + line(), line() + b"\r", line()[:-1], line()[1:], line() + b",",
               line().replace(b',"unit"', b',\r"unit"'), line().replace(b',"unit"', b',"unit":"x","unit"'),
               line().replace(b'"unit":', b'"un\\u0069t" : '), line(extra=1), line(extra="}{"), line(recordid="a"),
               line().replace(b'"r"}', b'"\xff"}'), line().replace(b'"r"}', b'"\xed\xa0\x80"}'),
               line().replace(b'"r"}', b'"\\ud800"}'), line().replace(b'"r"}', b'"\\u0000"}'), line()[:-1] + b"\x00}",
               line().replace(b'"unit":"SEK",', b""), line().replace(b'"SEK"', b"5"), line().replace(b'"s"', b"null")]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def always_fast() -> Iterator[None]:
    """Few lines go the fast way, too; else only the exact path would be compared with itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest.lines, "_FEW_ROWS", 0)
        yield


ordinary = st.builds(
    lambda at, value: line(recordId=f"rec-{at}", value=value),
    st.integers(0, 10**6),
    st.decimals(0, 10**20 - 1, places=2).map(lambda found: format(found, "f")) | st.integers(0, 10**6).map(str),
)
texts = st.sampled_from(NASTY_TEXTS) | st.text(max_size=8)
nasty = st.one_of(
    st.sampled_from(NASTY_LINES),
    st.sampled_from(NASTY_VALUES).map(lambda value: line(value=value)),
    st.sampled_from(NASTY_TIMES).map(lambda time: line(time=time)),
    st.builds(
        lambda name, text, ascii_only: json.dumps({**GOOD, name: text}, ensure_ascii=ascii_only).encode(
            "utf-8", "surrogatepass"
        ),
        st.sampled_from(CANONICAL_FIELDS),
        texts,
        st.booleans(),
    ),
)
rules = st.builds(Rules, st.sampled_from(["reject", "ignore"]), st.sampled_from(["reject", "accept"]))


def ndjson_facts(data: bytes, found: Rules, *, exact: bool, chunk_bytes: int = 1 << 20, rows: int = 1 << 15) -> object:
    chunks = ndjson_chunks(io.BytesIO(data), found, Position(), chunk_bytes=chunk_bytes, chunk_rows=rows, exact=exact)
    return facts(chunks)


@settings(max_examples=400, deadline=None)
@given(st.lists(ordinary | nasty, max_size=12), st.sampled_from([b"\n", b"\r\n", b"\n\n"]), rules)
def test_the_fast_path_of_ndjson_equals_the_exact_one(lines: list[bytes], end: bytes, found: Rules) -> None:
    """Whatever the lines, both paths give the same records, errors and line numbers."""
    data = end.join(lines)
    assert ndjson_facts(data, found, exact=False) == ndjson_facts(data, found, exact=True)


@pytest.mark.parametrize("value", NASTY_VALUES)
@pytest.mark.parametrize("negative", ["reject", "accept"])
def test_each_nasty_value_among_many_ordinary_ones_is_exact(value: str, negative: str) -> None:
    """A chunk of ordinary lines hides nothing: values that pyarrow wraps or coerces are found."""
    data = b"\n".join([line(recordId=str(at), value=f"{at}.5") for at in range(600)] + [line(value=value)])
    found = Rules(negative_values=negative)  # type: ignore[arg-type]
    assert ndjson_facts(data, found, exact=False) == ndjson_facts(data, found, exact=True)
    only = b"\n".join([line(value=value)] * 3)
    assert ndjson_facts(only, found, exact=False) == ndjson_facts(only, found, exact=True)


@pytest.mark.parametrize("bad", [*NASTY_LINES, *(line(time=time) for time in NASTY_TIMES)])
def test_each_nasty_line_among_many_ordinary_ones_is_exact(bad: bytes) -> None:
    """One odd line is judged as if alone, and the others are not harmed."""
    data = b"\n".join([line(recordId=str(at)) for at in range(600)] + [bad] + [line(recordId="z")])
    assert ndjson_facts(data, Rules(), exact=False) == ndjson_facts(data, Rules(), exact=True)


@pytest.mark.parametrize("name", CANONICAL_FIELDS)
def test_each_nasty_text_in_each_field_is_exact(name: str) -> None:
    """Also one that begins in the middle of a word of eight bytes, and so behind plain ones."""
    found = [before + text for text in NASTY_TEXTS for before in ("", "a", "abcdefgh")]
    lines = [json.dumps({**GOOD, name: text}, ensure_ascii=False).encode("utf-8", "surrogatepass") for text in found]
    data = b"\n".join(lines)
    assert ndjson_facts(data, Rules(), exact=False) == ndjson_facts(data, Rules(), exact=True)


@pytest.mark.parametrize("name", CANONICAL_FIELDS)
@pytest.mark.parametrize("other", CANONICAL_FIELDS)
def test_a_field_that_stands_twice_in_place_of_another_is_exact(name: str, other: str) -> None:
    """Eight fields are not all eight of them."""
    data = b"\n".join([line(), line().replace(f'"{name}":'.encode(), f'"{other}":'.encode()), line()])
    assert ndjson_facts(data, Rules(), exact=False) == ndjson_facts(data, Rules(), exact=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(ordinary | nasty, max_size=10), st.integers(1, 400), st.integers(1, 4))
def test_ndjson_does_not_depend_on_where_it_is_cut(lines: list[bytes], chunk_bytes: int, rows: int) -> None:
    """Chunks are a matter of memory, never of outcome."""
    data = b"\n".join(lines)
    small = ndjson_facts(data, Rules(), exact=False, chunk_bytes=chunk_bytes, rows=rows)
    assert small == ndjson_facts(data, Rules(), exact=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(ordinary | nasty, min_size=1, max_size=8), st.integers(1, 400), st.integers(1, 4))
def test_json_arrays_equal_the_exact_path_and_are_cut_anywhere(elements: list[bytes], size: int, rows: int) -> None:
    """An array gives the same outcomes, or the same refusal, in small blocks, large ones, and exactly."""
    data = b"[" + b",".join(elements) + b"]"

    def run(chunk_bytes: int, chunk_rows: int, exact: bool) -> object:
        try:
            stream = io.BytesIO(data)
            chunks = json_chunks(
                stream, Rules(), Position(), chunk_bytes=chunk_bytes, chunk_rows=chunk_rows, exact=exact
            )
            return facts(list(chunks))
        except UndecodableError:
            return "undecodable"

    assert run(1 << 20, 1 << 15, False) == run(1 << 20, 1 << 15, True) == run(size, rows, False)


@pytest.mark.parametrize(("value", "taken"), [("1.5", True), ("1e5", False), ("1E5", False), ("1." + "0" * 66, False)])
def test_numbers_that_are_not_plain_never_pass_on_the_fast_path(value: str, taken: bool) -> None:
    """An exponent, or more digits than a value may have, goes to the exact path."""
    lines = [line(), line(value=value), line()]
    ends = np.cumsum([len(text) + 1 for text in lines]) - 1
    found = kernels.decode_lines(
        b"\n".join(lines), ends - [len(text) for text in lines], ends, longest=1 << 22, negative=False
    )
    assert found is not None
    records, sure = found
    assert sure.tolist() == [True, taken, True]
    assert records.num_rows == 2 + taken


def test_a_record_that_is_too_long_is_malformed_whoever_stands_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded with spaces, which no other rule forbids: alone and among others, on every path."""
    padded = line().replace(b'"unit"', b" " * MAX_RECORD_BYTES + b'"unit"')
    found = parse_record(padded, Rules())
    assert isinstance(found, Rejected)
    assert [error.code for error in found.errors] == ["malformed"]
    monkeypatch.setattr(ingest.lines, "MAX_RECORD_BYTES", 200)
    text = b"\n".join([line(), line().replace(b'"unit"', b" " * 200 + b'"unit"'), line()])
    ends = np.array([at for at, byte in enumerate(text + b"\n") if byte == ord("\n")])
    starts = np.concatenate(([0], ends[:-1] + 1))
    taken = ingest.lines._in_c(Lines(text, starts, ends), Rules())
    assert taken is not None
    assert taken[1].tolist() == [True, False, True]


WAYS: list[Callable[[dict[str, object]], str]] = [
    json.dumps,
    lambda record: json.dumps(record, separators=(",", ":")),
    lambda record: json.dumps(dict(reversed(record.items()))),
    lambda record: json.dumps({**record, "value": str(record["value"])}),
    lambda record: json.dumps(record, separators=(" , ", "\t: ")).replace("{", "{ ").replace("}", " }"),
    lambda record: json.dumps({"value": record["value"], **record}),
    lambda record: json.dumps(record).replace("{", "{  "),
    lambda record: json.dumps(record)[:-1] + " }",
]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(WAYS) - 1), st.sampled_from(["1", "x", "é", ""])), min_size=1, max_size=60)
)
def test_lines_that_are_written_in_many_ways_are_the_same_records(made: list[tuple[int, str]]) -> None:
    """Another order, other spaces, numbers as text: all of it the fast way, and all else exactly."""
    record = {**{name: GOOD[name] for name in CANONICAL_FIELDS}, "value": 12.5}
    lines = [WAYS[way]({**record, "recordId": f"{at}{text}", "unit": text}) for at, (way, text) in enumerate(made)]
    data = "\n".join(lines).encode()
    assert ndjson_facts(data, Rules(), exact=False) == ndjson_facts(data, Rules(), exact=True)


def test_lines_of_several_ways_do_not_go_the_exact_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of sources that write them differently, one after another, are still decoded together."""
    record = {**{name: GOOD[name] for name in CANONICAL_FIELDS}, "value": 12.5}
    data = "\n".join(WAYS[at % 3]({**record, "recordId": str(at)}) for at in range(3_000)).encode()
    expected = ndjson_facts(data, Rules(), exact=True)

    def parse(data: bytes, rules: Rules) -> None:
        raise AssertionError(f"exactly: {data!r}")

    monkeypatch.setattr(ingest.lines, "parse_record", parse)
    assert ndjson_facts(data, Rules(), exact=False) == expected


@pytest.mark.parametrize(
    "odd",
    [
        [line().replace(b'"r"}', b'"a"b"c"}'), line().replace(b'"d"', b"d")],
        [line().replace(b'"d"', b"d"), line().replace(b'"r"}', b'"a"b"c"}')],
        [line().replace(b'"r"}', b'"}'), line().replace(b'"r"}', b'"r""}')],
        [line().replace(b'"recordId"', b"recordId"), line().replace(b'"s"', b'"s","s"')],
    ],
)
def test_quotes_too_many_in_one_line_and_too_few_in_another(odd: list[bytes]) -> None:
    """Together they have as many as two plain lines."""
    data = b"\n".join([line(recordId="a"), *odd, line(recordId="b")])
    assert ndjson_facts(data, Rules(), exact=False) == ndjson_facts(data, Rules(), exact=True)


@pytest.mark.parametrize("name", CANONICAL_FIELDS)
def test_a_number_in_place_of_text_is_not_text(name: str) -> None:
    """In every line, so that nothing looks odd, and with the value as text, so that the quotes are as many."""
    record = {**GOOD, "value": "12.5", name: 5}
    data = "\n".join(json.dumps(record) for at in range(5)).encode()
    assert ndjson_facts(data, Rules(), exact=False) == ndjson_facts(data, Rules(), exact=True)


def test_spaces_on_both_sides_of_a_number_that_is_not_there() -> None:
    """The one space is not counted as the one before and the one after."""
    spaced = line().replace(b'"value":1,', b'"value": 12.5 ,')
    assert b" 12.5 ," in spaced
    data = b"\n".join([spaced, spaced.replace(b" 12.5 ,", b" ,"), spaced.replace(b" 12.5 ,", b",")])
    assert ndjson_facts(data, Rules(), exact=False) == ndjson_facts(data, Rules(), exact=True)


def mutated(text: bytes, at: int, byte: int) -> bytes:
    """One byte in place of another."""
    return text[: at % len(text)] + bytes([byte]) + text[at % len(text) + 1 :]


@settings(max_examples=600, deadline=None)
@given(
    st.integers(0, len(WAYS) - 1),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from(b'"{}:, \t0159.-+eE\\nx\x00\xff\xc2[]')), max_size=4),
)
def test_a_changed_byte_is_judged_as_the_exact_path_judges_it(way: int, changes: list[tuple[int, int]]) -> None:
    """Among lines that are alike, one with bytes changed in its keys, its values or between them."""
    record = {**{name: GOOD[name] for name in CANONICAL_FIELDS}, "value": 12.5}
    lines = [WAYS[way]({**record, "recordId": str(at)}).encode() for at in range(7)]
    for at, byte in changes:
        lines[3] = mutated(lines[3], at, byte)
    data = b"\n".join(lines)
    assert ndjson_facts(data, Rules(), exact=False) == ndjson_facts(data, Rules(), exact=True)


CSV_HEAD = ",".join(CANONICAL_FIELDS).encode()
CSV_GOOD = b"rec,2024-03-01T12:00:00Z,s,d,positive,1,SEK,r"
CSV_LINES = [CSV_GOOD, CSV_GOOD, CSV_GOOD, b'"rec","2024-03-01T12:00:00Z","s","d","positive","1","SEK","r"', b"", b"\r", b" ",
             CSV_GOOD + b"\r", CSV_GOOD + b",x", CSV_GOOD[:-2], CSV_GOOD[:-1], CSV_GOOD[:-1] + b'"a,b"',
             CSV_GOOD[:-1] + b'"a""b"', CSV_GOOD[:-1] + b'"a\nb"', CSV_GOOD[:-1] + b'"a', CSV_GOOD[:-1] + b'a"b',
             CSV_GOOD[:-1] + b'"a"b', CSV_GOOD[:-1] + b'""', CSV_GOOD[:-1] + b"\xff", CSV_GOOD[:-1] + b"\x00", b'"', b'""',
             CSV_GOOD[:-1] + "é".encode(), CSV_GOOD[:-1] + b"a\rb", CSV_GOOD.replace(b",1,", b",1e31,"), b'"\n"\n"',
             CSV_GOOD.replace(b",1,", b",+1,"), CSV_GOOD.replace(b",1,", b", 1,"), CSV_GOOD.replace(b",1,", b",-1,"), b",,,,,,,",
             CSV_GOOD.replace(b",1,", b",1.0000000000,"), CSV_GOOD.replace(b"SEK", b"x" * 33), b'"a\n,"b', b"NULL,,NA"]  # fmt: skip


def csv_facts(data: bytes, found: Rules, *, exact: bool, chunk_bytes: int = 1 << 20, rows: int = 1 << 15) -> object:
    stream = io.BytesIO(data)
    return facts(csv_chunks(stream, found, Position(), chunk_bytes=chunk_bytes, chunk_rows=rows, exact=exact))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(CSV_LINES), max_size=10), st.sampled_from([b"\n", b"\r\n"]), rules)
def test_the_fast_path_of_csv_equals_the_exact_one(lines: list[bytes], end: bytes, found: Rules) -> None:
    """Whatever the lines and quotes, both paths give the same."""
    data = end.join([CSV_HEAD, *lines])
    assert csv_facts(data, found, exact=False) == csv_facts(data, found, exact=True)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(CSV_LINES), max_size=8), st.integers(1, 200), st.integers(1, 4))
def test_csv_does_not_depend_on_where_it_is_cut(lines: list[bytes], chunk_bytes: int, rows: int) -> None:
    """Also where a chunk ends inside of quotes or between CR and LF."""
    data = b"\n".join([CSV_HEAD, *lines])
    small = csv_facts(data, Rules(), exact=False, chunk_bytes=chunk_bytes, rows=rows)
    assert small == csv_facts(data, Rules(), exact=True)


@pytest.mark.parametrize("bad", CSV_LINES)
def test_each_nasty_csv_line_among_many_ordinary_ones_is_exact(bad: bytes) -> None:
    """One odd line is judged alone; bad quoting costs its own line only."""
    data = b"\n".join([CSV_HEAD, *[CSV_GOOD] * 600, bad, CSV_GOOD])
    fast = csv_facts(data, Rules(), exact=False)
    assert fast == csv_facts(data, Rules(), exact=True)
    assert isinstance(fast, list)
    assert len(fast) >= 601


def test_lines_are_counted_through_quoted_newlines() -> None:
    """The line of a record is where it begins, also behind a record of several lines."""
    head = CSV_HEAD + b",note\n"
    data = head + CSV_GOOD + b',"a\n\nb"\n\n' + CSV_GOOD + b",x\n" + CSV_GOOD + b'"bad,\n' + CSV_GOOD + b",y"
    found = csv_facts(data, Rules(unknown_fields="ignore"), exact=False)
    assert isinstance(found, list)
    assert [(row[1], len(row)) for row in found] == [(2, 3), (6, 3), (7, 4), (8, 3)]


@pytest.mark.parametrize(
    ("header", "word"),
    [(CSV_HEAD + b",extra", "extra"), (CSV_HEAD + b",time", "twice"), (CSV_HEAD[:-10], "reference"), (b'"a', "quotes")],
)
def test_a_wrong_csv_header_fails_the_batch(header: bytes, word: str) -> None:
    """An unknown, missing or doubled column is told by name."""
    with pytest.raises((InvalidSchemaError, UndecodableError), match=word):
        decode_body(header + b"\n" + CSV_GOOD, Format.CSV, Compression.NONE, Rules(), Limits())


def test_a_line_without_end_is_one_rejected_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded by the largest record: what is longer is malformed, and reading goes on behind it."""
    import ingest.ndjson as ndjson

    monkeypatch.setattr(ndjson, "MAX_RECORD_BYTES", 500)
    data = line() + b"\n" + b"x" * 3_000 + b"\n" + line()
    found = ndjson_facts(data, Rules(), exact=False, chunk_bytes=300)
    assert isinstance(found, list)
    assert [(row[1], len(row)) for row in found] == [(1, 3), (2, 4), (3, 3)]


def test_the_original_of_a_reject_is_the_line_as_received() -> None:
    """Dead letters and conflicts can show what was sent, to the byte."""
    (chunk,) = decode_body(b"\n oops \r\n" + line(), Format.NDJSON, Compression.NONE, Rules(), Limits())
    assert chunk.rejects[0].original == b" oops "
    assert chunk.locate(0) == (3, line())
    assert as_csv(sample(1))

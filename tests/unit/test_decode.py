"""The front of the decoders: every format and compression gives the same, can be gone on with, and fails cleanly."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard

from ingest.batch import Record, Reject
from ingest.decode import Limits, Rules, decode_body, decode_file, decode_single
from ingest.formats import Compression, Format
from ingest.record import MAX_RECORD_BYTES
from store.errors import TooLargeError, UndecodableError
from tests.unit.decoding import ENCODERS, compressed, facts, line, sample

RULES = Rules()
NONE = Compression.NONE
SMALL = Limits(chunk_bytes=2_000, chunk_rows=7)
TEXTS = (Format.NDJSON, Format.CSV, Format.JSON)
PLAIN = facts(decode_body(ENCODERS[Format.NDJSON](sample(150)), Format.NDJSON, NONE, RULES, Limits()), lines=False)


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("fmt", Format)
def test_the_same_records_give_the_same_outcomes_in_every_format(
    fmt: Format, compression: Compression, tmp_path: Path
) -> None:
    """Records, indices and error codes do not depend on how a batch is written down."""
    data = compressed(ENCODERS[fmt](sample(150)), compression)
    assert facts(decode_body(data, fmt, compression, RULES, SMALL), lines=False) == PLAIN
    path = tmp_path / "batch"
    path.write_bytes(data)
    assert facts(decode_file(path, fmt, compression, RULES, SMALL), lines=False) == PLAIN


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("fmt", Format)
def test_a_file_goes_on_from_the_end_of_any_chunk(fmt: Format, compression: Compression, tmp_path: Path) -> None:
    """A run that starts where a chunk ended gives what the whole run gave from there, lines included."""
    path = tmp_path / "batch"
    path.write_bytes(compressed(b"" + ENCODERS[fmt](sample(60)), compression))
    chunks = list(decode_file(path, fmt, compression, RULES, SMALL))
    assert len(chunks) > 1
    whole = facts(chunks)
    other = Limits(chunk_bytes=900, chunk_rows=5)
    for chunk in chunks:
        assert facts(decode_file(path, fmt, compression, RULES, other, chunk.end)) == whole[chunk.end.index :]


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])
@pytest.mark.parametrize("fmt", Format)
def test_a_cut_compressed_stream_is_an_error(fmt: Format, compression: Compression, tmp_path: Path) -> None:
    """A truncated gzip or zstd stream never passes as a shorter batch, wherever it is cut."""
    data = compressed(ENCODERS[fmt](sample(40)), compression)
    first = len(compressed(ENCODERS[fmt](sample(40))[: len(ENCODERS[fmt](sample(40))) // 2], NONE))
    for cut in {0, 1, 5, len(data) // 3, len(data) - 1, len(data) - 5} - {first}:
        with pytest.raises(UndecodableError):
            decode_body(data[:cut], fmt, compression, RULES, Limits())
        path = tmp_path / "cut"
        path.write_bytes(data[:cut])
        with pytest.raises(UndecodableError):
            list(decode_file(path, fmt, compression, RULES, SMALL))


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])
def test_bytes_after_a_compressed_stream_are_an_error(compression: Compression) -> None:
    """Rubbish behind the last member is not ignored."""
    with pytest.raises(UndecodableError):
        decode_body(compressed(line(), compression) + b"rubbish", Format.NDJSON, compression, RULES, Limits())


@pytest.mark.parametrize("fmt", Format)
def test_an_empty_batch_has_no_chunks(fmt: Format, tmp_path: Path) -> None:
    """No bytes at all, and no records in a whole document, are a batch of none."""
    path = tmp_path / "empty"
    path.write_bytes(b"")
    assert list(decode_file(path, fmt, NONE, RULES, Limits())) == []
    assert decode_body(b"", fmt, NONE, RULES, Limits()) == []
    assert sum(chunk.received for chunk in decode_body(ENCODERS[fmt]([]), fmt, NONE, RULES, Limits())) == 0


@pytest.mark.parametrize("make", [gzip.compress, zstandard.compress])
def test_a_decompression_bomb_stops_at_the_limit(make: object) -> None:
    """A small body that grows without end is refused when it passes the limit, not when it is whole."""
    body = make(b"\n" * 60_000_000)  # type: ignore[operator]
    compression = Compression.GZIP if make is gzip.compress else Compression.ZSTD
    with pytest.raises(TooLargeError) as caught:
        decode_body(body, Format.NDJSON, compression, RULES, Limits(max_decompressed_bytes=1_000_000))
    assert caught.value.code == "too_large_decompressed"
    with pytest.raises(TooLargeError):
        decode_body(body, Format.NDJSON, compression, RULES, Limits(max_ratio=100))


def test_a_body_of_very_many_rejects_is_refused() -> None:
    """Each reject is held in memory, so that a body may only have a bounded number of them."""
    with pytest.raises(TooLargeError):
        decode_body(b"1\n" * 200, Format.NDJSON, NONE, RULES, Limits(max_rejects=100, chunk_rows=10))


@pytest.mark.parametrize("fmt", Format)
def test_damaged_bytes_never_raise_anything_else(fmt: Format) -> None:
    """A flipped or cut byte gives outcomes or an InputError, never another exception."""
    from store.errors import InputError

    good = ENCODERS[fmt](sample(12))
    for at in range(0, len(good), max(1, len(good) // 150)):
        for bad in (good[:at], good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :]):
            try:
                facts(decode_body(bad, fmt, NONE, RULES, Limits()))
            except InputError as error:
                assert str(error)


def test_a_single_record_is_told_from_a_batch() -> None:
    """An object is one record or one reject, an array is a batch, and anything else cannot be decoded."""
    assert isinstance(decode_single(line(), RULES), Record)
    assert isinstance(decode_single(b" \n" + line() + b"\n", RULES), Record)
    rejected = decode_single(line(unit=""), RULES)
    assert isinstance(rejected, Reject)
    assert (rejected.record_id, [error.code for error in rejected.errors]) == ("rec-1", ["empty"])
    assert decode_single(b" [1]", RULES) is None
    for body in (b"", b"1", b'"x"', b"null", b"{", b'{"a":1,}', b"nope", b'{"a":"\xff"}', b'{"a":' + b"[" * 200_000):
        with pytest.raises(UndecodableError):
            decode_single(body, RULES)


@pytest.mark.parametrize(
    "body",
    [b"[1,2", b"[1 2]", b"[1,]", b"[,1]", b"[1]x", b"{}{}", b'{"a":1} {"b":2}', b"5", b"nul", b"[nul]", b'["\\q"]',
     b'["\xff"]', b"[" * 100_000, b"[NaN]", b"[01]", b"]", b"[1]]"],
)  # fmt: skip
def test_broken_json_documents_cannot_be_decoded(body: bytes) -> None:
    """A document that is not JSON, or has no records on top, is an error with a position."""
    with pytest.raises(UndecodableError):
        decode_body(body, Format.JSON, NONE, RULES, Limits())


def test_json_elements_that_are_no_records_are_rejected() -> None:
    """Valid JSON of another kind is a malformed record among good ones, however deep or odd."""
    body = b"[1, null ,\n" + line() + b', "},{", [[{}],{}], {"recordId":"a},{b"}, ' + line(recordId="},{") + b"\n]\n"
    for limits in (Limits(), Limits(chunk_bytes=3, chunk_rows=1), Limits(chunk_bytes=64, chunk_rows=2)):
        found = facts(decode_body(body, Format.JSON, NONE, RULES, limits))
        assert [len(row) == 3 for row in found] == [False, False, True, False, False, False, True]
        assert found[0][3] == ((None, "malformed"),)


def test_a_typo_in_a_long_document_is_told_where_it_stands() -> None:
    """As in a short one, and not as a record that is too long; what is too long is told as that."""
    good = line()
    bad = good.replace(b'"unit":"', b'"unit":')
    assert bad != good
    long = [good] * (2 * MAX_RECORD_BYTES // len(good) + 100)
    told = []
    for rest in ([good], long):
        with pytest.raises(UndecodableError, match="Expecting value") as caught:
            decode_body(b"[" + b",".join([good, bad, *rest]) + b"]", Format.JSON, NONE, RULES, Limits())
        told.append((str(caught.value), caught.value.position))
    assert told[0] == told[1]
    huge = b'"' + b"x" * 3 * MAX_RECORD_BYTES + b'"'
    with pytest.raises(UndecodableError, match="an element of more than"):
        decode_body(b"[" + good + b"," + huge + b"]", Format.JSON, NONE, RULES, Limits())


def test_chunks_before_a_break_in_a_file_are_given(tmp_path: Path) -> None:
    """A JSON file that breaks in the middle first gives what stands before."""
    path = tmp_path / "a.json"
    path.write_bytes(ENCODERS[Format.JSON](sample(50))[:-1] + b",{]")
    seen = 0
    with pytest.raises(UndecodableError) as caught:
        for chunk in decode_file(path, Format.JSON, NONE, RULES, SMALL):
            seen += chunk.received
    assert seen == 50
    assert caught.value.position is not None


@pytest.mark.parametrize("fmt", TEXTS)
def test_a_byte_order_mark_at_the_start_is_dropped(fmt: Format) -> None:
    """A BOM before text is no part of it."""
    data = b"\xef\xbb\xbf" + ENCODERS[fmt](sample(20))
    for limits in (Limits(), Limits(chunk_bytes=2)):
        assert facts(decode_body(data, fmt, NONE, RULES, limits), lines=False) == PLAIN[:20]

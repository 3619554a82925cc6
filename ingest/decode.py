"""The front of the decoders: a file, a body or a single record, to chunks of validated columns."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ingest.apart import batches_apart, body_file
from ingest.batch import Chunk, Record, Reject
from ingest.columnar import columnar_chunks
from ingest.csvs import csv_chunks
from ingest.formats import Compression, Format
from ingest.jsons import json_chunks
from ingest.ndjson import BOM, ndjson_chunks
from ingest.record import Rules, parse_record
from ingest.streams import Decompressed, Limits, skip, too_many_records
from store.errors import TooLargeError, UndecodableError
from store.journal import Position

__all__ = ["Limits", "Rules", "decode_body", "decode_file", "decode_single", "decompressed"]

_BODY_REJECTS = 500_000
"""Rejected records that one body may have: each is held until the commit, and costs about a KiB."""

_SPOOL_BYTES = 16 << 20
_BEGIN = Position()


def decode_file(
    path: Path, fmt: Format, compression: Compression, rules: Rules, limits: Limits, start: Position = _BEGIN
) -> Iterator[Chunk]:
    """The chunks of a file from `start` on, in bounded memory.

    A run from the `end` of any chunk gives the same records, indices and lines as one from the beginning. Where the
    file breaks in the middle, the chunks before are given first and then `UndecodableError` is raised.
    """
    if fmt in (Format.PARQUET, Format.ARROW_STREAM, Format.ARROW_FILE):
        if compression is Compression.NONE:
            with path.open("rb") as source:
                yield from _columnar(source, fmt, rules, limits, start)
            return
        with path.open("rb") as raw, tempfile.TemporaryFile() as spool:
            stream = Decompressed(raw, compression, limits)
            while block := stream.read(_SPOOL_BYTES):
                spool.write(block)
            spool.flush()
            yield from _columnar(spool, fmt, rules, limits, start)
        return
    with path.open("rb") as raw:
        stream = Decompressed(raw, compression, limits)
        if fmt is Format.NDJSON and start.offset:
            if compression is Compression.NONE:
                raw.seek(start.offset)
            else:
                skip(stream, start.offset, limits.chunk_bytes)
        yield from _texts(stream, fmt, rules, limits, start)


def decompressed(body: bytes, compression: Compression, limits: Limits) -> bytes:
    """A body without its compression, within the limits."""
    if compression is not Compression.NONE:
        return Decompressed(io.BytesIO(body), compression, limits).read()
    most = limits.max_decompressed_bytes
    if most is not None and len(body) > most:
        raise TooLargeError(
            f"The batch has {len(body)} bytes; the limit is {most} (ingest.max_decompressed_bytes).",
            code="too_large_decompressed",
        )
    return body


def decode_body(body: bytes, fmt: Format, compression: Compression, rules: Rules, limits: Limits) -> list[Chunk]:
    """All chunks of a body: it is decoded whole, or an error is raised."""
    body = decompressed(body, compression, limits)
    if fmt in (Format.PARQUET, Format.ARROW_STREAM, Format.ARROW_FILE):
        found = _body_columnar(body, fmt, rules, limits)
    else:
        found = _texts(io.BytesIO(body), fmt, rules, limits, Position())
    chunks: list[Chunk] = []
    rejects = records = 0
    most_rejects = _BODY_REJECTS if limits.max_rejects is None else limits.max_rejects
    for chunk in found:
        chunks.append(chunk)
        rejects += len(chunk.rejects)
        records += chunk.received
        if limits.max_records is not None and records > limits.max_records:
            raise too_many_records(limits.max_records)
        if rejects > most_rejects:
            raise TooLargeError(
                f"The batch has more than {most_rejects} records that break a rule; send less at once.",
                code="too_many_rejected",
            )
    return chunks


def decode_single(body: bytes, rules: Rules) -> Record | Reject | None:
    """The one record of an `application/json` body; None where it is an array, which is a batch."""
    found = parse_record(body, rules)
    if isinstance(found, Record):
        return found
    text = body.removeprefix(BOM).strip(b" \t\r\n")
    if text[:1] == b"[":
        return None
    if text[:1] != b"{":
        raise UndecodableError("The body is not a JSON object or an array of them.", position="byte 0")
    if len(text) != len(body):
        found = parse_record(text, rules)
        if isinstance(found, Record):
            return found
    if found.broken:
        raise UndecodableError(f"The body cannot be decoded. {found.errors[0].message}", code=found.broken_code)
    return Reject(0, None, found.record_id, found.errors, body, found.source_id)


def _texts(
    stream: Decompressed | io.BytesIO, fmt: Format, rules: Rules, limits: Limits, start: Position
) -> Iterator[Chunk]:
    chunks = {Format.NDJSON: ndjson_chunks, Format.CSV: csv_chunks, Format.JSON: json_chunks}[fmt]
    return chunks(stream, rules, start, chunk_bytes=limits.chunk_bytes, chunk_rows=limits.chunk_rows)


def _columnar(source: BinaryIO, fmt: Format, rules: Rules, limits: Limits, start: Position) -> Iterator[Chunk]:
    return columnar_chunks(batches_apart(source, fmt, rules, limits, start.offset), rules, start)


def _body_columnar(body: bytes, fmt: Format, rules: Rules, limits: Limits) -> Iterator[Chunk]:
    with body_file(body) as source:
        yield from _columnar(source, fmt, rules, limits, _BEGIN)

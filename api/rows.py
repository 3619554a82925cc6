"""Aggregations as flat rows, streamed: NDJSON, CSV, Arrow and Parquet.

Every form has the columns of `store.queries.RECORDS` or `TOTALS`, and the rows in the order of the JSON answer.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from api.questions import Answer, Question, cursor_of
from store.canonical import render_csv, render_objects, text_of
from store.engine import Engine, Stop
from store.queries import RECORDS, TOTALS, as_of, records, totals_in_batches
from store.snapshot import Snapshot

__all__ = ["ARROW", "CSV", "NDJSON", "PARQUET", "Form", "flat_answer"]

_GROUP_ROWS = 65_536
_GROUP_BYTES = 16 << 20
"""A row group of Parquet is written when it has so many rows or bytes: that is what an open answer holds of it."""


@dataclass(frozen=True)
class Form:
    """A way to write rows: `write` takes their schema and the rows."""

    ending: str
    write: Callable[[pa.Schema, Iterator[pa.RecordBatch]], Iterator[bytes]]


@contextlib.contextmanager
def flat_answer(
    engine: Engine, snapshot: Snapshot, question: Question, form: Form, stop: Stop | None = None
) -> Iterator[Answer]:
    """The answer as rows. Its queries are over when the context begins: what is wrong raises there.

    A page (`limit`) is of records; totals are never cut into pages.
    """
    newest = as_of(snapshot, question.filters)
    filters = replace(question.filters, as_of=newest)
    if question.include == "totals":
        with totals_in_batches(engine, snapshot, replace(filters, after=None), stop, question.max_rows) as batches:
            yield Answer(newest, None, form.write(TOTALS, batches))
        return
    with records(engine, snapshot, filters, question.limit, stop, question.max_rows) as page:
        yield Answer(newest, cursor_of(filters, newest, page.end), form.write(RECORDS, page.batches))


def _ndjson(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
    for batch in batches:
        yield text_of(render_objects(batch, "\n"))


def _csv(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
    """RFC 4180, but for the ends of its lines, which are those of every other text here: a line feed."""
    yield f"{','.join(schema.names)}\n".encode()
    for batch in batches:
        yield text_of(render_csv(batch))


def _arrow(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
    sink = _Sink()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            yield sink.taken()
    yield sink.taken()


def _parquet(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
    sink = _Sink()
    repeated = [name for name in schema.names if name in _REPEATED]
    waiting: list[pa.RecordBatch] = []  # of one row group; empty while the client reads
    rows = size = 0
    with pq.ParquetWriter(sink, schema, compression="zstd", compression_level=1, use_dictionary=repeated) as writer:
        for batch in batches:
            waiting.append(batch)
            rows, size = rows + batch.num_rows, size + batch.nbytes
            if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting), row_group_size=rows)
                waiting.clear()
                rows = size = 0
                yield sink.taken()
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting), row_group_size=rows)
    yield sink.taken()


_REPEATED = ("destinationId", "sourceId", "type", "unit", "reference")


class _Sink(io.RawIOBase):
    """A file that is only written: what was written since the last time is taken out of it."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._size += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._size

    def taken(self) -> bytes:
        """What was written since the last time."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


NDJSON = Form("ndjson", _ndjson)
CSV = Form("csv", _csv)
ARROW = Form("arrows", _arrow)
PARQUET = Form("parquet", _parquet)

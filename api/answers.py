"""Aggregations as JSON, streamed: one pass over ordered records beside the totals of their groups."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from api.questions import Answer, Question, cursor_of
from store.canonical import render_decimals, render_objects, text_of
from store.engine import Engine, Stop
from store.queries import TOTALS, as_of, by_unit, records, totals_in_batches
from store.snapshot import Snapshot

__all__ = ["json_answer"]


class Group(NamedTuple):
    """A destination: how many records, the net where there is one unit, and the JSON objects of the totals."""

    destination: str
    records: int
    net: str | None
    totals: str


@contextlib.contextmanager
def json_answer(engine: Engine, snapshot: Snapshot, question: Question, stop: Stop | None = None) -> Iterator[Answer]:
    """The answer to `GET /records/aggregations`. Its queries are over when the context begins: errors raise there.

    There are two queries, one for the groups and one for their records, both in the order of destinations, and they are
    read side by side: so neither answer is ever held as a whole.
    """
    newest = as_of(snapshot, question.filters)
    filters = replace(question.filters, as_of=newest)
    only_totals = question.include == "totals"
    overall = _Overall()
    with contextlib.ExitStack() as stack:
        sums = stack.enter_context(
            totals_in_batches(
                engine, snapshot, replace(filters, after=None), stop, question.max_rows if only_totals else 0
            )
        )
        groups = _groups(sums, overall)
        cursor = None
        if only_totals:
            inner = _without_records(groups)
        else:
            page = stack.enter_context(records(engine, snapshot, filters, question.limit, stop, question.max_rows))
            cursor = cursor_of(filters, newest, page.end)
            inner = _with_records(groups, page.batches)
        yield Answer(newest, cursor, _whole(newest, inner, groups, overall, cursor))


def _whole(
    newest: int, inner: Iterator[bytes], groups: Iterator[Group], overall: _Overall, cursor: str | None
) -> Iterator[bytes]:
    yield f'{{"asOf":{newest},"groups":['.encode()
    yield from inner
    for _ in groups:  # those that have no records on this page count in the totals of all
        pass
    totals = ",".join(_objects(overall.sums))
    yield f'],"totals":[{totals}],"nextCursor":{msgspec.json.encode(cursor).decode()}}}'.encode()


class _Overall:
    """The totals of all destinations, added up as their groups go by."""

    def __init__(self) -> None:
        self.sums = by_unit(TOTALS.empty_table())

    def add(self, sums: pa.RecordBatch) -> None:
        fresh = by_unit(pa.Table.from_batches([sums]))
        self.sums = by_unit(pa.concat_tables([self.sums, fresh]))


def _without_records(groups: Iterator[Group]) -> Iterator[bytes]:
    separator = ""
    while some := [f"{_head(group)}}}" for group in itertools.islice(groups, 1_000)]:
        yield (separator + ",".join(some)).encode()
        separator = ","


def _with_records(groups: Iterator[Group], batches: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
    """The groups with their records."""
    current: str | None = None
    for batch in batches:
        pieces: list[bytes] = []
        for destination, texts in _runs(batch):
            if destination == current:
                pieces.append(b",")
            else:
                pieces.append(b"" if current is None else b"]},")
                group = next(group for group in groups if group.destination == destination)
                pieces.append(f'{_head(group)},"records":['.encode())
                current = destination
            pieces.append(texts)
        yield b"".join(pieces)
    if current is not None:
        yield b"]}"


def _runs(rows: pa.RecordBatch) -> Iterator[tuple[str, bytes]]:
    """(destinationId, JSON of its records, comma-separated) for each run of rows with the same one."""
    texts = render_objects(rows, ",")
    destinations = rows.column("destinationId")
    codes = destinations.dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]]).tolist()
    for begin, end in zip(starts, [*starts[1:], len(texts)], strict=True):
        yield destinations[begin].as_py(), text_of(texts, begin, end)[:-1]


def _head(group: Group) -> str:
    """A group up to its records, without a closing brace."""
    name = msgspec.json.encode(group.destination).decode()
    net = "null" if group.net is None else f'"{group.net}"'
    return f'{{"destinationId":{name},"count":{group.records},"total":{net},"totals":[{group.totals}]'


def _groups(batches: Iterator[pa.RecordBatch], overall: _Overall) -> Iterator[Group]:
    """Rows of totals, put together by destination; a destination may go on in the next batch."""
    group: Group | None = None
    for batch in batches:
        overall.add(batch)
        columns = [batch.column("destinationId"), batch.column("count"), render_decimals(batch.column("net"))]
        rows = zip(*(column.to_pylist() for column in columns), _objects(batch), strict=True)
        for destination, count, net, text in rows:
            if group is not None and group.destination == destination:
                group = Group(destination, group.records + count, None, f"{group.totals},{text}")
            else:
                if group is not None:
                    yield group
                group = Group(destination, count, net, text)
    if group is not None:
        yield group


def _objects(sums: pa.Table | pa.RecordBatch) -> list[str]:
    """Each row of totals as a JSON object, without its destination."""
    return list(render_objects(sums.select(TOTALS.names[1:])).to_pylist())

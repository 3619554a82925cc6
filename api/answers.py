"""Aggregations as JSON, streamed: one pass over ordered records beside the totals of their groups."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store.canonical import json_strings, render_decimals, render_integers, render_records
from store.engine import Engine, Stop
from store.errors import QueryError
from store.queries import TOTALS, Filters, as_of, by_unit, records, totals_in_batches
from store.snapshot import Snapshot

__all__ = ["aggregation", "continued"]


class Group(NamedTuple):
    """A destination: how many records, the net where there is one unit, and the JSON objects of the totals."""

    destination: str
    records: int
    net: str | None
    totals: str


def aggregation(
    engine: Engine,
    snapshot: Snapshot,
    filters: Filters,
    include: Literal["records", "totals"] = "records",
    limit: int | None = None,
    stop: Stop | None = None,
) -> Iterator[bytes]:
    """The answer to `GET /records/aggregations` in pieces. What is wrong with the question raises before the first.

    There are two queries, one for the groups and one for their records, both in the order of destinations, and they are
    read side by side: so neither answer is ever held as a whole.
    """
    newest = as_of(snapshot, filters)
    filters = replace(filters, as_of=newest)
    overall = _Overall()
    cursor = None
    with totals_in_batches(engine, snapshot, replace(filters, after=None), stop) as sums:
        groups = _groups(sums, overall)
        yield f'{{"asOf":{newest},"groups":['.encode()
        if include == "totals":
            yield from _without_records(groups)
        else:
            with records(engine, snapshot, filters, None if limit is None else limit + 1, stop) as batches:
                cursor = yield from _with_records(groups, batches, limit, filters)
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


def continued(filters: Filters, cursor: str | None) -> Filters:
    """The filters of the next page. A cursor belongs to the filters that it was given for."""
    if cursor is None:
        return filters
    try:
        newest, told, *place = msgspec.json.decode(base64.urlsafe_b64decode(cursor.encode("ascii")), type=_CURSOR)
    except (ValueError, msgspec.MsgspecError):
        raise QueryError("cursor is not one that this service gave", parameter="cursor") from None
    if told != _digest(filters) or filters.as_of not in (None, newest):
        raise QueryError("cursor was given for other filters: send those again with it", parameter="cursor")
    return replace(filters, as_of=newest, after=tuple(place))


_CURSOR = tuple[int, str, str, int, int]


def _cursor(filters: Filters, destination: str, time_us: int, seq: int) -> str:
    value = (filters.as_of, _digest(filters), destination, time_us, seq)
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode("ascii")


def _digest(filters: Filters) -> str:
    """Of everything that must stay the same from page to page."""
    told = msgspec.json.encode(replace(filters, as_of=None, after=None))
    return hashlib.blake2b(told, digest_size=8).hexdigest()


def _without_records(groups: Iterator[Group]) -> Iterator[bytes]:
    separator = ""
    while some := [f"{_head(group)}}}" for group in itertools.islice(groups, 1_000)]:
        yield (separator + ",".join(some)).encode()
        separator = ","


def _with_records(
    groups: Iterator[Group], batches: Iterator[pa.RecordBatch], limit: int | None, filters: Filters
) -> Generator[bytes, None, str | None]:
    """The groups with their records; returns the cursor of the next page, if there is one."""
    current: str | None = None
    left = limit
    last: tuple[str, int, int] | None = None
    cursor = None
    for batch in batches:
        rows = batch
        if left is not None:
            if left < batch.num_rows:
                cursor = _cursor(filters, *(_place(rows, left - 1) if left else last or ("", 0, 0)))
            rows = batch.slice(0, left)
            left -= rows.num_rows
        if not rows.num_rows:
            break
        pieces: list[str] = []
        for destination, texts in _runs(rows):
            if destination == current:
                pieces.append(",")
            else:
                pieces.append("" if current is None else "]},")
                group = next(group for group in groups if group.destination == destination)
                pieces.append(f'{_head(group)},"records":[')
                current = destination
            pieces.append(texts)
        last = _place(rows, rows.num_rows - 1)
        yield "".join(pieces).encode()
        if cursor is not None:
            break
    if current is not None:
        yield b"]}"
    return cursor


def _place(rows: pa.RecordBatch, row: int) -> tuple[str, int, int]:
    """Where a row stands in the order."""
    time = rows.column("time")[row].cast(pa.int64()).as_py()
    return rows.column("destinationId")[row].as_py(), time, rows.column("seq")[row].as_py()


def _runs(rows: pa.RecordBatch) -> Iterator[tuple[str, str]]:
    """(destinationId, JSON of its records, comma-separated) for each run of rows with the same one."""
    texts = pc.binary_join_element_wise(
        '{"seq":',
        render_integers(rows.column("seq")),
        ",",
        pc.binary_replace_slice(render_records(rows), 0, 1, ""),
        "",
    ).to_pylist()
    destinations = rows.column("destinationId")
    codes = destinations.dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]]).tolist()
    for begin, end in zip(starts, [*starts[1:], len(texts)], strict=True):
        yield destinations[begin].as_py(), ",".join(texts[begin:end])


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
    """Each row of totals as a JSON object."""
    texts = pc.binary_join_element_wise(
        '{"unit":"', json_strings(sums.column("unit")),
        '","count":', render_integers(sums.column("count")),
        ',"positive":"', render_decimals(sums.column("positive")),
        '","negative":"', render_decimals(sums.column("negative")),
        '","net":"', render_decimals(sums.column("net")), '"}', "",
    )  # fmt: skip
    return list(texts.to_pylist())

"""Aggregations as JSON, streamed: one pass over ordered records beside the totals of their groups."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store.canonical import json_strings, render_decimals, render_records
from store.engine import Engine
from store.errors import QueryError
from store.queries import Filters, as_of, by_unit, records, totals
from store.snapshot import Snapshot

__all__ = ["aggregation", "continued"]

Totals = dict[str, tuple[int, str | None, str]]
"""By destinationId: count, the net where there is one unit, and the JSON of the totals."""


def aggregation(
    engine: Engine,
    snapshot: Snapshot,
    filters: Filters,
    include: Literal["records", "totals"] = "records",
    limit: int | None = None,
) -> Iterator[bytes]:
    """The answer to `GET /records/aggregations` in pieces. What is wrong with the question raises before the first."""
    newest = as_of(snapshot, filters)
    filters = replace(filters, as_of=newest)
    sums = totals(engine, snapshot, replace(filters, after=None))
    groups = _groups(sums)
    overall = _objects(by_unit(sums))
    yield f'{{"asOf":{newest},"groups":['.encode()
    cursor = None
    if include == "totals":
        yield from _without_records(groups)
    else:
        with records(engine, snapshot, filters, None if limit is None else limit + 1) as batches:
            cursor = yield from _with_records(groups, batches, limit, filters)
    yield f'],"totals":[{",".join(overall)}],"nextCursor":{msgspec.json.encode(cursor).decode()}}}'.encode()


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


def _without_records(groups: Totals) -> Iterator[bytes]:
    pieces = [f"{_head(destination, group)}}}" for destination, group in groups.items()]
    for begin in range(0, len(pieces), 1_000):
        yield ("," if begin else "").encode() + ",".join(pieces[begin : begin + 1_000]).encode()


def _with_records(
    groups: Totals, batches: Iterator[pa.RecordBatch], limit: int | None, filters: Filters
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
                pieces.append(f'{_head(destination, groups[destination])},"records":[')
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
        rows.column("seq").cast(pa.string()),
        ",",
        pc.binary_replace_slice(render_records(rows), 0, 1, ""),
        "",
    ).to_pylist()
    destinations = rows.column("destinationId")
    codes = destinations.dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]]).tolist()
    for begin, end in zip(starts, [*starts[1:], len(texts)], strict=True):
        yield destinations[begin].as_py(), ",".join(texts[begin:end])


def _head(destination: str, group: tuple[int, str | None, str]) -> str:
    """A group up to its records, without a closing brace."""
    count, total, objects = group
    name = msgspec.json.encode(destination).decode()
    net = "null" if total is None else f'"{total}"'
    return f'{{"destinationId":{name},"count":{count},"total":{net},"totals":[{objects}]'


def _groups(sums: pa.Table) -> Totals:
    objects = _objects(sums)
    nets = render_decimals(sums.column("net")).to_pylist() if sums.num_rows else []
    groups: Totals = {}
    destinations, counts = sums.column("destinationId").to_pylist(), sums.column("count").to_pylist()
    for destination, count, net, text in zip(destinations, counts, nets, objects, strict=True):
        before = groups.get(destination)
        if before is None:
            groups[destination] = (count, net, text)
        else:
            groups[destination] = (before[0] + count, None, f"{before[2]},{text}")
    return groups


def _objects(sums: pa.Table) -> list[str]:
    """Each row of totals as a JSON object."""
    if not sums.num_rows:
        return []
    texts: Any = pc.binary_join_element_wise(
        '{"unit":"', json_strings(sums.column("unit")),
        '","count":', sums.column("count").combine_chunks().cast(pa.string()),
        ',"positive":"', render_decimals(sums.column("positive")), '","negative":"',
        render_decimals(sums.column("negative")), '","net":"', render_decimals(sums.column("net")), '"}', "",
    )  # fmt: skip
    return list(texts.to_pylist())

"""Rollups: what was stored in each hour, by destination and unit, so that totals need not read the records.

A rollup stands for all flushed records of a range of seqs; those of a store cover its flushed seqs without a gap or an
overlap. It is an uncompressed Arrow IPC file that is mapped, sorted by hour, destinationId and unit (by code point).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store.arrays import I64
from store.codes import changes, folded, numbers, order_of, ranks
from store.ranges import TIER_RUNS
from store.schema import SCALE
from store.sums import from_limbs, group_sums, limbs
from store.whole import whole

__all__ = [
    "HOUR_US",
    "ROLLUP_SCHEMA",
    "Rollup",
    "adjacent_to_merge",
    "covering",
    "map_rollup",
    "merged",
    "of_records",
    "pages",
]

HOUR_US = 3_600_000_000
_PAGE_ROWS = 1 << 17
_MERGED_ROWS = 1 << 18
"""Rows that are added up at once, unless a single hour has more."""

_DECIMAL = pa.decimal128(38, SCALE)

ROLLUP_SCHEMA = pa.schema(
    [
        ("hour", pa.int64()),
        ("destinationId", pa.string()),
        ("unit", pa.string()),
        ("positives", pa.int64()),
        ("negatives", pa.int64()),
        ("positive", _DECIMAL),
        ("negative", _DECIMAL),
    ]
)
"""`hour` counts from the epoch; `positives` and `negatives` count records, `positive` and `negative` sum values."""


class Rollup:
    """A rollup of the records with `min_seq <= seq <= max_seq`; `name` is relative to the data directory."""

    def __init__(self, pages: Sequence[pa.RecordBatch], name: str, min_seq: int, max_seq: int) -> None:
        self.name = name
        self.min_seq = min_seq
        self.max_seq = max_seq
        self._pages = [(page.column("hour").to_numpy(), page) for page in pages if page.num_rows]

    @property
    def reader(self) -> object:
        """What reads its file."""
        return self

    @property
    def hours(self) -> tuple[int, int]:
        """The first hour and the one after the last."""
        return (int(self._pages[0][0][0]), int(self._pages[-1][0][-1]) + 1) if self._pages else (0, 0)

    def between(self, begin: int, end: int) -> list[pa.RecordBatch]:
        """The rows with `begin <= hour < end`."""
        found = []
        for hours, page in self._pages:
            if hours[-1] >= begin and hours[0] < end:
                first, last = np.searchsorted(hours, [begin, end])
                found.append(page.slice(int(first), int(last - first)))
        return found

    def rows_before(self, hour: int) -> int:
        """How many rows are of an earlier hour."""
        return sum(int(np.searchsorted(hours, hour)) for hours, _ in self._pages)


def map_rollup(path: Path, name: str, min_seq: int, max_seq: int) -> Rollup:
    """A rollup mapped from its file."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        return Rollup([reader.get_batch(index) for index in range(reader.num_record_batches)], name, min_seq, max_seq)


def of_records(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows (`ROLLUP_SCHEMA`) of stored records."""
    records = pa.concat_tables([table.select(["time", "destinationId", "unit", "type", "value"]) for table in tables])
    order, starts, keys = _grouped(records.column("time").cast(pa.int64()).to_numpy() // HOUR_US, records)
    values = limbs(whole(records.column("value")).take(pa.array(order)))
    is_positive = pc.equal(whole(records.column("type")), "positive").to_numpy(zero_copy_only=False)[order]
    positives = np.add.reduceat(is_positive.astype(np.int64), starts) if len(starts) else starts
    return pa.table(
        [
            *keys,
            positives,
            np.diff(np.append(starts, len(order))) - positives,
            from_limbs(group_sums(np.where(is_positive[:, None], values, 0), starts)),
            from_limbs(group_sums(np.where(is_positive[:, None], 0, values), starts)),
        ],
        schema=ROLLUP_SCHEMA,
    )


def _grouped(hour: I64, rows: pa.Table) -> tuple[I64, I64, list[pa.Array]]:
    """The order by hour, destinationId and unit, where each group begins in it, and the three of each group."""
    hours, first = numbers(hour)
    (destinations, count), names = ranks(rows.column("destinationId"))
    units, unit_names = ranks(rows.column("unit"))
    key = folded(hours, (destinations, count), units)
    order = order_of(key)
    starts = changes(key[order])
    head = order[starts]
    places = pa.array(destinations[head]), pa.array(units[0][head])
    return order, starts, [pa.array(hours[0][head] + first), names.take(places[0]), unit_names.take(places[1])]


def _added_up(rows: pa.Table) -> pa.Table:
    """Rows of rollups, those of the same hour, destinationId and unit added up. `OverflowError` beyond 38 digits."""
    order, starts, keys = _grouped(rows.column("hour").to_numpy(), rows)
    columns = [whole(column).take(pa.array(order)) for column in rows.columns[len(keys) :]]
    counts = [np.add.reduceat(column.to_numpy(), starts) for column in columns[:2]]
    sums = [from_limbs(group_sums(limbs(column), starts)) for column in columns[2:]]
    return pa.table([*keys, *counts, *sums], schema=ROLLUP_SCHEMA)


def merged(rollups: Sequence[Rollup]) -> Iterator[pa.RecordBatch]:
    """The pages of one rollup that stands for several, some hours at a time."""
    begin = min((rollup.hours[0] for rollup in rollups), default=0)
    end = max((rollup.hours[1] for rollup in rollups), default=0)
    while begin < end:
        after = _hours_at_once(rollups, begin, end)
        pieces = [piece for rollup in rollups for piece in rollup.between(begin, after)]
        if pieces:
            yield from pages(_added_up(pa.Table.from_batches(pieces, ROLLUP_SCHEMA)))
        begin = after


def pages(rows: pa.Table) -> Iterator[pa.RecordBatch]:
    """The rows as they are written."""
    yield from rows.combine_chunks().to_batches(max_chunksize=_PAGE_ROWS)


def _hours_at_once(rollups: Sequence[Rollup], begin: int, end: int) -> int:
    """The hour up to which not too many rows follow `begin`, at least one hour further."""
    base = sum(rollup.rows_before(begin) for rollup in rollups)
    low, high = begin + 1, end
    while low < high:
        middle = (low + high + 1) // 2
        if sum(rollup.rows_before(middle) for rollup in rollups) - base <= _MERGED_ROWS:
            low = middle
        else:
            high = middle - 1
    return low


def covering(rollups: Sequence[Rollup], seq: int) -> tuple[list[Rollup], int]:
    """The rollups that stand for records up to `seq` at most, and the newest of these seqs (0: none do)."""
    chosen, covered = [], 0
    for rollup in sorted(rollups, key=lambda rollup: rollup.min_seq):
        if rollup.min_seq != covered + 1 or rollup.max_seq > seq:
            break
        chosen.append(rollup)
        covered = rollup.max_seq
    return chosen, covered


def adjacent_to_merge(sizes: Sequence[int]) -> int:
    """How many of the newest rollups, which have so many rows each, to merge into one now; 0 for none.

    As `store.ranges.tier_to_merge`, but only neighbours are merged, so that a rollup always stands for one range. Those
    of the same hours and destinations do not grow when they are merged, so that in the end few are left.
    """
    classes = [max(size, 1).bit_length() // 2 for size in sizes]
    for size in sorted(set(classes)):
        above = max((place for place, found in enumerate(classes) if found > size), default=-1)
        newest = classes[above + 1 :]
        if newest.count(size) >= TIER_RUNS:
            return len(newest)
    return 0

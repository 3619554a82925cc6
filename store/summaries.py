"""The summary state: what was stored so far for each (destinationId, reference) and unit.

Rows are (hi, lo, unit, count, positive, negative, first, last, lastSeq), where (hi, lo) is the hash of the pair; rows
of several runs add up. Times are microseconds since the epoch. Runs hold all but the hash in few bytes
(`store.packed`), and are merged so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store import kernels
from store.arrays import I64, U64
from store.codes import changed
from store.hashing_rows import halves
from store.packed import NUMBERS, packed, unpacked
from store.plain import units_of
from store.runs import Run
from store.search import Found, search
from store.sums import from_limbs, group_sums, limbs
from store.whole import whole

__all__ = ["SUMMARY_RUN", "SUMMARY_SCHEMA", "Summary", "find", "find_each", "in_columns", "merged", "of_records"]

_ZERO = pa.scalar("0").cast(NUMBERS["positive"])

_HASH = [("hi", pa.uint64()), ("lo", pa.uint64())]

SUMMARY_SCHEMA = pa.schema([*_HASH, ("unit", pa.string()), *NUMBERS.items()])
"""What is worked with."""

SUMMARY_RUN = pa.schema([*_HASH, ("summary", pa.binary())])
"""What runs hold."""

_LIMIT = 10**38
_LATEST = (1 << 63) - 1
_EARLIEST = -(1 << 63)


class Summary(msgspec.Struct, gc=False):
    """What is known of one key, as plain values: by unit (count, positive, negative), sums in units of 10^-9."""

    totals: dict[str, tuple[int, int, int]] = {}
    first: int = _LATEST
    last: int = _EARLIEST
    last_seq: int = 0

    def add(self, unit: str, count: int, positive: int, negative: int, first: int, last: int, last_seq: int) -> None:
        """With some more records of one unit; a row of `SUMMARY_SCHEMA`. `OverflowError` beyond 38 digits."""
        before = self.totals.get(unit)
        if before is not None:
            count, positive, negative = count + before[0], positive + before[1], negative + before[2]
            if not -_LIMIT < min(positive, negative) <= max(positive, negative) < _LIMIT:
                raise OverflowError("a total does not fit DECIMAL(38,9)")
        self.totals[unit] = (count, positive, negative)
        self.first, self.last = min(self.first, first), max(self.last, last)
        self.last_seq = max(self.last_seq, last_seq)

    def add_record(self, seq: int, time_us: int, type_: str, units: int, unit: str) -> None:
        """With one more record, whose value is `units` of 10^-9."""
        positive, negative = (units, 0) if type_ == "positive" else (0, units)
        if self.totals:
            self.add(unit, 1, positive, negative, time_us, time_us, seq)
        else:  # the first one, which most are
            self.totals[unit] = (1, positive, negative)
            self.first = self.last = time_us
            self.last_seq = seq

    def copy(self) -> Summary:
        """One that can go on by itself."""
        return Summary(self.totals.copy(), self.first, self.last, self.last_seq)


def of_records(hi: U64, lo: U64, stored: pa.Table) -> Run:
    """A run in memory of committed records whose keys hash to (hi, lo)."""
    values = whole(stored.column("value"))
    is_positive = pc.equal(whole(stored.column("type")), "positive")
    times = whole(stored.column("time")).cast(pa.int64())
    rows = pa.record_batch(
        [
            hi,
            lo,
            whole(stored.column("unit")),
            np.ones(len(hi), dtype=np.int64),
            pc.if_else(is_positive, values, _ZERO),
            pc.if_else(is_positive, _ZERO, values),
            times,
            times,
            whole(stored.column("seq")),
        ],
        schema=SUMMARY_SCHEMA,
    )
    return Run([_in_run(_added_up(rows))])


def merged(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of runs sorted by hi, lo, unit, those of the same three added up: only they are unpacked."""
    order = kernels.argsort(rows.column("hi").to_numpy())
    new = np.append(changed(rows.column("hi").to_numpy()[order]), True)
    is_alone = new[1:] & new[:-1]
    if not is_alone.all():
        sums = _in_run(_added_up(in_columns(rows.take(pa.array(order[~is_alone])))))
        rows = pa.concat_batches([rows.take(pa.array(order[is_alone])), sums])
        order = kernels.argsort(rows.column("hi").to_numpy())
    return rows.take(pa.array(order))


def in_columns(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of a run (`SUMMARY_RUN`) as `SUMMARY_SCHEMA`."""
    unit, numbers = unpacked(rows.column("summary"))
    return pa.record_batch([rows.column("hi"), rows.column("lo"), unit, *numbers], schema=SUMMARY_SCHEMA)


def _in_run(rows: pa.RecordBatch) -> pa.RecordBatch:
    hi, lo, unit, *numbers = rows.columns
    return pa.record_batch([hi, lo, packed(unit, numbers)], schema=SUMMARY_RUN)


def _added_up(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows sorted by hi, lo, unit, those of the same three added up."""
    if rows.num_rows == 0:
        return rows
    order, starts = _groups(rows)
    sizes = np.diff(np.append(starts, len(order)))
    place = order[starts]
    several = sizes > 1  # few have, where most keys have one record
    if several.any():
        members = rows.take(pa.array(order[np.repeat(several, sizes)]))
        place[several] = rows.num_rows + np.arange(np.count_nonzero(several))
        rows = pa.concat_batches([rows, _sums(members, np.cumsum(sizes[several]) - sizes[several])])
    return rows.take(pa.array(place))


def _sums(rows: pa.RecordBatch, starts: I64) -> pa.RecordBatch:
    """A row for each group of consecutive rows; group g begins at `starts[g]`."""

    def reduced(ufunc: np.ufunc, name: str) -> I64:
        return np.asarray(ufunc.reduceat(rows.column(name).to_numpy(), starts))

    heads = rows.take(pa.array(starts))
    return pa.record_batch(
        [
            *(heads.column(name) for name in ("hi", "lo", "unit")),
            reduced(np.add, "count"),
            *(from_limbs(group_sums(limbs(rows.column(name)), starts)) for name in ("positive", "negative")),
            reduced(np.minimum, "first"),
            reduced(np.maximum, "last"),
            reduced(np.maximum, "lastSeq"),
        ],
        schema=SUMMARY_SCHEMA,
    )


def _groups(rows: pa.RecordBatch) -> tuple[I64, I64]:
    """The order by hi, lo, unit, and where each group of the same three begins in it.

    Sorting by hi alone is enough unless two different keys share it or a key has several units; the stable sort takes
    linear time on what is sorted piecewise already.
    """
    hi, lo = rows.column("hi").to_numpy(), rows.column("lo").to_numpy()
    units = rows.column("unit").dictionary_encode()
    unit = units.indices.to_numpy()
    order = kernels.argsort(hi)
    new = changed(hi[order])
    if (new != (new | changed(lo[order]) | changed(unit[order]))).any():
        names = units.dictionary.cast(pa.binary()).to_pylist()
        rank = np.empty(len(names), dtype=np.int64)
        rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        order = np.lexsort((rank[unit], lo, hi))
        new = changed(hi[order]) | changed(lo[order]) | changed(unit[order])
    return order, np.flatnonzero(new)


def find(runs: Sequence[Run], hi: U64, lo: U64) -> tuple[I64, pa.RecordBatch]:
    """What is known of keys, added up over the runs: (position in the question, row). `hi` must ascend.

    A key has a row for each of its units; they are sorted by position and unit.
    """
    found = search(runs, hi, lo).in_order()
    if not len(found):
        return found.needle, _nothing()
    # the position takes the place of the hash, so that rows are added up by it
    hashes = found.needle.view(np.uint64), np.zeros(len(found), dtype=np.uint64)
    rows = pa.record_batch([*hashes, *_columns(found)], schema=SUMMARY_SCHEMA)
    if (found.needle[1:] == found.needle[:-1]).any():
        rows = _added_up(rows)
    return rows.column("hi").to_numpy().astype(np.int64), rows


def find_each(runs: Sequence[Run], keys: Collection[int], limit: int) -> dict[int, Summary] | None:
    """What is known of a few keys, by their 128-bit hashes. None where that is more than `limit` rows."""
    ordered = sorted(keys)
    hi, lo = halves(ordered)
    found = search(runs, hi, lo)
    if len(found) > limit:
        return None
    summaries: dict[int, Summary] = {}
    if len(found):
        columns = [column.to_pylist() for column in _columns(found)]
        for needle, unit, count, positive, negative, *rest in zip(found.needle.tolist(), *columns, strict=True):
            summary = summaries.setdefault(ordered[needle], Summary())
            summary.add(unit, count, units_of(positive), units_of(negative), *rest)
    return summaries


def _columns(found: Found) -> list[pa.Array]:
    """Of what was found in runs: those of `SUMMARY_SCHEMA` behind the hash."""
    unit, numbers = unpacked(found.column("summary"))
    return [unit, *numbers]


def _nothing() -> pa.RecordBatch:
    return pa.record_batch([pa.array([], type=field.type) for field in SUMMARY_SCHEMA], schema=SUMMARY_SCHEMA)

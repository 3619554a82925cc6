"""The summary of everything before each record: `previous` of its notification, exact at every seq.

The history of a (destinationId, reference) is what the store knows of it plus the records before it in the same
commit. Most keys of a commit have one record and no history: their summary is a constant. Keys with one unit are
computed in columns; those with several units one by one, in time proportional to what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ingest.deduplicate import grouped
from outbox.messages import NO_PREVIOUS, Previous, SingleUnit, previous_of, previous_of_one_unit
from store.arrays import I64, U64
from store.plain import units_of
from store.summaries import Summary
from store.sums import Limbs, limbs, running_sums
from store.whole import whole

__all__ = ["Find", "previous_texts"]

Find = Callable[[U64, U64], tuple[I64, pa.RecordBatch]]
"""Look keys up: (hi ascending, lo) to (position in the question, rows of `store.summaries.SUMMARY_SCHEMA`)."""

_LATEST = np.iinfo(np.int64).max
_EARLIEST = np.iinfo(np.int64).min


def previous_texts(rows: pa.Table, hi: U64, lo: U64, find: Find) -> Previous:
    """The `previous` object of each row (schema `STORED`, in order of seq) whose key hashes to (hi, lo), as JSON."""
    order, starts = grouped(hi, lo)
    sizes = np.diff(np.append(starts, len(order)))
    positions, known = find(hi[order[starts]], lo[order[starts]])
    has_history = np.zeros(len(starts), dtype=bool)
    has_history[positions] = True
    told = np.repeat(has_history | (sizes > 1), sizes)  # in the order of the groups
    if not told.any():
        return Previous(pa.array([NO_PREVIOUS], pa.string()), np.zeros(len(order), dtype=np.int64))
    several = _several_units(rows, order, starts, positions, known)
    group_of_row = np.repeat(np.arange(len(starts)), sizes)
    first_of_all = np.zeros(len(order), dtype=bool)
    first_of_all[starts] = True
    first_of_all &= ~has_history[group_of_row]
    texts: list[pa.Array] = [pa.array([NO_PREVIOUS], pa.string())]
    place = np.zeros(len(order), dtype=np.int64)  # of each row's text in `texts`; 0 is that of no history

    one = np.flatnonzero(~several & (has_history | (sizes > 1)))
    if len(one):
        chosen = ~several[group_of_row] & told
        summary = _running(rows, order[chosen], sizes[one], one, positions, known)
        texts.append(previous_of_one_unit(summary))
        written = np.flatnonzero(chosen)
        place[order[written]] = np.arange(1, len(written) + 1)
        place[order[np.flatnonzero(first_of_all)]] = 0
    groups = np.flatnonzero(several)
    if len(groups):
        members = order[several[group_of_row]]
        base = sum(len(text) for text in texts)
        texts.append(pa.array(_one_by_one(rows, members, sizes[groups], groups, positions, known), pa.string()))
        place[members] = np.arange(base, base + len(members))
    return Previous(pa.concat_arrays(texts), place)


def _several_units(
    rows: pa.Table, order: I64, starts: I64, positions: I64, known: pa.RecordBatch
) -> npt.NDArray[np.bool_]:
    """Which groups have more than one unit, among their rows and their history together."""
    units = pa.concat_arrays([whole(rows.column("unit")), known.column("unit")]).dictionary_encode()
    codes = units.indices.to_numpy().astype(np.int64)
    of_rows, of_known = codes[: len(order)][order], codes[len(order) :]
    least, most = np.minimum.reduceat(of_rows, starts), np.maximum.reduceat(of_rows, starts)
    np.minimum.at(least, positions, of_known)
    np.maximum.at(most, positions, of_known)
    return np.asarray(least != most)


def _running(
    rows: pa.Table, members: I64, sizes: I64, groups: I64, positions: I64, known: pa.RecordBatch
) -> SingleUnit:
    """For each of these rows (group after group, one unit each) the sum of its history and of the rows before it."""
    taken = rows.take(pa.array(members))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    group_of_row = np.repeat(np.arange(len(groups)), sizes)

    # the history of each group; of a group without one, what changes nothing
    group_at = np.full(int(max(groups.max(), positions.max(initial=0))) + 1, -1, dtype=np.int64)
    group_at[groups] = np.arange(len(groups))
    mine = group_at[positions] >= 0 if len(positions) else np.zeros(0, dtype=bool)
    at = group_at[positions[mine]] if len(positions) else np.zeros(0, dtype=np.int64)
    history = known.filter(pa.array(mine)) if len(positions) else known

    def base(name: str, nothing: int) -> I64:
        values = np.full(len(groups), nothing, dtype=np.int64)
        values[at] = history.column(name).to_numpy()
        return values

    def base_sums(name: str) -> Limbs:
        values = np.zeros((len(groups), 4), dtype=np.int64)
        values[at] = limbs(history.column(name))
        return values

    values = limbs(whole(taken.column("value")))
    is_positive = pc.equal(whole(taken.column("type")), "positive").to_numpy(zero_copy_only=False)
    signs = is_positive[:, None]
    positive = running_sums(np.where(signs, values, 0), starts, sizes) + base_sums("positive")[group_of_row]
    negative = running_sums(np.where(signs, 0, values), starts, sizes) + base_sums("negative")[group_of_row]
    times = whole(taken.column("time")).cast(pa.int64()).to_numpy()
    seqs = taken.column("seq").to_numpy()
    rank = np.arange(len(members)) - starts[group_of_row]
    first = np.minimum(_before(times, rank, np.minimum, _LATEST), base("first", _LATEST)[group_of_row])
    last = np.maximum(_before(times, rank, np.maximum, _EARLIEST), base("last", _EARLIEST)[group_of_row])
    last_seq = np.where(rank > 0, np.roll(seqs, 1), base("lastSeq", 0)[group_of_row])
    count = rank + base("count", 0)[group_of_row]
    known_something = count > 0  # the first row of a key is not written from here; give it a time that renders
    return SingleUnit(
        count=count,
        first=np.where(known_something, first, 0),
        last=np.where(known_something, last, 0),
        last_seq=last_seq,
        unit=whole(taken.column("unit")),
        positive=positive,
        negative=negative,
    )


def _before(values: I64, rank: I64, extreme: np.ufunc, nothing: int) -> I64:
    """The smallest (or largest) of the values before each row in its group; `rank` counts rows within the group.

    By doubling: after step d each row knows the extreme of the 2d rows up to it.
    """
    result = values.copy()
    distance = 1
    while distance <= int(rank.max(initial=0)):
        reach = np.flatnonzero(rank >= distance)
        result[reach] = extreme(result[reach], result[reach - distance])
        distance *= 2
    shifted = np.roll(result, 1)
    shifted[rank == 0] = nothing
    return shifted


def _one_by_one(
    rows: pa.Table, members: I64, sizes: I64, groups: I64, positions: I64, known: pa.RecordBatch
) -> list[str]:
    """The texts of these rows (group after group, several units each), row after row."""
    mine = np.flatnonzero(np.isin(positions, groups))
    known_by: dict[int, Summary] = {}
    for group, unit, count, positive, negative, *rest in zip(
        positions[mine].tolist(), *_lists(known.take(pa.array(mine)), _HISTORY), strict=True
    ):
        known_by.setdefault(group, Summary()).add(unit, count, units_of(positive), units_of(negative), *rest)
    taken = rows.take(pa.array(members))
    taken = taken.set_column(taken.schema.get_field_index("time"), "time", taken.column("time").cast(pa.int64()))
    new = zip(*_lists(taken, ("seq", "time", "type", "value", "unit")), strict=True)
    texts: list[str] = []
    for group, size in zip(groups.tolist(), sizes.tolist(), strict=True):
        summary = known_by.get(group, Summary())
        for seq, time, type_, value, unit in islice(new, size):
            texts.append(previous_of(summary))
            summary.add_record(seq, time, type_, units_of(value), unit)
    return texts


_HISTORY = ("unit", "count", "positive", "negative", "first", "last", "lastSeq")


def _lists(table: pa.Table | pa.RecordBatch, names: Sequence[str]) -> list[list[Any]]:
    return [table.column(name).to_pylist() for name in names]

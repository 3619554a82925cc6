"""Which files of a partition are worth making one of: a rule from values to values, with a bounded cost.

Sizes are counted in records, in classes of a power of eight. Eight files of a class become one of a higher class; those
of the last class, which are the files that a bulk load leaves, wait until they are a full file together. So a record is
rewritten once for each class at most (six times), however its partition is filled, and a bulk load once, unless files
become smaller by more than a fifth where they are merged; a partition that still grows keeps a few files of each class.
A partition that has rested is brought down further, by merges in which the largest file grows by a quarter at least: a
late record never makes a large file be written again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from store.snapshot import SealedFile

__all__ = ["FULL_ROWS", "choose", "choose_partitions"]

_CLASS_BITS = 3
_FAN_IN = 1 << _CLASS_BITS
_LAST_CLASS = 5
"""Of files from 32,768 records on."""

_RESTED_RATIO = 4
"""In a rested partition a file is merged with smaller ones that have a quarter of its records together."""

FULL_ROWS = 1 << 20
_FULL_BYTES = 64 << 20
"""A file of so many records or bytes stays as it is for ever."""

_MERGED_BYTES = _FULL_BYTES * 5 // 4
"""So many become a file of `_FULL_BYTES`, as they are compressed better together."""

_MERGED_FILES = 128
"""Looked at, at once: more than may be left of all classes beside a full one."""

_ROUND_PARTITIONS = 64
_ROUND_ROWS = 1 << 18
"""Partitions and records of one round, unless a single partition has more."""


def choose(files: Sequence[SealedFile], *, rested: bool) -> list[SealedFile]:
    """The files of one partition that should become one, the smallest first; none where it is not worth it.

    `rested` says that the partition has got no file for a while.
    """
    small = [file for file in files if file.rows < FULL_ROWS and file.bytes < _FULL_BYTES]
    small.sort(key=lambda file: (file.rows, file.min_seq, file.name))
    small = small[:_MERGED_FILES]
    end = _end_of_full_class(small) or (_end_of_rested(small) if rested else 0)
    chosen = small[: min(end, _end_of_full_file(small))]
    return chosen if len(chosen) > 1 else []


def _end_of_full_class(small: Sequence[SealedFile]) -> int:
    """How many files there are up to the end of the first class that has enough of them."""
    end = 0
    for number, members in itertools.groupby(small, key=_class_of):
        count = len(list(members))
        end += count
        if count >= _FAN_IN and (number < _LAST_CLASS or _end_of_full_file(small) <= end):
            return end
    return 0


def _class_of(file: SealedFile) -> int:
    return min((file.rows.bit_length() - 1) // _CLASS_BITS, _LAST_CLASS)


def _end_of_full_file(small: Sequence[SealedFile]) -> int:
    """How many of them are a full file together; one more than there are where they are not."""
    rows = itertools.accumulate(file.rows for file in small)
    size = itertools.accumulate(file.bytes for file in small)
    count = sum(1 for total in zip(rows, size, strict=True) if total[0] < FULL_ROWS and total[1] < _MERGED_BYTES)
    return count + 1


def _end_of_rested(small: Sequence[SealedFile]) -> int:
    before = list(itertools.accumulate((file.rows for file in small), initial=0))
    worth = (number + 1 for number, file in enumerate(small) if file.rows <= _RESTED_RATIO * before[number])
    return max(worth, default=0)


def choose_partitions(files: Iterable[SealedFile], rested: Callable[[int], bool]) -> list[list[SealedFile]]:
    """What one round should compact: of each partition the files to merge, those that save most files first.

    `rested` tells of a day whether its partition has got no file for a while.
    """
    of_day: dict[int, list[SealedFile]] = {}
    for file in files:
        of_day.setdefault(file.day, []).append(file)
    found = [choose(members, rested=rested(day)) for day, members in of_day.items() if len(members) > 1]
    found = sorted((chosen for chosen in found if chosen), key=lambda chosen: (-len(chosen), chosen[0].day))
    rows = itertools.accumulate(sum(file.rows for file in chosen) for chosen in found)
    count = sum(1 for total in rows if total <= _ROUND_ROWS)
    return found[: min(max(count, 1), _ROUND_PARTITIONS)]

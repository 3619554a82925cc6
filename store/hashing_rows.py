"""The hashes of `store.hashing` for one record at a time, from plain values.

Over columns they cost 200 µs before the first record, which is more than a dozen records take here. Both are the same
function: tests hold them equal, and the runs on disk are looked up with either.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from store.plain import Row

__all__ = ["Hashes", "RowHasher", "halves"]

_ALL = (1 << 64) - 1
_LOW = (1 << 32) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 8
_REMEMBERED = 1_024
"""Strings that come again and again (sources, types, units, destinations) are hashed once."""

Keys = Sequence[Sequence[int]]


Hashes = tuple[int, int, int]
"""Of one record: the 128 bits of its recordId, the 64 of all its fields, the 128 of its (destinationId, reference).

A plain tuple, as what waits by the thousand should be: the garbage collector soon leaves it alone.
"""


def halves(hashes: Sequence[int]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The upper and the lower 64 bits of each, as columns."""
    return (
        np.array([value >> 64 for value in hashes], np.uint64),
        np.array([value & _ALL for value in hashes], np.uint64),
    )


class RowHasher:
    """The hashes of one store. `keys` and `print_keys` are those of its `Hasher`, `mask` what it keeps of a lane."""

    def __init__(self, keys: Keys, print_keys: Keys, mask: int) -> None:
        self._keys, self._print_keys, self._mask = keys, print_keys, mask
        self._remembered = lru_cache(_REMEMBERED)(self._lanes)
        self._remembered_print = lru_cache(_REMEMBERED)(self._print)

    def hashes(self, row: Row, units: int) -> Hashes:
        """Of a record whose value is `units` of 10^-9."""
        record_id, time_us, source_id, destination_id, type_, _, unit, reference = row
        id_hi, id_lo = self._lanes(record_id)
        dest_hi, dest_lo = self._remembered(destination_id)
        ref_hi, ref_lo = self._lanes(reference)
        key_hi = _mixed((dest_hi * _GOLDEN ^ ref_lo) & _ALL)
        key_lo = _mixed(dest_lo + _rotated(ref_hi, 23) * _GOLDEN & _ALL)
        remembered = self._remembered_print
        print_ = _GOLDEN
        for lane in (
            self._print(record_id), remembered(source_id), remembered(destination_id), remembered(type_),
            remembered(unit), self._print(reference),
        ):  # fmt: skip
            print_ = (_rotated(print_, 27) * _GOLDEN ^ lane) & _ALL
        for lane in (time_us & _ALL, units & _ALL, units >> 64 & _ALL):
            print_ = _mixed((_rotated(print_, 27) * _GOLDEN ^ lane) & _ALL)
        mask = self._mask
        return (id_hi & mask) << 64 | id_lo & mask, print_, key_hi << 64 | key_lo

    def _lanes(self, text: str) -> tuple[int, int]:
        data = text.encode()
        return _lane(data, self._keys, 0, 29), _lane(data, self._keys, 1, 31)

    def _print(self, text: str) -> int:
        return _lane(text.encode(), self._print_keys, 0, 29)


def _lane(data: bytes, keys: Keys, which: int, turn: int) -> int:
    """One lane of a string; see `store.hashing`."""
    length = len(data) * _GOLDEN
    last = keys[-1][which]
    lane = (length ^ last if which else length + last) & _ALL
    back = 64 - turn
    for begin in range(0, len(data), _WORD):
        word = int.from_bytes(data[begin : begin + _WORD], "little") ^ keys[(begin >> 3) % (len(keys) - 1)][which]
        lane = (lane + (word & _LOW | 1) * (word >> 32) + word) & _ALL
        lane = (lane << turn | lane >> back) & _ALL
    return _mixed(lane)


def _rotated(lane: int, turn: int) -> int:
    return (lane << turn | lane >> (64 - turn)) & _ALL


def _mixed(lane: int) -> int:
    lane = (lane ^ lane >> 33) * 0xFF51AFD7ED558CCD & _ALL
    lane = (lane ^ lane >> 33) * 0xC4CEB9FE1A85EC53 & _ALL
    return lane ^ lane >> 33

"""Exact sums of decimal columns: DECIMAL(38,9) as four 32-bit limbs in int64, which no 2^31 summands overflow.

NumPy has no 128-bit integers, and pyarrow's sums of decimals wrap silently.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from store.arrays import I64
from store.schema import SCALE

__all__ = ["Limbs", "from_limbs", "group_sums", "limbs", "running_sums"]

Limbs = npt.NDArray[np.int64]
"""Shape (rows, 4), least significant first; the last one carries the sign."""

_HALF = np.int64(32)
_LOW = np.int64(0xFFFFFFFF)
_TOP_LIMIT = (10**38) >> 96
"""The top limb of 10^38; a sum whose top limb is beyond it does not fit DECIMAL(38,9)."""


def limbs(values: pa.Array) -> Limbs:
    """The limbs of a decimal128 array without nulls."""
    start = values.offset * 4
    parts = np.frombuffer(values.buffers()[1], dtype="<u4")[start : start + 4 * len(values)].reshape(-1, 4)
    result = parts.astype(np.int64)
    result[:, 3] = parts[:, 3].view(np.int32)
    return result


def from_limbs(sums: Limbs) -> pa.Array:
    """The decimals that limbs stand for, carries and borrows not yet done. `OverflowError` beyond 38 digits."""
    carried = sums.copy()
    for limb in range(3):
        carried[:, limb + 1] += carried[:, limb] >> _HALF  # an arithmetic shift: borrows go down as well
        carried[:, limb] &= _LOW
    top = carried[:, 3]
    if len(top) and (int(top.max()) >= _TOP_LIMIT or int(top.min()) < -_TOP_LIMIT):
        raise OverflowError("a total does not fit DECIMAL(38,9)")
    words = np.ascontiguousarray((carried & _LOW).astype("<u4"))
    return pa.Array.from_buffers(pa.decimal128(38, SCALE), len(sums), [None, pa.py_buffer(words)])


def group_sums(values: Limbs, starts: I64) -> Limbs:
    """The sum of each group of consecutive rows; group g begins at `starts[g]`, and the first one at 0.

    Differences of running sums: half of the time of `np.add.reduceat` along rows.
    """
    sums = np.zeros((len(starts), 4), dtype=np.int64)
    if len(starts):
        ends = np.append(starts[1:], len(values)) - 1
        for limb in range(4):
            sums[:, limb] = np.diff(np.cumsum(values[:, limb])[ends], prepend=0)
    return sums


def running_sums(values: Limbs, starts: I64, sizes: I64) -> Limbs:
    """For each row the sum of the rows before it in its group (exclusive)."""
    totals = np.cumsum(values, axis=0)
    totals -= values
    return np.asarray(totals - np.repeat(totals[starts], sizes, axis=0))

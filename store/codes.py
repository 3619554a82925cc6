"""Columns as small integers that sort as they do, so that rows are sorted and grouped by one number each.

Sorting one column of int64 takes a tenth of the time of sorting by several columns, of which one holds strings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from store import kernels
from store.arrays import I64

__all__ = ["Codes", "changed", "changes", "folded", "numbers", "order_of", "ranks"]

Codes = tuple[I64, int]
"""Numbers from 0 on, one for each row, and a number above all of them."""

_MOST = (1 << 63) - 1


def ranks(column: pa.Array | pa.ChunkedArray) -> tuple[Codes, pa.Array]:
    """The place of each string among the distinct ones by code point, and these in their order: row i is
    `names[codes[i]]`.
    """
    encoded = column.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    names = encoded.dictionary
    order = pc.sort_indices(names.cast(pa.binary()))
    rank = np.empty(len(names), dtype=np.int64)
    rank[order.to_numpy()] = np.arange(len(names))
    return (rank[encoded.indices.to_numpy()], len(names)), names.take(order)


def numbers(values: I64) -> tuple[Codes, int]:
    """Numbers counted from the least of them, and that one."""
    if not len(values):
        return (values, 1), 0
    least = int(values.min())
    return (values - least, int(values.max()) - least + 1), least


def folded(*columns: Codes) -> I64:
    """One number for each row, by which rows sort as by these columns one after another."""
    key, size = columns[0]
    for codes, count in columns[1:]:
        if size * count > _MOST:
            distinct, key = np.unique(key, return_inverse=True)
            size = len(distinct)
        key, size = key * count + codes, size * count
    return key


def order_of(keys: I64) -> I64:
    """The order in which keys that are not negative ascend, equal ones as they stand."""
    bits = max(int(keys.max(initial=0)).bit_length(), 1)
    return kernels.argsort(keys.view(np.uint64) << np.uint64(64 - bits))  # which looks at the upper bits first


def changes(values: I64) -> I64:
    """Where in sorted values each group of equal ones begins."""
    return np.flatnonzero(changed(values))


def changed(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each value differs from the one before it; the first one does."""
    found = np.ones(len(values), dtype=bool)
    found[1:] = values[1:] != values[:-1]
    return found

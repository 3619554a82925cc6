"""A column as one array. `combine_chunks` of Arrow copies a column also where it has one chunk only."""

from __future__ import annotations

import pyarrow as pa

__all__ = ["whole"]


def whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column, copied only where it has several chunks."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

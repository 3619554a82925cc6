"""Which records are above their threshold, and what that threshold was."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from store.journal import Rules
from store.schema import SCALE

__all__ = ["exceeding"]

_DECIMAL = pa.decimal128(38, SCALE)


def exceeding(records: pa.Table, rules: Rules) -> tuple[pa.Array, pa.Array]:
    """(positions, thresholds) of the records with `value > threshold`, strictly.

    The threshold of a destination is stronger than that of a unit, which is stronger than the general one.
    """
    thresholds = pa.repeat(_decimal(rules.threshold), records.num_rows)
    for column, by in (("unit", rules.by_unit), ("destinationId", rules.by_destination)):
        if by:
            named = pa.array([_decimal(value) for value in by.values()], _DECIMAL)
            which = pc.index_in(records.column(column).combine_chunks(), value_set=pa.array(list(by), pa.string()))
            thresholds = pc.coalesce(named.take(which), thresholds)
    above = pc.indices_nonzero(pc.greater(records.column("value").combine_chunks(), thresholds))
    return above, thresholds.take(above)


def _decimal(text: str) -> pa.Scalar:
    """The exact decimal that a canonical text stands for (pyarrow refuses to round)."""
    return pa.scalar(text, pa.string()).cast(_DECIMAL)

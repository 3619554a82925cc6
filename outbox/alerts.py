"""Which records are above their threshold, and what that threshold was."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from store.journal import Rules
from store.plain import units_of
from store.schema import SCALE
from store.whole import whole

__all__ = ["exceeding", "threshold_of"]

_DECIMAL = pa.decimal128(38, SCALE)


def exceeding(records: pa.Table, rules: Rules) -> tuple[pa.Array, pa.Array]:
    """(positions, thresholds) of the records with `value > threshold`, strictly.

    The threshold of a destination is stronger than that of a unit, which is stronger than the general one.
    """
    thresholds = pa.repeat(_decimal(rules.threshold), records.num_rows)
    for column, by in (("unit", rules.by_unit), ("destinationId", rules.by_destination)):
        if by:
            named = pa.array([_decimal(value) for value in by.values()], _DECIMAL)
            which = pc.index_in(whole(records.column(column)), value_set=pa.array(list(by), pa.string()))
            thresholds = pc.coalesce(named.take(which), thresholds)
    above = pc.indices_nonzero(pc.greater(whole(records.column("value")), thresholds))
    return above, thresholds.take(above)


def threshold_of(destination_id: str, unit: str, rules: Rules) -> int:
    """The threshold of one record, in units of 10^-9: the rule of `exceeding`."""
    return _units(rules.by_destination.get(destination_id) or rules.by_unit.get(unit) or rules.threshold)


@lru_cache(1_024)
def _units(text: str) -> int:
    return units_of(Decimal(text))


def _decimal(text: str) -> pa.Scalar:
    """The exact decimal that a canonical text stands for (pyarrow refuses to round)."""
    return pa.scalar(text, pa.string()).cast(_DECIMAL)

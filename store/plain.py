"""One record in canonical form from plain values: what `store.canonical` does for columns.

A column costs microseconds before its first row, which is most of what a commit of few records took. Tests hold both
ways equal. A value is counted in units of 10^-9, so that sums are those of integers and exact.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Context, Decimal
from functools import lru_cache

import msgspec

from store.schema import SCALE

__all__ = ["Row", "record_text", "string_text", "time_text", "units_of", "units_text", "value_text"]

Row = tuple[str, int, str, str, str, Decimal, str, str]
"""A validated record in the order of the canonical fields: time in UTC microseconds, value exact."""

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  (its text would end in +00:00)
_MINUTE_US = 60_000_000
_SECOND_US = 1_000_000
_WHOLE = 10**SCALE
_EXACT = Context(prec=60)
"""More digits than a value or a sum has: the default context would round."""

_encode = msgspec.json.Encoder().encode


class _Canonical(msgspec.Struct, gc=False):
    recordId: str
    time: str
    sourceId: str
    destinationId: str
    type: str
    value: str
    unit: str
    reference: str


def units_of(value: Decimal) -> int:
    """A value of nine digits after the point at most, in units of 10^-9."""
    return int(value.scaleb(SCALE, _EXACT))


def units_text(units: int) -> str:
    """Units of 10^-9 as a decimal in plain notation without trailing zeros."""
    sign = "-" if units < 0 else ""
    whole, fraction = divmod(abs(units), _WHOLE)
    return f"{sign}{whole}.{fraction:0{SCALE}}".rstrip("0") if fraction else f"{sign}{whole}"


def value_text(value: Decimal) -> str:
    """A value in the notation of `units_text`."""
    text = str(value)
    if "E" in text:
        return units_text(units_of(value))
    return text.rstrip("0").rstrip(".") if "." in text else text


def time_text(us: int) -> str:
    """Microseconds since the epoch as `2024-03-01T12:00:00.000000Z`."""
    minute, us = divmod(us, _MINUTE_US)
    return f"{_minute_text(minute)}:{us // _SECOND_US:02}.{us % _SECOND_US:06}Z"


@lru_cache(1_024)
def _minute_text(minute: int) -> str:
    """A datetime takes longer than all the rest, and times come in order, about."""
    return (_EPOCH + timedelta(0, 0, 0, 0, minute)).isoformat("T", "minutes")


def string_text(text: str) -> str:
    """A string as JSON, with its quotes."""
    return _encode(text).decode()


def record_text(row: Row) -> str:
    """A record as a compact canonical JSON object."""
    record_id, time_us, source_id, destination_id, type_, value, unit, reference = row
    text = value_text(value)
    record = _Canonical(record_id, time_text(time_us), source_id, destination_id, type_, text, unit, reference)
    return _encode(record).decode()

"""Times as the contract takes them: RFC 3339 with an offset, to microseconds since the epoch."""

from __future__ import annotations

import re
from datetime import date

from store.schema import TIME_MAX_US, TIME_MIN_US

__all__ = ["parse_bound", "parse_time"]

_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_EPOCH = date(1970, 1, 1).toordinal()
_CALENDAR_DAYS = 146_097
"""Of 400 years."""


def parse_time(text: str) -> int | str:
    """Microseconds since the epoch, or the code of what is wrong. Digits beyond the microsecond are cut off."""
    time_us = _parse(text)
    if isinstance(time_us, str) or TIME_MIN_US <= time_us < TIME_MAX_US:
        return time_us
    return "time_range"


def parse_bound(text: str) -> int | None:
    """A time that others are compared with, as `parse_time` reads it; None where it is no RFC 3339.

    One beyond the years that a record can have is as good as their edge: `endTime=9999-…` leaves nothing out.
    """
    time_us = _parse(text)
    return None if isinstance(time_us, str) else min(max(time_us, TIME_MIN_US), TIME_MAX_US)


def _parse(text: str) -> int | str:
    found = _TIME.fullmatch(text)
    if found is None:
        return "time_format"
    year, month, day, hour, minute, second, fraction, sign, offset_hour, offset_minute = found.groups()
    hours, minutes, seconds = int(hour), int(minute), int(second)
    if hours > 23 or minutes > 59 or seconds > 59:
        return "time_format"
    try:
        # The calendar repeats after 400 years, and Python's begins with year 1.
        days = date(int(year) or 400, int(month), int(day)).toordinal() - _EPOCH
        days -= 0 if int(year) else _CALENDAR_DAYS
    except ValueError:
        return "time_format"
    total = days * 86_400 + hours * 3_600 + minutes * 60 + seconds
    if sign is not None:
        behind, rest = int(offset_hour), int(offset_minute)
        if behind > 23 or rest > 59:
            return "time_format"
        shift = behind * 3_600 + rest * 60
        total += shift if sign == "-" else -shift
    return total * 1_000_000 + (int(fraction[:6].ljust(6, "0")) if fraction else 0)

"""Times as the contract takes them: RFC 3339 with an offset, to microseconds since the epoch."""

from __future__ import annotations

import re
from datetime import date

from store.schema import TIME_MAX_US, TIME_MIN_US

__all__ = ["parse_time"]

_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_EPOCH = date(1970, 1, 1).toordinal()


def parse_time(text: str) -> int | str:
    """Microseconds since the epoch, or the code of what is wrong. Digits beyond the microsecond are cut off."""
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
    except ValueError:
        return "time_format"
    total = days * 86_400 + hours * 3_600 + minutes * 60 + seconds
    if sign is not None:
        behind, rest = int(offset_hour), int(offset_minute)
        if behind > 23 or rest > 59:
            return "time_format"
        shift = behind * 3_600 + rest * 60
        total += shift if sign == "-" else -shift
    if year == "0000":
        return "time_range"
    time_us = total * 1_000_000 + (int(fraction[:6].ljust(6, "0")) if fraction else 0)
    return time_us if TIME_MIN_US <= time_us < TIME_MAX_US else "time_range"

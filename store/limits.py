"""The numbers of the record and of its data directory, without the libraries that `store/schema.py` brings along."""

from __future__ import annotations

__all__ = [
    "DAY_US",
    "FIELD_LIMIT",
    "FORMAT_VERSION",
    "SCALE",
    "SCALED_VALUE_LIMIT",
    "TIME_MAX_US",
    "TIME_MIN_US",
    "UNIT_LIMIT",
]

FORMAT_VERSION = 4
"""Of the data directory. An older one is upgraded at start, a newer one refused."""

SCALE = 9
"""Digits after the point that a value may have."""

SCALED_VALUE_LIMIT = 10**20 * 10**SCALE
"""A value is below this (exclusive) in units of 10^-9; the bound that keeps sums inside DECIMAL(38,9)."""

FIELD_LIMIT = 256
"""Characters (code points) in recordId, sourceId, destinationId and reference."""

UNIT_LIMIT = 32
"""Characters (code points) in unit."""

TIME_MIN_US = 0
"""1970-01-01T00:00:00Z in microseconds since the epoch, inclusive."""

TIME_MAX_US = 7_289_654_400_000_000
"""2201-01-01T00:00:00Z in microseconds since the epoch, exclusive."""

DAY_US = 86_400_000_000
"""Microseconds of a day: a partition is one, in UTC."""

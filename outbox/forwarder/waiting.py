"""Which lines wait for a sink, and since when."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from outbox.forwarder.settings import Forward
from outbox.forwarder.sink import Source, head_of

__all__ = ["age_s", "filter_of", "oldest_waiting"]

_LOOKED_AT = 1_000
_LOOKED_AT_BYTES = 1 << 20


def filter_of(table: Forward) -> Callable[[bytes], bool]:
    """Whether a line is for this sink."""
    wanted = [
        (field, {names} if isinstance(names, str) else set(names))
        for field, names in (("unit", table.unit), ("destinationId", table.destination), ("sourceId", table.source))
        if names
    ]
    if not wanted:
        return lambda line: True

    def is_wanted(line: bytes) -> bool:
        record = head_of(line).record
        return all(getattr(record, field) in names for field, names in wanted)

    return is_wanted


def oldest_waiting(source: Source, after: int, is_wanted: Callable[[bytes], bool]) -> bytes | None:
    """The first line above a seq that is for a sink, if it is among the next thousand."""
    lines = source.read(after, _LOOKED_AT, _LOOKED_AT_BYTES)
    return next((line for _, line in lines if is_wanted(line)), None)


def age_s(line: bytes | None, now: datetime) -> float:
    """Seconds since a line was written; 0 without one."""
    if line is None:
        return 0.0
    return round(max(0.0, (now - datetime.fromisoformat(head_of(line).processedAt)).total_seconds()), 3)

"""Which records a question is about, as values and as SQL; values are bound, names are fixed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from store.snapshot import SealedFile

__all__ = ["Filters", "Place", "at", "chosen", "conditions", "may_match"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Place = tuple[str, int, int]
"""Where a record stands in the order of records: destinationId, time in microseconds, seq."""


@dataclass(frozen=True)
class Filters:
    """Which records a question is about. Times are microseconds since the epoch, the end exclusive; no lists: all.

    Only records behind the place `after` match, for pages.
    """

    start_us: int | None = None
    end_us: int | None = None
    type: str | None = None
    destination_ids: tuple[str, ...] = ()
    source_ids: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    as_of: int | None = None
    after: Place | None = None


def conditions(filters: Filters) -> tuple[str, dict[str, Any]]:
    """The conditions on records, as SQL that goes on, and its parameters."""
    found, parameters = chosen(filters)
    if filters.start_us is not None:
        found.append("time >= $start_time")
        parameters["start_time"] = at(filters.start_us)
    if filters.end_us is not None:
        found.append("time < $end_time")
        parameters["end_time"] = at(filters.end_us)
    if filters.type is not None:
        found.append("type = $type")
        parameters["type"] = filters.type
    if filters.after is not None:
        found.append(
            "(destinationId > $after_destination OR (destinationId = $after_destination AND "
            "(time > $after_time OR (time = $after_time AND seq > $after_seq))))"
        )
        destination, time_us, seq = filters.after
        parameters |= {"after_destination": destination, "after_time": at(time_us), "after_seq": seq}
    return "".join(f" AND {condition}" for condition in found), parameters


def chosen(filters: Filters) -> tuple[list[str], dict[str, Any]]:
    """The conditions on names."""
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    for column, name, values in (
        ("destinationId", "destination_ids", filters.destination_ids),
        ("sourceId", "source_ids", filters.source_ids),
        ("reference", "refs", filters.references),
        ("unit", "units", filters.units),
    ):
        if len(values) == 1:
            conditions.append(f"{column} = ${name}")
            parameters[name] = values[0]
        elif values:
            conditions.append(f"{column} IN (SELECT unnest(${name}::VARCHAR[]))")  # a hash join, however many
            parameters[name] = list(values)
    return conditions, parameters


def may_match(file: SealedFile, filters: Filters, flushed: int) -> bool:
    """Whether a file can hold matching rows, by what the catalog knows of it."""
    return (
        file.min_seq <= flushed
        and (filters.start_us is None or file.max_time_us >= filters.start_us)
        and (filters.end_us is None or file.min_time_us < filters.end_us)
    )


def at(us: int) -> datetime:
    """A time as DuckDB takes it."""
    return _EPOCH + timedelta(microseconds=us)

"""Query parameters, read strictly: unknown, malformed and wrongly repeated ones are `400 invalid_parameter`."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from urllib.parse import parse_qsl, urlencode

from store.errors import QueryError
from store.filters import Filters
from store.times import parse_bound

__all__ = ["Parameters", "filters_of"]

_MAX_PAIRS = 10_000


class Parameters:
    """The parameters of one request, of which only `known` may be there."""

    def __init__(self, query_string: bytes, known: Collection[str]) -> None:
        self._values: dict[str, list[str]] = {}
        try:
            pairs = parse_qsl(
                query_string.decode("ascii"),
                keep_blank_values=True,
                strict_parsing=bool(query_string),
                errors="strict",
                max_num_fields=_MAX_PAIRS,
            )
        except ValueError:
            raise QueryError(
                f"the query string cannot be read: it is at most {_MAX_PAIRS} pairs name=value between &, in UTF-8, "
                "percent-encoded",
                parameter="",
            ) from None
        for name, value in pairs:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                known_ones = f"known are {', '.join(sorted(known))}" if known else "this path takes none"
                hint = f"did you mean {near[0]!r}?" if near else known_ones
                raise QueryError(f"there is no parameter {name!r}; {hint}", parameter=name)
            self._values.setdefault(name, []).append(value)

    def with_cursor(self, cursor: str) -> str:
        """The query string of the next page."""
        pairs = [(name, value) for name, values in self._values.items() if name != "cursor" for value in values]
        return urlencode([*pairs, ("cursor", cursor)])

    def many(self, name: str) -> tuple[str, ...]:
        """All values of a repeatable parameter."""
        return tuple(dict.fromkeys(self._values.get(name, ())))

    def one(self, name: str) -> str | None:
        """The value of a parameter that stands once at most."""
        values = self._values.get(name)
        if values is None:
            return None
        if len(values) > 1:
            raise QueryError(f"{name} stands {len(values)} times, and can stand once", parameter=name)
        return values[0]

    def flag(self, name: str) -> bool:
        """`true` or `false`, which is also the default."""
        return self.choice(name, ("false", "true")) == "true"

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        """One of a few values."""
        value = self.one(name)
        if value is not None and value not in allowed:
            raise QueryError(f"{name} is {value!r}; it can be {' or '.join(allowed)}", parameter=name)
        return value

    def whole(self, name: str, least: int, most: int) -> int | None:
        """A whole number in a range."""
        value = self.one(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdigit() and len(value) <= 19 and least <= int(value) <= most):
            raise QueryError(f"{name} is {value!r}; it must be a whole number from {least} to {most}", parameter=name)
        return int(value)

    def time(self, name: str) -> int | None:
        """An RFC 3339 time with an offset, in microseconds since the epoch, within the years of records."""
        value = self.one(name)
        if value is None:
            return None
        found = parse_bound(value)
        if found is not None:
            return found
        hint = "; a + in a URL must be written %2B" if " " in value else ""
        raise QueryError(
            f"{name} is {value!r}; it must be RFC 3339 with an offset, as in 2024-03-01T12:00:00Z{hint}", parameter=name
        )


def filters_of(parameters: Parameters) -> Filters:
    """The filters of an aggregation."""
    return Filters(
        start_us=parameters.time("startTime"),
        end_us=parameters.time("endTime"),
        type=parameters.choice("type", ("positive", "negative")),
        destination_ids=parameters.many("destinationId"),
        source_ids=parameters.many("sourceId"),
        references=parameters.many("reference"),
        units=parameters.many("unit"),
        as_of=parameters.whole("asOf", 0, (1 << 63) - 1),
    )

"""Which of the formats that we can answer in a client wants most (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from api.problems import ProblemError

__all__ = ["wanted"]


_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def wanted(accept: str | None, offered: Sequence[str]) -> str:
    """The media type to answer in; the first one offered where the client does not mind.

    Raises a 406 problem that names what there is.
    """
    if accept is None or not accept.strip():
        return offered[0]
    ranges = [_range(item) for item in accept.split(",") if item.strip()]
    # Of equal weights the one that stands first in `offered` wins: max takes the first.
    best = max(offered, key=lambda media_type: _weight(media_type, ranges))
    if _weight(best, ranges) <= 0:
        raise ProblemError(
            406,
            "not_acceptable",
            f"the answer cannot be had as {accept!r}; there is {', '.join(offered)}",
            headers={"vary": "Accept"},
            available=list(offered),
        )
    return best


def _range(item: str) -> tuple[str, float]:
    """One media range with its weight; parameters other than the weight do not matter here."""
    name, *parameters = (part.strip() for part in item.split(";"))
    weight = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "q":
            weight = float(value) if _WEIGHT.fullmatch(value.strip()) else 0.0
    return name.lower(), weight


def _weight(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """By the most specific range that covers the media type."""
    kind = media_type.partition("/")[0]
    for covering in (media_type, f"{kind}/*", "*/*"):
        weights = [weight for name, weight in ranges if name == covering]
        if weights:
            return max(weights)
    return 0.0

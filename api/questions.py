"""What an aggregation is asked, and what every form of its answer has: the seq it stands for and the next page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from store.errors import QueryError
from store.filters import Filters, Place
from store.schema import TIME_MAX_US

__all__ = ["Answer", "Question", "continued", "cursor_of"]


@dataclass(frozen=True)
class Question:
    """Which records or totals. `limit` (None: all) is for records; `max_rows` (0: none) is what the service allows."""

    filters: Filters
    include: Literal["records", "totals"] = "records"
    limit: int | None = None
    max_rows: int = 0


class Answer(NamedTuple):
    """The seq it stands for, the cursor of the next page (None: this is the last), and its bytes."""

    as_of: int
    cursor: str | None
    pieces: Iterator[bytes]


def continued(filters: Filters, cursor: str | None) -> Filters:
    """The filters of the next page. A cursor belongs to the filters that it was given for."""
    if cursor is None:
        return filters
    try:
        newest, told, *place = msgspec.json.decode(base64.urlsafe_b64decode(cursor.encode("ascii")), type=_CURSOR)
    except (ValueError, msgspec.MsgspecError):
        raise QueryError("cursor is not one that this service gave", parameter="cursor") from None
    if told != _digest(filters) or filters.as_of not in (None, newest):
        raise QueryError("cursor was given for other filters: send those again with it", parameter="cursor")
    return replace(filters, as_of=newest, after=tuple(place))


_Seq = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_CURSOR = tuple[_Seq, str, str, Annotated[int, Meta(ge=0, le=TIME_MAX_US)], _Seq]


def cursor_of(filters: Filters, as_of: int, place: Place | None) -> str | None:
    """The cursor of the page behind a place."""
    if place is None:
        return None
    return base64.urlsafe_b64encode(msgspec.json.encode((as_of, _digest(filters), *place))).decode("ascii")


def _digest(filters: Filters) -> str:
    """Of everything that must stay the same from page to page."""
    told = msgspec.json.encode(replace(filters, as_of=None, after=None))
    return hashlib.blake2b(told, digest_size=8).hexdigest()

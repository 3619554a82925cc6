"""`/rejected`: the dead letters, and sending the record of one again."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response, get, post

from api.parameters import Parameters
from api.ports import Reader
from api.problems import ProblemError
from api.records import Records
from store.errors import QueryError
from store.letters import Wanted, place_of

__all__ = ["Rejected"]

_LIMIT, _MAX_LIMIT = 100, 1_000
_ITEM_BYTES = 4 << 20
"""A page ends before its records take more."""


class Rejected:
    """The handlers, with what they need."""

    def __init__(self, reader: Reader, records: Records) -> None:
        self._reader = reader
        self._records = records
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="letters")

    def handlers(self) -> list[Any]:
        """The route handlers."""

        @get("/rejected")
        async def get_rejected(request: Request[Any, Any, Any]) -> Response[bytes]:
            parameters = Parameters(request.scope["query_string"], ("sourceId", "status", "file", "limit", "cursor"))
            wanted = Wanted(
                parameters.choice("status", ("conflict", "rejected", "resolved")),
                parameters.one("sourceId"),
                parameters.one("file"),
                _before(parameters.one("cursor")),
            )
            limit = parameters.whole("limit", 1, _MAX_LIMIT) or _LIMIT
            content = await asyncio.get_running_loop().run_in_executor(self._threads, self._page, wanted, limit)
            return Response(content, media_type="application/json")

        @post("/rejected/{letter_id:str}/resubmit", status_code=HTTPStatus.OK)
        async def resubmit(request: Request[Any, Any, Any]) -> Response[bytes]:
            letter_id = str(request.path_params["letter_id"])
            Parameters(request.scope["query_string"], ())
            find = self._reader.letters.find
            if await asyncio.get_running_loop().run_in_executor(self._threads, find, letter_id) is None:
                raise ProblemError(404, "not_found", f"there is no dead letter {letter_id!r}")
            return await self._records.resubmit(request, letter_id)

        return [get_rejected, resubmit]

    def _page(self, wanted: Wanted, limit: int) -> bytes:
        """One page as JSON."""
        items: list[dict[str, Any]] = []
        size = 0
        cursor = None
        letters = self._reader.letters
        for letter in letters.newest_first(wanted):
            if len(items) == limit or size > _ITEM_BYTES:
                cursor = items[-1]["id"]
                break
            items.append({**letter, "resolvedBy": _told(letters.resolution(letter["id"]))})
            size += len(letter["record"] or "")
        return msgspec.json.encode({"items": items, "nextCursor": cursor})


def _told(resolution: dict[str, Any] | None) -> dict[str, Any] | None:
    """What became of a letter that was sent again with success."""
    if resolution is None:
        return None
    return {name: resolution[name] for name in ("id", "recordId", "seq", "time")}


def _before(cursor: str | None) -> tuple[int, int] | None:
    if cursor is None:
        return None
    place = place_of(cursor)
    if place is None:
        raise QueryError(f"cursor is {cursor!r}; it must be the nextCursor of the page before", parameter="cursor")
    return place

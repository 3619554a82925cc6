"""Long answers: made in threads, sent as fast as the client reads, stopped when it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from litestar import Request

from api.problems import ProblemError
from store.engine import Stop

__all__ = ["Streams", "in_sections"]

Pieces = Generator[bytes, None, None]

_LEAST_BYTES = 64 << 10
_MOST_BYTES = 256 << 10
"""A section is worth a write and a change of threads, and small enough that many may wait to be read."""


class Streams:
    """At most `concurrent_queries` answers are worked on, `waiting_queries` wait for their first byte, and
    `open_answers` are open at any moment.

    A client that reads slowly holds no thread: a thread makes one section at a time.
    """

    def __init__(self, concurrent_queries: int, waiting_queries: int, open_answers: int) -> None:
        self._threads = ThreadPoolExecutor(concurrent_queries, thread_name_prefix="query")
        self._may_begin = concurrent_queries + waiting_queries
        self._may_be_open = open_answers
        self._beginning = 0
        self._open = 0

    async def opened(self, request: Request[Any, Any, Any], make: Callable[[Stop], Pieces]) -> AsyncIterator[bytes]:
        """The sections of an answer, of which the first is there: what it raises can still become a problem."""
        if self._beginning >= self._may_begin:
            raise _busy("too_many_queries", f"{self._beginning} questions wait for their answers (api.waiting_queries)")
        if self._open >= self._may_be_open:
            raise _busy("too_many_answers", f"{self._open} answers are being read (api.open_answers)")
        stop = Stop()
        sections = self._sections(make(stop), stop)
        first = asyncio.ensure_future(_next(sections))
        gone = asyncio.ensure_future(_disconnected(request))
        self._beginning += 1
        try:
            await asyncio.wait((first, gone), return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                raise ProblemError(400, "disconnected", "the client went away before its answer was there")
        finally:
            self._beginning -= 1
            gone.cancel()
            if not first.done():
                first.cancel()
        return _chained(first.result(), sections)

    async def _sections(self, pieces: Pieces, stop: Stop) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        under_way: asyncio.Future[bytes | None] | None = None
        self._open += 1
        try:
            while True:
                under_way = loop.run_in_executor(self._threads, next, pieces, None)
                section = await asyncio.shield(under_way)
                if section is None:
                    return
                yield section
        finally:
            self._open -= 1
            stop.set()
            if under_way is not None and not under_way.done():
                under_way.add_done_callback(lambda step: self._close(pieces, step))
            else:
                self._threads.submit(pieces.close)

    def _close(self, pieces: Pieces, step: asyncio.Future[bytes | None]) -> None:
        """After a step that nobody waits for any more; that it was interrupted is what was asked for."""
        if not step.cancelled():
            step.exception()
        self._threads.submit(pieces.close)


def in_sections(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in sections; there is one at least."""
    section = bytearray()
    for piece in pieces:
        section += piece
        if len(section) < _LEAST_BYTES:
            continue
        for begin in range(0, len(section), _MOST_BYTES):
            yield bytes(section[begin : begin + _MOST_BYTES])
        section.clear()
    yield bytes(section)


def _busy(code: str, detail: str) -> ProblemError:
    return ProblemError(503, code, f"{detail}: try again later", headers={"retry-after": "1"})


async def _next(sections: AsyncIterator[bytes]) -> bytes:
    return await anext(sections)


async def _chained(first: bytes, sections: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """All sections. `sections` has begun, so it is closed (and frees its query) even if this one never begins."""
    yield first
    async for section in sections:
        yield section


async def _disconnected(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

"""`/feeds`: the committed lines of an outbox, as NDJSON (at once or when there are some) or as server-sent events.

Whoever waits holds no thread: a commit rings one bell on the event loop, and those that wait look whether it was for
them. A slow reader is sent nothing more until it has read, and at a stop every answer ends in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from litestar import Request, Response, get
from litestar.response import Stream

from api.negotiation import wanted
from api.parameters import Parameters
from api.ports import ApiSettings, Reader
from api.problems import ProblemError
from outbox.feed import Feed
from outbox.news import News
from store.errors import QueryError

__all__ = ["Feeds"]

Req = Request[Any, Any, Any]
T = TypeVar("T")

_NDJSON, _EVENTS = "application/x-ndjson", "text/event-stream"
_OFFERED = (_NDJSON, "application/ndjson", "application/jsonl", _EVENTS)
_PARAMETERS = ("after", "limit", "wait")
_LIMIT, _MAX_LIMIT = 1_000, 100_000
_MAX_WAIT_S = 300
_MAX_SEQ = (1 << 63) - 1
_PAGE_LINES = 1_000
_PAGE_BYTES = 256 << 10
"""What is read at once; one line may be longer."""

_THREADS = 4
_WAIT = re.compile(r"[0-9]{1,32}(\.[0-9]{1,320})?([eE][+-]?[0-9]{1,3})?")


class Feeds:
    """The handlers, with what they need."""

    def __init__(self, reader: Reader, settings: ApiSettings) -> None:
        self._reader = reader
        self._heartbeat_s = settings.heartbeat_s
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="feed")
        self._bell: _Bell | None = None

    def handlers(self) -> list[Any]:
        """The route handlers."""

        @get("/feeds/notifications")
        async def get_notifications(request: Request[Any, Any, Any]) -> Response[Any]:
            return await self.answer(request, "notifications")

        @get("/feeds/alerts")
        async def get_alerts(request: Request[Any, Any, Any]) -> Response[Any]:
            return await self.answer(request, "alerts")

        return [get_notifications, get_alerts]

    async def answer(self, request: Req, name: str) -> Response[Any]:
        """The lines above `after`; what is wrong with the question is answered before the first byte."""
        parameters = Parameters(request.scope["query_string"], _PARAMETERS)
        after = parameters.whole("after", 0, _MAX_SEQ) or 0
        limit = parameters.whole("limit", 1, _MAX_LIMIT)
        wait_s = _wait_of(parameters.one("wait"))
        media_type = wanted(",".join(request.headers.getall("accept", [])), _OFFERED)
        if self._bell is None:
            self._bell = _Bell(self._reader.news)
        walk = _Walk(self._reader.feed(name), self._bell, self._threads, after)
        headers = {"vary": "Accept", "cache-control": "no-store"}
        last_event = _last_event(request.headers.getall("last-event-id", []), after)
        if media_type == _EVENTS:
            walk.after = last_event
            # limit and wait end the stream, where they are given
            until = None if wait_s is None else time.monotonic() + wait_s
            events = _events(walk, limit, until, self._heartbeat_s)
            return Stream(events, media_type=_EVENTS, headers={**headers, "x-accel-buffering": "no"})
        limit = _LIMIT if limit is None else limit
        first = await _unless_gone(request, walk.next(limit, time.monotonic() + (wait_s or 0)))
        return Stream(_ndjson(walk, first, limit), media_type=media_type, headers=headers)


class _Bell:
    """Wakes everybody who waits on the event loop, once for however many commits came since."""

    def __init__(self, news: News) -> None:
        self.news = news
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()
        self._waiting = 0
        self._ringing = False

    @contextlib.contextmanager
    def waiting(self) -> Any:
        """Give the event that the next commit sets; what was committed before must be looked for afterwards."""
        if not self._waiting:
            listening = self.news.listening(self._ring)
            listening.__enter__()
            self._listening = listening
        self._waiting += 1
        try:
            yield self._rung
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._listening.__exit__(None, None, None)

    def _ring(self) -> None:
        """Called by the committer."""
        if not self._ringing:
            self._ringing = True
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._ringing = False
        rung, self._rung = self._rung, asyncio.Event()
        rung.set()


class _Walk:
    """One client's way through a feed. `after` is the seq up to which it has seen everything."""

    def __init__(self, feed: Feed, bell: _Bell, threads: ThreadPoolExecutor, after: int) -> None:
        self.after = after
        self._feed = feed
        self._bell = bell
        self._threads = threads

    @property
    def is_over(self) -> bool:
        """Whether the service stops."""
        return self._bell.news.is_over

    async def next(self, limit: int, until: float) -> list[tuple[int, bytes]]:
        """The next lines; none where the time is up (`until`, of the monotonic clock) or the service stops."""
        while True:
            with self._bell.waiting() as rung:
                lines = await self._read(min(limit, _PAGE_LINES))
                left = until - time.monotonic()
                if lines or left <= 0 or self.is_over:
                    return lines
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(rung.wait(), left)

    async def _read(self, limit: int) -> list[tuple[int, bytes]]:
        newest = self._feed.newest()
        if newest <= self.after:
            return []
        loop = asyncio.get_running_loop()
        lines = await loop.run_in_executor(self._threads, self._feed.read, self.after, limit, _PAGE_BYTES)
        self.after = lines[-1][0] if lines else max(self.after, newest)
        return lines


async def _ndjson(walk: _Walk, lines: list[tuple[int, bytes]], limit: int) -> AsyncIterator[bytes]:
    while lines:
        yield b"".join([line + b"\n" for _, line in lines])
        limit -= len(lines)
        lines = await walk.next(limit, 0.0) if limit else []


async def _events(walk: _Walk, limit: int | None, until: float | None, heartbeat_s: float) -> AsyncIterator[bytes]:
    """Events without end, but for a limit, a time or a stop; a comment when nothing happens, so that proxies and the
    client know that the connection lives.
    """
    yield b": oncelake\n\n"
    while limit is None or limit > 0:
        beat = time.monotonic() + heartbeat_s
        lines = await walk.next(limit or _PAGE_LINES, beat if until is None else min(beat, until))
        if lines:
            yield b"".join([b"id: %d\ndata: %s\n\n" % (seq, line) for seq, line in lines])
            limit = None if limit is None else limit - len(lines)
        elif walk.is_over or (until is not None and time.monotonic() >= until):
            return
        else:
            yield b":\n\n"


def _wait_of(text: str | None) -> float | None:
    if text is None:
        return None
    if _WAIT.fullmatch(text) is None or float(text) > _MAX_WAIT_S:
        raise QueryError(f"wait is {text!r}; it must be seconds from 0 to {_MAX_WAIT_S}", parameter="wait")
    return float(text)


def _last_event(given: list[str], after: int) -> int:
    """Where a client that comes back goes on: stronger than `after`, which its URL still has.

    An empty one names no event.
    """
    if given in ([], [""]):
        return after
    text = given[0]
    if len(given) > 1 or not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= _MAX_SEQ):
        raise QueryError(f"Last-Event-ID is {', '.join(given)!r}; it must be one seq", parameter="Last-Event-ID")
    return int(text)


async def _unless_gone(request: Req, answer: Awaitable[T]) -> T:
    """Wait for an answer for as long as the client does."""
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ProblemError(400, "disconnected", "the client went away before its answer was there")
        return work.result()
    finally:
        gone.cancel()
        work.cancel()


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

"""How the service ends: requests that are under way are answered, new ones refused, and all of it has its time.

What has not ended in time is cut off: a kill is safe at any moment, and the next start goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import MEDIA_TYPE, problem_body

__all__ = ["Draining", "end_within"]

logger = logging.getLogger("oncelake.service")

_DRAIN_SHARE = 0.6
"""Of the time of a shutdown, for requests under way; the rest is for files, the last flush and the sinks."""

_REFUSAL = "the service is stopping: send it again in a moment, what was stored already is a duplicate"


class Draining:
    """An application that can be told to take no more requests."""

    def __init__(self, app: ASGIApp, shutdown_s: float) -> None:
        self._app = app
        self._drain_s = _DRAIN_SHARE * shutdown_s
        self._is_stopping = False
        self._running: set[asyncio.Task[object]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        task = asyncio.current_task()
        if scope["type"] != ScopeType.HTTP or task is None:
            await self._app(scope, receive, send)
            return
        if self._is_stopping:
            await _refuse(send)
            return
        has_begun = False

        async def sending(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        self._running.add(task)
        try:
            await self._app(scope, receive, sending)
        except asyncio.CancelledError:
            if not self._is_stopping:
                raise
            if not has_begun:  # one that has begun ends without its last chunk
                await _refuse(send)
        finally:
            self._running.discard(task)

    async def drain(self) -> None:
        """Refuse what comes and wait for what is under way; what has not ended in its time is cut off."""
        self._is_stopping = True
        if self._running:
            await asyncio.wait(list(self._running), timeout=self._drain_s)
        if self._running:
            logger.warning("%d requests did not end in time and are cut off", len(self._running))
        for task in list(self._running):
            task.cancel()


async def _refuse(send: Send) -> None:
    """503, as any other problem."""
    body = problem_body(503, "stopping", _REFUSAL)
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"retry-after", b"5"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def end_within(seconds: float, code: Callable[[], int]) -> None:
    """End the process after so many seconds, whatever is under way by then."""

    def end() -> None:
        logger.warning("the shutdown took longer than api.shutdown_s: what is left goes on at the next start")
        for handler in logging.getLogger().handlers:
            handler.flush()
        os._exit(code())

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()

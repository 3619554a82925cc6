"""Replies from the committer's thread to the event loop: all of one commit in one step.

`asyncio.wrap_future` wakes the loop for each of them, which at 128 clients is most of what a commit costs.
"""

from __future__ import annotations

import asyncio
from collections import deque

from store.outcomes import Reply
from store.promise import Promise

__all__ = ["Replies"]


class Replies:
    """Awaitable replies for one event loop."""

    def __init__(self) -> None:
        self._done: deque[tuple[asyncio.Future[Reply], Promise[Reply]]] = deque()
        self._is_woken = False

    def of(self, future: Promise[Reply]) -> asyncio.Future[Reply]:
        """What the future gives, for a coroutine of the running loop."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Reply] = loop.create_future()

        def done(future: Promise[Reply]) -> None:
            self._done.append((waiter, future))
            if not self._is_woken:
                self._is_woken = True
                loop.call_soon_threadsafe(self._deliver)

        future.add_done_callback(done)
        return waiter

    def _deliver(self) -> None:
        self._is_woken = False  # before the first is taken: what comes after it wakes the loop again
        while self._done:
            waiter, future = self._done.popleft()
            if waiter.done():
                continue  # the client went away
            failure = future.exception()
            if failure is not None:
                waiter.set_exception(failure)
            else:
                waiter.set_result(future.result())

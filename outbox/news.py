"""Word of a commit, to whoever waits for lines in this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

__all__ = ["News"]


class News:
    """The committer tells it of every commit; listeners are called in its thread, and must be quick."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: tuple[Callable[[], None], ...] = ()
        self.is_over = False

    def tell(self) -> None:
        """Something was committed."""
        for listener in self._listeners:
            listener()

    def end(self) -> None:
        """The service stops: whoever waits should stop waiting."""
        self.is_over = True
        self.tell()

    @contextlib.contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call a listener after every commit, for as long as the context lasts."""
        with self._lock:
            self._listeners += (listener,)
        try:
            yield
        finally:
            with self._lock:
                self._listeners = tuple(other for other in self._listeners if other is not listener)

    def wait(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Block until a commit makes it hold, the service stops or the time is up; whether it holds."""
        told = threading.Event()
        with self.listening(told.set):
            if not holds() and not self.is_over:
                told.wait(timeout_s)
        return holds()

"""A result that another thread will give: what of `concurrent.futures.Future` is needed here, at a tenth of its cost.

A Future makes a condition and a lock when it is made, which was 18 % of the event loop's time at 128 clients. One lock
for all promises is enough, because it is held for a few assignments only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Promise"]

T = TypeVar("T")
U = TypeVar("U")

_lock = threading.Lock()


class Promise(Generic[T]):
    """Settled once, by `set_result` or `set_exception`; callbacks run in the thread that does it."""

    __slots__ = ("_callbacks", "_error", "_is_done", "_value")

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Promise[T]], None]] = []
        self._is_done = False
        self._value: T | None = None
        self._error: BaseException | None = None

    def set_result(self, value: T) -> None:
        """Give the result."""
        self._settle(value, None)

    def set_exception(self, error: BaseException) -> None:
        """Give the error that `result` raises."""
        self._settle(None, error)

    def add_done_callback(self, callback: Callable[[Promise[T]], None]) -> None:
        """Call back once it is settled, at once if it is."""
        with _lock:
            if not self._is_done:
                self._callbacks.append(callback)
                return
        callback(self)

    def done(self) -> bool:
        """Whether it is settled."""
        return self._is_done

    def exception(self, timeout_s: float | None = None) -> BaseException | None:
        """Wait, and give the error, if it is one. `TimeoutError` where it takes too long."""
        if not self._is_done:
            settled = threading.Event()
            self.add_done_callback(lambda _: settled.set())
            if not settled.wait(timeout_s):
                raise TimeoutError
        return self._error

    def result(self, timeout_s: float | None = None) -> T:
        """Wait, and give the result or raise the error."""
        error = self.exception(timeout_s)
        if error is not None:
            raise error
        return self._value  # type: ignore[return-value]

    def then(self, change: Callable[[T], U]) -> Promise[U]:
        """What becomes of the result by `change`, which whoever asks for it computes in its own thread."""
        return _Changed(self, change)

    def _settle(self, value: T | None, error: BaseException | None) -> None:
        with _lock:
            if self._is_done:
                raise RuntimeError("a promise is settled once")
            self._value, self._error, self._is_done = value, error, True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


class _Changed(Promise[U], Generic[T, U]):
    """A promise that another one keeps."""

    __slots__ = ("_change", "_other")

    def __init__(self, other: Promise[T], change: Callable[[T], U]) -> None:
        self._other, self._change = other, change

    def add_done_callback(self, callback: Callable[[Promise[U]], None]) -> None:
        self._other.add_done_callback(lambda _: callback(self))

    def done(self) -> bool:
        return self._other.done()

    def exception(self, timeout_s: float | None = None) -> BaseException | None:
        return self._other.exception(timeout_s)

    def result(self, timeout_s: float | None = None) -> U:
        return self._change(self._other.result(timeout_s))

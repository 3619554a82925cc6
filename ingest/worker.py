"""A thread that works on a store again and again, and what becomes of its errors."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from store.errors import DiskFullError
from store.store import Store

__all__ = ["Worker"]


class Worker(ABC):
    """A thread called `name`, which makes a `what` each time. `problem` is what is wrong with that, or None."""

    def __init__(self, store: Store, name: str, what: str, retry_s: float = 1.0) -> None:
        self._store = store
        self._what = what
        self._retry_s = retry_s
        self._logger = logging.getLogger(f"oncelake.{name}")
        self._wakeup = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.problem: str | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._wakeup.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    @abstractmethod
    def _run(self) -> None:
        """What the thread does."""

    def _wait(self, timeout_s: float | None = None) -> None:
        """Until it is woken."""
        self._wakeup.wait(timeout_s)
        self._wakeup.clear()

    def _tried(self, work: Callable[[], object]) -> bool:
        """Do it once. False where it ended in an error that ends the service; on a full disk it is tried again."""
        try:
            work()
        except DiskFullError as error:
            self.problem = str(error)
            self._logger.warning("%s; it is tried again", error)
            self._stopping.wait(self._retry_s)
            self._wakeup.set()
        except Exception as error:
            self.problem = f"the {self._what} failed: {error}"
            self._store.failure = self._store.failure or error
            self._logger.critical("the %s failed, the service must be started again", self._what, exc_info=True)
            return False
        return True

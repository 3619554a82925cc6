"""How long a look at memory takes that nobody else touches: what the machine itself adds to everybody's waits.

Under a hypervisor that takes memory away, or maps it anew, the first look at each 2 MiB of it waits, 0.1 to 0.8 ms
where it was measured, with no page fault that the guest could count. A commit that looks into runs of gigabytes waits
as often as they have such places; here it is seen apart from that.
"""

from __future__ import annotations

import statistics
import threading
import time
from types import TracebackType

import numpy as np

__all__ = ["Places"]

_PLACE_BYTES = 2 << 20
_PLACES = 128
_PAUSE_S = 0.05

_ALL_TAKEN_MS = 3.0
"""A look at all places takes 0.2 to 1.4 ms of processor time, and 3.4 to 400 where all of them were taken away."""

_NEAR_S = 0.1
"""What is taken away is so for everybody, but not seen by all in the same moment."""


class Places:
    """Meanwhile a byte of each 2 MiB of 256 MiB is looked at, twenty times a second."""

    def __init__(self) -> None:
        self._memory = np.ones(_PLACES * _PLACE_BYTES, np.uint8)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._looks: list[tuple[float, float]] = []

    def __enter__(self) -> Places:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(_PAUSE_S):
            at, began = time.monotonic(), time.thread_time()
            self._memory[::_PLACE_BYTES].sum()
            self._looks.append((at, (time.thread_time() - began) * 1e3))  # to the guest it is work, and no wait

    def taken(self, began: float, ended: float) -> bool:
        """Whether all of them were taken away at some moment of a time (`time.monotonic`)."""
        return any(
            began - _NEAR_S - took / 1e3 < at < ended + _NEAR_S for at, took in self._looks if took > _ALL_TAKEN_MS
        )

    def told(self) -> str:
        """Of all looks so far, for a note."""
        times = [took for _, took in self._looks] or [0.0]
        return (
            f"a look at {_PLACES} places of 256 MiB of the bench itself took {statistics.median(times):.2f} ms "
            f"meanwhile, {max(times):.1f} at most"
        )

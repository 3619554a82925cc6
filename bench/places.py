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


class Places:
    """Meanwhile a byte of each 2 MiB of 256 MiB is looked at, twenty times a second."""

    def __init__(self) -> None:
        self._memory = np.ones(_PLACES * _PLACE_BYTES, np.uint8)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._times: list[float] = []

    def __enter__(self) -> Places:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(_PAUSE_S):
            began = time.perf_counter()
            self._memory[::_PLACE_BYTES].sum()
            self._times.append((time.perf_counter() - began) * 1e3)

    def told(self) -> str:
        """Of all looks so far, for a note."""
        times = self._times or [0.0]
        return (
            f"a look at {_PLACES} places of 256 MiB of the bench itself took {statistics.median(times):.2f} ms "
            f"meanwhile, {max(times):.0f} at most"
        )

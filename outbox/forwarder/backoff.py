"""How long to wait after a failure."""

from __future__ import annotations

__all__ = ["FIRST_S", "LONGEST_S", "delay_s"]

FIRST_S = 0.5
LONGEST_S = 60.0


def delay_s(failures: int, chance: float) -> float:
    """Seconds until the next attempt after so many failures in a row (1 or more): doubled each time, to a minute.

    `chance` from [0, 1) takes up to half of it off, so that sinks that failed together do not come back together.
    """
    return min(LONGEST_S, FIRST_S * 2.0 ** min(failures - 1, 16)) * (1.0 - chance / 2)

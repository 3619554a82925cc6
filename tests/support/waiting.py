"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["until"]

_PATIENCE_S = 30.0


def until(what: Callable[[], bool]) -> None:
    """Look again and again until it is so."""
    end = time.monotonic() + _PATIENCE_S
    while not what():
        assert time.monotonic() < end, "it did not come to be so"
        time.sleep(0.005)

"""Priorities of threads: what nobody waits for gives way to what answers clients."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

__all__ = ["give_way"]

_NICE = 5


def give_way() -> None:
    """Run this thread, and those that it starts, after the others (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)

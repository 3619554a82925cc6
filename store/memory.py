"""What the C library keeps of freed memory, hundreds of MB after a large flush: less, and given back to the system."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable

import pyarrow as pa

__all__ = ["give_back_memory", "share_memory"]

_M_ARENA_MAX = -8


def share_memory() -> None:
    """Let the threads of this process allocate from as many heaps as it has cores (glibc has eight times as many).

    Each heap keeps its free memory: with 16 of them a bulk load takes 90 MB more, and is no faster.
    """
    found = getattr(ctypes.CDLL(None), "mallopt", None)
    if found is not None:
        found(_M_ARENA_MAX, os.cpu_count() or 1)


def give_back_memory() -> None:
    """Take about 10 ms to do so, beside the other threads."""
    pa.default_memory_pool().release_unused()
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], int]:
    """`malloc_trim` of glibc; nothing where the C library has none."""
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found or (lambda _: 0)

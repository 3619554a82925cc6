"""Free memory, given back to the system: allocators keep what a large flush has needed, hundreds of MB."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import pyarrow as pa

__all__ = ["give_back_memory"]


def give_back_memory() -> None:
    """Take about 10 ms to do so, beside the other threads."""
    pa.default_memory_pool().release_unused()
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], int]:
    """`malloc_trim` of glibc; nothing where the C library has none."""
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found or (lambda _: 0)

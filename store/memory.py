"""What the C library keeps of freed memory, hundreds of MB after a large flush: less, and given back to the system."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

__all__ = ["bytes_of", "give_back_memory", "resident_bytes", "share_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_PR_SET_THP_DISABLE = 41

_LARGE_BYTES = 32 << 20
"""The most that glibc lets the threshold be above which each allocation is mapped, and unmapped when it is freed."""

_NEVER_BYTES = 1 << 30

_KEPT_BYTES = 600 << 20
"""So much the process may have before it gives back what is free: a bulk load that has to ask for it again after each
flush takes a tenth more CPU."""


def bytes_of(amount: str) -> int:
    """How many an amount of memory such as "192MB" or "1.5 GiB" is."""
    found = re.fullmatch(r"(?i)([0-9.]+) ?([kmgt])(i?)b", amount)
    assert found is not None
    return int(Decimal(found[1]) * (1024 if found[3] else 1000) ** (" kmgt".index(found[2].lower())))


def share_memory() -> None:
    """Let all threads share as many heaps as there are cores, and use what is free in them again.

    Each heap keeps its free memory: glibc has eight times as many, 90 MB more in a bulk load. So has Arrow of its own,
    which is told not to in `service/__init__.py`, before it is loaded. Arrays of a chunk are not mapped anew each time
    (what is mapped is cleared first).

    Nor are pages of 2 MB asked for (Linux), as NumPy does for large arrays: beside a page cache that fills the memory
    the kernel has to make room for each of them first, which was an eighth of the processor time of a bulk load.
    """
    library = ctypes.CDLL(None)
    allocates = getattr(library, "mallopt", None)
    if allocates is not None:
        allocates(_M_ARENA_MAX, os.cpu_count() or 1)
        allocates(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        allocates(_M_TRIM_THRESHOLD, _NEVER_BYTES)
    if sys.platform == "linux":
        library.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)


def give_back_memory(above: int = _KEPT_BYTES) -> None:
    """Give what is free back to the system where the process has more than so many bytes of its own.

    Takes about 10 ms, beside the other threads.
    """
    if resident_bytes().get("RssAnon", above) >= above:
        _trim()(0)


def resident_bytes() -> dict[str, int]:
    """`RssAnon`, the memory of this process that is its own, and `RssFile`, mapped files; empty where nobody says."""
    try:
        told = Path("/proc/self/status").read_text()
    except OSError:
        return {}
    return {name: int(size) << 10 for name, size in re.findall(r"^(Rss(?:Anon|File)):\s+(\d+) kB", told, re.MULTILINE)}


@functools.cache
def _trim() -> Callable[[int], int]:
    """`malloc_trim` of glibc; nothing where the C library has none."""
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found or (lambda _: 0)

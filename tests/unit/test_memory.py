"""The heaps of the C library: threads share a few, so that free memory is not kept once for each thread."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

COUNTED = """
import ctypes, sys, threading
from store.memory import share_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
if sys.argv[1] == "shared":
    share_memory()
barrier = threading.Barrier(64)

def allocate():
    barrier.wait()
    for _ in range(1_000):
        libc.malloc(100)
    barrier.wait()

threads = [threading.Thread(target=allocate) for _ in range(64)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def heaps(how: str) -> int:
    """How many heaps 64 threads have, in a process of its own."""
    told = subprocess.run([sys.executable, "-c", COUNTED, how], capture_output=True, text=True, check=True).stdout
    return told.count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other heaps")
def test_threads_share_as_many_heaps_as_there_are_cores() -> None:
    """Without that each of them would have one of its own, up to eight times the cores."""
    cores = os.cpu_count() or 1
    assert heaps("shared") <= cores < heaps("apart")

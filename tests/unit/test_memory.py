"""The heaps of the C library: threads share a few, and what is free in them is given back where there is much."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
from typing import cast

import pytest

from ingest import flusher
from ingest.flusher import Flusher
from service.serve import modules_kept
from store.store import Store

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


GIVEN_BACK = """
import service
import numpy as np, pyarrow as pa
from store.memory import give_back_memory, resident_bytes, share_memory

share_memory()
assert pa.default_memory_pool().backend_name == "system"
arrays = [np.ones(1 << 17) for _ in range(200)]  # of a megabyte
pinned = np.ones(1 << 17)
print(resident_bytes()["RssAnon"])
del arrays
print(resident_bytes()["RssAnon"])
give_back_memory()
print(resident_bytes()["RssAnon"])
give_back_memory(above=0)
print(resident_bytes()["RssAnon"])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep their memory in other ways")
def test_what_is_free_is_kept_until_it_is_given_back() -> None:
    """A bulk load uses it again; of little nothing is given back, unless all of it is to be."""
    told = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True).stdout
    held, freed, little, given = map(int, told.split())
    assert held > 200 << 20
    assert min(freed, little) > held - (10 << 20)
    assert given < held - (180 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody is asked for pages of 2 MB")
def test_pages_of_two_megabytes_are_not_asked_for() -> None:
    """NumPy asks for them on its own: PR_GET_THP_DISABLE says whether the kernel listens."""
    asked = "import ctypes; from store.memory import share_memory; prctl = ctypes.CDLL(None).prctl\n"
    asked += "prctl(41, 0, 0, 0, 0)\n"  # a process has it from the one that started it
    asked += "print(prctl(42, 0, 0, 0, 0)); share_memory(); print(prctl(42, 0, 0, 0, 0))"
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["0", "1"]


class Flushed:
    """A store that has so many rows to flush, one after the other."""

    def __init__(self, *rows: int) -> None:
        self._rows = iter(rows)

    def flush_once(self, is_waited_for: object) -> int:
        return next(self._rows)


def test_all_is_given_back_once_a_load_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first flush that is no part of a load, and not again at each of the next."""
    asked: list[str] = []

    def give_back_memory(above: int | None = None) -> None:
        asked.append("what is free above a bound" if above is None else f"all above {above}")

    monkeypatch.setattr(flusher, "give_back_memory", give_back_memory)
    tried = Flusher(cast("Store", Flushed(100_000, 100_000, 10, 0, 0, 100_000, 0)), 5.0, 1, 1)
    counts = []
    for _ in range(7):
        tried.run_once()
        counts.append(len(asked))
    assert counts == [1, 2, 3, 3, 3, 4, 5]
    assert (asked[0], asked[2], asked[4]) == ("what is free above a bound", "all above 0", "all above 0")


def test_modules_are_not_looked_through_for_cycles_while_it_serves() -> None:
    """A full collection went through all of them, with the interpreter held for longer than a commit takes."""
    before = gc.get_freeze_count()
    with modules_kept():
        assert gc.get_freeze_count() > before + 10_000
        assert len(gc.get_objects()) < 10_000
    assert gc.get_freeze_count() == 0

"""A merged run takes the place of those that it stands for, a part of the hashes after another.

A run of gigabytes that is to be looked up must be in memory, and until it is, so must those that it replaces. Where
there is no room for both, each pushes the other out, and every commit waits for a disk: for seconds where it was
measured. So the first part of the new run is read, takes over, and the memory of the others' first part is given back,
before the next one is read. Whoever looks sees one or the other of each part, in one step.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from store.runs import HASHES, Run

__all__ = ["takeover"]

_PART_BYTES = 256 << 20
"""Of the new run, at most: the room that it needs beside the others."""

_PATIENCE_S = 2.0
"""A commit looks into runs for less: what is still looked into then has its pages read again."""

_CUT_ROWS = 1 << 20
"""A run of so many rows may be cut within a page: what is left of it gets new filters each time."""


def takeover(old: Mapping[Path, Run], new: Run) -> Iterator[list[Run]]:
    """What stands for all rows after each step; the last time that is the new run alone. `old` names their files."""
    before = [*map(weakref.ref, old.values())]
    old = {path: run.part(0, HASHES) for path, run in old.items()}  # that nobody looks into
    standing = [run.part(0, HASHES) for run in old.values()]
    yield standing
    low = 0
    for high in _bounds([*old.values(), new], new.bytes):
        new.touch(low, high)
        before += map(weakref.ref, standing)
        standing = [new.part(0, high), *(run.part(high, HASHES) for run in old.values())]
        yield standing
        _wait(before)
        before.clear()
        for path, run in old.items():
            run.forget(path, low, high)
        low = high
    new.touch(low)
    yield [new]


def _wait(runs: Sequence[weakref.ref[Run]]) -> None:
    """Until nobody looks into them any more, or a commit would be over long since."""
    end = time.monotonic() + _PATIENCE_S
    while any(run() is not None for run in runs) and time.monotonic() < end:
        time.sleep(0.002)


def _bounds(runs: Sequence[Run], size: int) -> list[int]:
    """Hashes at even distances, at which all runs are cut but for small ones."""
    step = HASHES >> (size // _PART_BYTES).bit_length()
    large = [run for run in runs if run.rows > _CUT_ROWS]
    return [bound for bound in range(step, HASHES, step) if all(run.is_cut_at(bound) for run in large)]

"""A short history of a store in a process of its own: `python -m tests.support.outside ROOT`.

After each step it prints how many records are stored: they were answered. It ends with 1 where the service would stop.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from store.errors import DiskFullError
from store.files import Disk
from tests.support.direct import START_US, record_of
from tests.support.model import Canonical, Model
from tests.support.scenarios import Run, Step, compact, flush, merge, reopen

__all__ = ["HISTORY"]


def _one_day(first: int, last: int) -> list[Canonical | None]:
    return [record_of(number, time=START_US) for number in range(first, last)]


HISTORY: list[list[Canonical | None] | Step] = [
    *(step for number in range(4) for step in (_one_day(3 * number, 3 * number + 3), flush)),
    merge,
    compact,
    [*(record_of(number) for number in range(12, 18)), None],
    flush,
    reopen,
    _one_day(18, 20),
    flush,
    compact,
    _one_day(20, 22),
]
"""Batches, and what is done between them."""


def main() -> None:
    """All of it; what finds the disk full is tried again, as the service does."""
    os.getpid = lambda: 1  # it stands in a name: the files are to be those of the history that was recorded
    run = Run(Path(sys.argv[1]), Disk(), Model())
    for step in HISTORY:
        try:
            done(run, step)
        except DiskFullError:
            done(run, step)
        print(len(run.model.stored), flush=True)
    run.close()


def done(run: Run, step: list[Canonical | None] | Step) -> None:
    """One step."""
    if isinstance(step, list):
        run.post(step)
    else:
        step(run)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)

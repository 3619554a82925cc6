"""The committed records that a start does not find in the Parquet yet: read again from the notification log.

There may be a million of them, and nobody is answered before they are here, so they are read on two cores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from store.errors import MEND, CorruptionError
from store.fresh import Committed
from store.hashing import Hasher
from store.hot import Hot
from store.log import checked, lines_after, parse_notifications
from store.recovery import JournalState, committed

__all__ = ["read_unflushed"]

_READERS = 2
"""Threads, each with a piece of 8 MiB in hand."""

T = TypeVar("T")
R = TypeVar("R")


def read_unflushed(root: Path, hasher: Hasher, state: JournalState, flushed: int) -> Hot:
    """All committed records above the newest flushed seq; `CorruptionError` where one is missing."""
    hot = Hot()
    expected = flushed + 1
    unflushed = [segment for segment in state.segments["outbox/notifications"] if (segment.last_seq or 0) > flushed]
    with ThreadPoolExecutor(_READERS, thread_name_prefix="recovery") as readers:
        list(readers.map(lambda segment: checked(root, segment.path, segment.bytes, segment.sum), unflushed))
        pieces = lines_after(root, committed(state), flushed)
        for first, found in _in_order(readers, lambda piece: (piece[0], _read(hasher, piece[1])), pieces):
            seqs = found.rows.column("seq").to_numpy()
            if first != expected or not np.array_equal(seqs, np.arange(first, first + len(seqs))):
                raise CorruptionError(
                    f"outbox/notifications: seq {expected} is missing or out of order near {first}: {MEND}"
                )
            hot = hot.added(found).settled()
            expected += len(seqs)
    if expected != state.seq + 1:
        raise CorruptionError(
            f"outbox/notifications ends at seq {expected - 1}, seq {state.seq} is committed and {flushed} is in the "
            f"Parquet: {MEND}"
        )
    return hot


def _read(hasher: Hasher, lines: bytes) -> Committed:
    """The records of notification lines, with their hashes and runs."""
    rows = parse_notifications(lines)
    id_hi, id_lo, key_hi, key_lo, fingerprint = hasher.hashes(rows)
    found = Committed(rows, id_hi, id_lo, fingerprint, key_hi, key_lo)
    _ = found.runs
    return found


def _in_order(threads: Executor, action: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What the action makes of each item, a few of them at a time."""
    under_way: deque[Future[R]] = deque()
    for item in items:
        under_way.append(threads.submit(action, item))
        if len(under_way) > _READERS:
            yield under_way.popleft().result()
    for future in under_way:
        yield future.result()

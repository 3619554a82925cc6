"""The committed segments of the logs, each with what is wrong with it on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from store.log import examined, number_of
from store.recovery import JournalState

__all__ = ["LogSegment", "examined_segments"]


@dataclass(frozen=True)
class LogSegment:
    """The first `bytes` of a file, with checksum `sum`: the lines of seqs `first` to `last` (of a feed, else 0).

    `damage` says why the file does not have them; None where it does.
    """

    log: str
    path: str
    first: int
    last: int
    bytes: int
    sum: str
    damage: str | None


def examined_segments(root: Path, state: JournalState, log: str, *, above: int = -1) -> list[LogSegment]:
    """The committed segments of a log in order, read and proven; only those with lines above a seq."""
    found = [(each.path, each.last_seq or 0, each.bytes, each.sum) for each in state.segments[log]]
    if (end := state.ends.get(log)) is not None:
        found.append((end.path, state.seq, end.end, end.sum))
    return [
        LogSegment(log, path, number_of(path), last, size, checksum, examined(root / path, size, checksum)[1])
        for path, last, size, checksum in found
        if last > above
    ]

"""Damaged dead letters that are given up: the journal says from now on that their segments are what can be read.

Nothing is made of dead letters, and they are on disk once, so a damaged segment without a backup would keep a store
from starting for ever. The loss is a fact like any other: a new journal file begins with a checkpoint in which the
segment has the length and checksum of its whole lines. From then on it is accepted; what is cut off around that moment
is done by another run.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import xxhash

from store.files import Disk, remove_directory
from store.journal import FileEnd, Frame, Journal, JournalContents
from store.letters import place_of
from store.recovery import JournalState, quarantine_tails
from store.remake import REMAKE
from store.rot import copied_to_quarantine
from store.segments import LogSegment

__all__ = ["accept_letters"]

_BLOCK_BYTES = 1 << 20
_LOG = "rejected"


@dataclass(frozen=True)
class _Rest:
    """What can be read of a segment: staged, `bytes` of whole lines."""

    segment: LogSegment
    staged: Path
    lines: int
    bytes: int
    sum: str


def accept_letters(
    disk: Disk,
    root: Path,
    contents: JournalContents,
    state: JournalState,
    damaged: Sequence[LogSegment],
    tell: Callable[[str], None],
) -> None:
    """Go on with the whole lines of these segments. What there was is copied into quarantine first."""
    quarantine_tails(disk, root, state, contents.tail)
    remove_directory(disk, root / REMAKE)
    disk.make_directory(root / REMAKE)
    rests = [_staged(disk, root, segment) for segment in damaged]
    kept = {rest.segment.path: copied_to_quarantine(disk, root, rest.segment.path) for rest in rests}
    journal = Journal(disk, contents.path.parent, contents)
    try:
        checkpoint = _told(state, rests).checkpoint()
        frame = Frame(journal.number + 1, state.seq + 1, state.seq, state.processed_at, checkpoint=checkpoint)
        if not journal.rotate(frame):
            raise OSError(errno.ENOSPC, f"no room on the device of {root}")
    finally:
        journal.close()
    for rest in rests:
        path = root / rest.segment.path
        if rest.bytes:
            disk.rename(rest.staged, path)
        elif path.exists():
            disk.remove(path)
        disk.sync_directory(path.parent)
        where = kept[rest.segment.path]
        tell(
            f"{rest.segment.path} {rest.segment.damage}: given up but for {rest.lines} lines that can be read, "
            f"{rest.bytes} of {rest.segment.bytes} bytes" + (f"; what was there is in {where}" if where else "")
        )
    remove_directory(disk, root / REMAKE)


def _staged(disk: Disk, root: Path, segment: LogSegment) -> _Rest:
    staged = root / REMAKE / f"{_LOG}-{Path(segment.path).name}"
    hasher = xxhash.xxh3_64()
    lines = size = 0

    def whole() -> Iterator[bytes]:
        nonlocal lines, size
        for line in _whole_lines(root / segment.path, segment.bytes):
            hasher.update(line)
            lines, size = lines + 1, size + len(line)
            yield line

    disk.write(staged, whole())
    return _Rest(segment, staged, lines, size, hasher.hexdigest())


def _whole_lines(path: Path, end: int) -> Iterator[bytes]:
    """The committed lines that are letters, in their order, each id once."""
    if not path.exists():
        return
    newest = (-1, -1)
    with path.open("rb") as file:
        left = end
        while left > 0 and (line := file.readline(left)):
            left -= len(line)
            place = _place(line)
            if line.endswith(b"\n") and place is not None and place > newest:
                newest = place
                yield line


def _place(line: bytes) -> tuple[int, int] | None:
    try:
        letter = msgspec.json.decode(line, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    found = letter.get("id")
    return place_of(found) if isinstance(found, str) else None


def _told(state: JournalState, rests: Sequence[_Rest]) -> JournalState:
    """The state with the segments as they will be; those of which nothing is left are forgotten."""
    by_path = {rest.segment.path: rest for rest in rests}
    segments = []
    for segment in state.segments[_LOG]:
        rest = by_path.get(segment.path)
        if rest is None:
            segments.append(segment)
        elif rest.bytes:
            segments.append(msgspec.structs.replace(segment, bytes=rest.bytes, sum=rest.sum))
    ends = dict(state.ends)
    end = ends.get(_LOG)
    if end is not None and (rest := by_path.get(end.path)) is not None:
        del ends[_LOG]
        if rest.bytes:
            ends[_LOG] = FileEnd(end.path, rest.bytes, rest.sum)
    return JournalState(
        state.seq, state.processed_at, {**state.segments, _LOG: segments}, ends, state.rules, state.inputs, state.kept
    )

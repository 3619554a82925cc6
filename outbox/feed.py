"""A feed from any seq on: its committed lines, to the byte, from the segments or, below them, made again.

Works inside the service and in another process. A place in a segment is found by bisection, so that reading on costs
the same however large the feed is. Lines above the committed seq are never given out: after a crash they may change.

What makes lines again is imported where that is needed: it brings DuckDB, pyarrow and NumPy along, which are most of
the start and of the memory of `oncelake forward`, and as a rule there are segments to read.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from store.errors import MEND, CorruptionError, OncelakeError

if TYPE_CHECKING:
    from outbox.remake import Origin
    from store.recovery import JournalState

__all__ = ["Feed", "Source", "committed_seq", "source_beside", "state_beside"]

_SEQ = re.compile(rb'\{"seq":([1-9][0-9]{0,18}),')
_PIECE_BYTES = 256 << 10
_NEAR_BYTES = 64 << 10
"""Where the bisection ends and reading begins."""

_REMADE_SEQS = 32_768
"""Seqs whose lines are made again together and kept for the next call: some 20 MB."""

_TRIES = 20


@dataclass(frozen=True)
class Source:
    """Where a feed is read from: its newest committed seq, from which seq on its lines are kept, and the records."""

    root: Path
    newest: Callable[[], int]
    kept_from: Callable[[], int]
    origin: Callable[[], AbstractContextManager[Origin]]
    temp: Path


class Feed:
    """The committed lines of `notifications` or `alerts`. May be used by several threads."""

    def __init__(self, name: str, source: Source) -> None:
        self.name = name
        self._source = source
        self._directory = source.root / "outbox" / name
        self._remaking = threading.Lock()
        self._remade: tuple[int, int, list[tuple[int, bytes]]] = (1, 0, [])

    def newest(self) -> int:
        """The newest committed seq of the store."""
        return self._source.newest()

    def read(self, after: int, limit: int, max_bytes: int) -> list[tuple[int, bytes]]:
        """(seq, line without its newline) of committed lines with a seq above `after`, in order.

        At least one where there is any, however long; otherwise at most `limit` lines and `max_bytes`. None at all
        means that there were none above `after` when it was called.
        """
        newest = self.newest()
        for _ in range(_TRIES):
            try:
                return self._read(after, newest, limit, max_bytes)
            except FileNotFoundError:  # a segment was removed by the retention after it was listed
                continue
        raise CorruptionError(f"{self._directory}: segments go away while they are read")

    def _read(self, after: int, newest: int, limit: int, max_bytes: int) -> list[tuple[int, bytes]]:
        while after < newest:
            firsts = self._segments(newest)
            index = bisect.bisect_right(firsts, after + 1) - 1
            kept = self._source.kept_from() if index < 0 else 0
            if after + 1 >= kept:
                return self._from_segments(firsts[max(index, 0) :], after, newest, limit, max_bytes)
            last, lines = self._made_again(after, min(kept - 1, newest))
            if lines:
                return _bounded(iter(lines), limit, max_bytes)
            after = last
        return []

    def _segments(self, newest: int) -> list[int]:
        try:
            with os.scandir(self._directory) as entries:
                names = [entry.name for entry in entries]
        except FileNotFoundError:
            return []
        firsts = [int(name[:-6]) for name in names if name.endswith(".jsonl") and name[:-6].isdecimal()]
        return sorted(first for first in firsts if first <= newest)

    def _from_segments(
        self, firsts: list[int], after: int, newest: int, limit: int, max_bytes: int
    ) -> list[tuple[int, bytes]]:
        found = _bounded(self._lines(firsts, after, newest), limit, max_bytes)
        if self.name == "notifications" and not found:
            raise CorruptionError(
                f"{self._directory}: the line of seq {after + 1} is missing: stop the service, {MEND}"
            )
        return found

    def _lines(self, firsts: list[int], after: int, newest: int) -> Iterator[tuple[int, bytes]]:
        """The lines of these segments above `after`, up to the newest committed one."""
        expected = after + 1
        for number, first in enumerate(firsts):
            path = self._directory / f"{first:020d}.jsonl"
            with path.open("rb", buffering=0) as file:
                for line in _lines_of(file.fileno(), _place(file.fileno(), after) if number == 0 else 0):
                    seq = _seq_of(line)
                    if seq is None and self.name == "alerts" and number == len(firsts) - 1:
                        return  # what a commit that did not happen has left
                    if seq is None or (self.name == "notifications" and seq > expected):
                        raise CorruptionError(
                            f"{path}: the line of seq {expected} is damaged or missing: stop the service, {MEND}"
                        )
                    if seq > newest:
                        return
                    if seq >= expected:
                        yield seq, line
                        expected = seq + 1
                    if seq == newest:
                        return

    def _made_again(self, after: int, upto: int) -> tuple[int, list[tuple[int, bytes]]]:
        """Lines above `after` from the stored records, and the seq up to which these are all."""
        with self._remaking:
            first, last, lines = self._remade
            if not first <= after + 1 <= last:
                first, last = after + 1, min(after + _REMADE_SEQS, upto)
                from outbox.remake import remade

                with self._source.origin() as origin:
                    lines = list(remade(origin, self.name, first, last, self._source.temp))
                self._remade = (first, last, lines)
        return last, lines[bisect.bisect_right(lines, after, key=lambda line: line[0]) :]


def _bounded(lines: Iterator[tuple[int, bytes]], limit: int, max_bytes: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    size = 0
    for seq, line in lines:
        size += len(line) + 1
        if found and size > max_bytes:
            break
        found.append((seq, line))
        if len(found) >= limit:
            break
    return found


def _seq_of(line: bytes) -> int | None:
    found = _SEQ.match(line)
    return int(found[1]) if found else None


def _lines_of(handle: int, offset: int) -> Iterator[bytes]:
    """The whole lines from an offset on, without their newlines."""
    rest = b""
    while piece := os.pread(handle, _PIECE_BYTES, offset):
        offset += len(piece)
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        yield from lines


def _place(handle: int, after: int) -> int:
    """Where a line begins that is not above the first one with a seq above `after`, and not far before it."""
    low, high = 0, os.fstat(handle).st_size
    while high - low > _NEAR_BYTES:
        middle = (low + high) // 2
        start = _line_after(handle, middle, high)
        seq = None if start is None else _seq_of(os.pread(handle, 32, start))
        if start is not None and seq is not None and seq <= after:
            low = start
        else:  # above it, or bytes that are no line: what a commit under way has written
            high = middle
    return low


def _line_after(handle: int, offset: int, end: int) -> int | None:
    """Where the next line begins, if it is before `end`."""
    while offset < end and (piece := os.pread(handle, 16 << 10, offset)):
        cut = piece.find(b"\n")
        if cut >= 0:
            start = offset + cut + 1
            return start if start < end else None
        offset += len(piece)
    return None


class _Committed(msgspec.Struct):
    seq: int


def committed_seq(root: Path, feed: str) -> int:
    """The seq up to which the lines of a feed are final, as its `committed.json` says; 0 before the first commit."""
    path = root / "outbox" / feed / "committed.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Committed).seq
    except FileNotFoundError:
        return 0
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptionError(f"{path} cannot be read: {error}") from error


def source_beside(root: Path, feed: str, temp: Path) -> Source:
    """A feed of a data directory that another process may own: reads only, takes no lock."""
    return Source(
        root, lambda: committed_seq(root, feed), lambda: state_beside(root).kept_from(feed), lambda: _origin(root), temp
    )


def state_beside(root: Path) -> JournalState:
    """What the journal says at this moment."""
    from store.journal import read_journal
    from store.recovery import JournalState, state_of

    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):  # a new journal file took the place of the one that was listed
            contents = read_journal(root / "internal" / "journal")
            return state_of(contents) if contents else JournalState()
    raise OncelakeError(f"{root / 'internal' / 'journal'} keeps changing: try again")


@contextlib.contextmanager
def _origin(root: Path) -> Iterator[Origin]:
    from outbox.remake import Origin
    from store.holding import Holding
    from store.reading import read_snapshot

    with Holding(root) as holding:
        snapshot = read_snapshot(root, holding)
        yield Origin(snapshot, state_beside(root).rules)

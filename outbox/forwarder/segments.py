"""A feed read from its segments, as anyone may who follows `committed.json`: inside the service or beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from store.errors import OncelakeError

__all__ = ["Segments", "committed_seq"]


class _Committed(msgspec.Struct):
    seq: int


class _Seq(msgspec.Struct):
    seq: int


_seq_of = msgspec.json.Decoder(_Seq).decode


def committed_seq(root: Path, feed: str) -> int:
    """The seq up to which the lines of a feed are final; 0 before the first commit."""
    try:
        return msgspec.json.decode((root / "outbox" / feed / "committed.json").read_bytes(), type=_Committed).seq
    except FileNotFoundError:
        return 0


class Segments:
    """The committed lines of one feed. Remembers its place, so that reading on costs no search."""

    def __init__(self, root: Path, feed: str, newest: Callable[[], int] | None = None) -> None:
        self._root = root
        self._feed = feed
        self._newest = newest
        self._place: tuple[int, Path, int] | None = None  # the seq read last, where, and the offset behind it

    def newest(self) -> int:
        """The newest committed seq of the store."""
        return self._newest() if self._newest is not None else committed_seq(self._root, self._feed)

    def read(self, after: int, limit: int, max_bytes: int) -> list[tuple[int, bytes]]:
        """Committed lines with a seq above `after`, without line ends."""
        newest = self.newest()
        found: list[tuple[int, bytes]] = []
        size = 0
        for path, offset in self._from(after):
            with path.open("rb") as file:
                file.seek(offset)
                while (line := file.readline()).endswith(b"\n"):
                    seq = _seq_of(line).seq
                    if seq > newest or len(found) == limit or (found and size + len(line) > max_bytes):
                        return found
                    if seq > after:
                        found.append((seq, line[:-1]))
                        size += len(line)
                        self._place = (seq, path, file.tell())
        return found

    def _from(self, after: int) -> list[tuple[Path, int]]:
        """The segments that hold lines above a seq, each with the offset to read from."""
        paths = sorted((self._root / "outbox" / self._feed).glob("*.jsonl"))
        if self._feed == "notifications" and paths and int(paths[0].stem) > after + 1:
            raise OncelakeError(
                f"{paths[0].parent}: the lines {after + 1} to {int(paths[0].stem) - 1} are kept no more"
            )
        firsts = [int(path.stem) for path in paths]
        newer = [path for path, end in zip(paths, [*firsts[1:], None], strict=False) if end is None or end > after + 1]
        if self._place is not None and self._place[0] == after and self._place[1] in newer:
            newer = newer[newer.index(self._place[1]) :]
            return [(self._place[1], self._place[2]), *((path, 0) for path in newer[1:])]
        return [(path, 0) for path in newer]

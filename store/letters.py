"""Reading the dead letters, newest first, in bounded memory and only what is committed."""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["Letters", "Wanted", "place_of"]

_BLOCK_BYTES = 256 << 10
_RESOLVED = b'"status":"resolved"'

Letter = dict[str, Any]
Ends = Callable[[], list[tuple[str, int]]]
"""The segments in order: path relative to the data directory, committed length."""


@dataclass(frozen=True)
class Wanted:
    """Which letters: those that fit everything that is not None, older than the place `before`."""

    status: str | None = None
    source_id: str | None = None
    file: str | None = None
    before: tuple[int, int] | None = None

    def fits(self, letter: Letter) -> bool:
        """Whether the letter is one of them."""
        return (letter["status"] == self.status if self.status is not None else letter["status"] != "resolved") and (
            (self.file is None or letter["source"].get("file") == self.file)
            and (self.source_id is None or _source_id(letter) == self.source_id)
        )


class Letters:
    """The dead letters below `root`; `ends` says what is committed. May be used by several threads."""

    def __init__(self, root: Path, ends: Ends) -> None:
        self._root = root
        self._ends = ends
        self._lock = threading.Lock()
        self._resolved: dict[str, Letter] = {}
        self._looked: dict[str, int] = {}

    def newest_first(self, wanted: Wanted) -> Iterator[Letter]:
        """The letters that are wanted."""
        for letter in self._backwards(wanted.before):
            if wanted.fits(letter):
                yield letter

    def find(self, letter_id: str) -> Letter | None:
        """One letter by its id."""
        place = place_of(letter_id)
        if place is None:
            return None
        for letter in self._backwards((place[0], place[1] + 1)):
            return letter if letter["id"] == letter_id and letter["status"] != "resolved" else None
        return None

    def resolution(self, letter_id: str) -> Letter | None:
        """The letter that says what became of another one when it was sent again, if it was accepted.

        The first call reads all dead letters, later ones what has come since.
        """
        with self._lock:
            for name, end in self._ends():
                begin = self._looked.get(name, 0)
                if begin < end:
                    with contextlib.suppress(FileNotFoundError):  # the retention has removed it meanwhile
                        self._look(self._root / name, begin, end)
                    self._looked[name] = end
            return self._resolved.get(letter_id)

    def _look(self, path: Path, begin: int, end: int) -> None:
        with path.open("rb") as file:
            file.seek(begin)
            while file.tell() < end:
                line = file.readline()
                if _RESOLVED in line:
                    letter = msgspec.json.decode(line, type=Letter)
                    if letter["status"] == "resolved":
                        self._resolved[letter["source"]["letter"]] = letter

    def _backwards(self, before: tuple[int, int] | None) -> Iterator[Letter]:
        """All lines from the newest one, or from the one before a place."""
        segments = self._ends()
        if before is not None:
            firsts = [int(Path(name).stem) for name, _ in segments]
            segments = segments[: bisect.bisect_right(firsts, before[0])]
        for name, end in reversed(segments):
            try:
                for line in _lines_backwards(self._root / name, end):
                    letter = msgspec.json.decode(line, type=Letter)
                    place = place_of(letter["id"])
                    if before is None or (place is not None and place < before):
                        yield letter
            except FileNotFoundError:
                return  # the retention has removed it meanwhile, and all before it


def place_of(letter_id: str) -> tuple[int, int] | None:
    """(commit, number in it) of a letter's id; None where it is none. Later letters have greater places."""
    commit, _, number = letter_id.partition("-")
    if all(part.isascii() and part.isdecimal() and len(part) < 19 for part in (commit, number)):
        return int(commit), int(number)
    return None


def _lines_backwards(path: Path, end: int) -> Iterator[bytes]:
    """The whole lines of the first `end` bytes, the last one first."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        rest: list[bytes] = []  # the later pieces of a line whose beginning is still to be read
        position = end
        while position > 0:
            begin = max(0, position - _BLOCK_BYTES)
            block = os.pread(handle, position - begin, begin)
            position = begin
            first, *others = block.split(b"\n")
            if others:
                others[-1] = b"".join([others[-1], *reversed(rest)])
                yield from (line for line in reversed(others) if line)
                rest = []
            rest.append(first)
        line = b"".join(reversed(rest))
        if line:
            yield line
    finally:
        os.close(handle)


def _source_id(letter: Letter) -> str | None:
    """The sourceId of the record. Letters of older versions do not tell it: there it is read from a JSON record."""
    if "sourceId" in letter:
        found = letter["sourceId"]
        return found if isinstance(found, str) else None
    try:
        record = msgspec.json.decode(letter["record"] or "", type=dict[str, Any])
    except msgspec.MsgspecError:
        return None
    found = record.get("sourceId")
    return found if isinstance(found, str) else None

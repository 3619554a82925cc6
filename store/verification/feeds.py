"""A feed as downstream reads it, held against the lines that must be in it: byte for byte, on doubt line by line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from store.verification.commits import LogFile
from store.verification.report import Findings, VanishedError

__all__ = ["Feed"]

_READ_BYTES = 8 << 20
_LOOKAHEAD_LINES = 64
"""Lines beyond those expected that are searched for where a piece does not agree."""

_SEQ = re.compile(rb'\{"seq":([1-9][0-9]{0,17}),')
_SHOWN = 160


class Feed:
    """The committed bytes of one outbox, read once from beginning to end. Call with ascending seqs only."""

    def __init__(
        self, root: Path, kind: str, files: list[LogFile], gone: set[str], floor: int, findings: Findings
    ) -> None:
        """`files` are all committed segments, `gone` those that are known to be missing.

        Below seq `floor` a retention may have removed lines.
        """
        self._root = root
        self._kind = kind
        self._gone = gone
        self._floor = floor
        self._files = files
        self._firsts = np.array([file.first for file in files], dtype=np.int64)
        self._findings = findings
        self._current = -1
        self._handle: BinaryIO | None = None
        self._hasher = xxhash.xxh3_64()
        self._read = 0
        self._pending = b""
        self._last_seq = 0

    def compare(self, seqs: npt.NDArray[np.int64], lines: pa.Array) -> None:
        """The next lines must be these; `seqs` ascend. Seqs of segments that are not there are passed over."""
        which = np.searchsorted(self._firsts, seqs, side="right") - 1  # each seq's segment
        for index in np.unique(which).tolist():
            begin, end = int(np.searchsorted(which, index)), int(np.searchsorted(which, index, side="right"))
            if index < 0:
                missing = [seq for seq in seqs[begin:end].tolist() if seq >= self._floor]
                self._findings.add_seqs(self._kind, f"outbox/{self._kind}s", "missing: the line of {}", missing)
                continue
            self._enter(index)
            if self._handle is None:
                continue
            self._compare(seqs[begin:end], lines.slice(begin, end - begin))
            self._findings.checked[f"{self._kind}s"] += end - begin

    def peek(self, first: int, last: int) -> list[bytes]:
        """The lines from here on that are said to be those of seqs `first` to `last`; they are still to be compared."""
        index = int(np.searchsorted(self._firsts, first, side="right")) - 1
        if index < 0:
            return []
        self._enter(index)
        if self._handle is None:
            return []
        lines = self._window(last - first + 1)
        return lines[: self._cut(lines, last)]

    def finish(self) -> None:
        """Nothing more is expected: what is left is too much, and every sum must be right."""
        self._enter(len(self._files))

    def _enter(self, index: int) -> None:
        while self._current < index:
            if self._handle is not None:
                self._leave()
            self._current += 1
            if self._current < len(self._files) and self._files[self._current].path not in self._gone:
                self._open()

    def _open(self) -> None:
        path = self._root / self._files[self._current].path
        try:
            self._handle = path.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise VanishedError(f"{path} is gone") from error
        self._hasher, self._read, self._pending = xxhash.xxh3_64(), 0, b""

    def _leave(self) -> None:
        assert self._handle is not None
        file = self._files[self._current]
        while self._pending or self._read < file.end:
            lines = self._window(1)
            if not lines:
                break
            offset = self._offset
            for line in lines:
                self._add(f"a line too much: {_shown(line)}", seq=_seq_of(line), offset=offset)
                offset += len(line)
            self._consume(lines)
        if self._read < file.end:
            self._add(f"ends at byte {self._read}, {file.end} are committed", offset=self._read)
        elif self._hasher.hexdigest() != file.sum:
            self._add(f"the checksum of its {file.end} committed bytes is {self._hasher.hexdigest()}, not {file.sum}")
        self._findings.checked["files"] += 1
        self._handle.close()
        self._handle = None

    @property
    def _offset(self) -> int:
        return self._read - len(self._pending)

    def _consume(self, lines: list[bytes]) -> None:
        self._pending = self._pending[sum(map(len, lines)) :]

    def _add(self, message: str, *, seq: int | None = None, offset: int | None = None) -> None:
        self._findings.add(self._kind, self._files[self._current].path, message, seq=seq, offset=offset)

    def _fill(self, size: int) -> None:
        """Read until so many bytes are pending, or all committed ones."""
        assert self._handle is not None
        pieces, have = [self._pending], len(self._pending)
        while have < size and self._read < self._files[self._current].end:
            wanted = min(size - have, _READ_BYTES, self._files[self._current].end - self._read)
            piece = self._handle.read(wanted)
            if not piece:
                break
            self._hasher.update(piece)
            self._read += len(piece)
            have += len(piece)
            pieces.append(piece)
        self._pending = b"".join(pieces) if len(pieces) > 1 else self._pending

    def _compare(self, seqs: npt.NDArray[np.int64], lines: pa.Array) -> None:
        expected = _bytes_of(lines)
        self._fill(len(expected))
        found = pa.py_buffer(self._pending).slice(0, min(len(expected), len(self._pending)))
        if found.equals(expected):
            self._pending = self._pending[len(expected) :]
            self._last_seq = int(seqs[-1])
        else:
            self._compare_lines(seqs.tolist(), [line.encode() for line in lines.to_pylist()])

    def _window(self, count: int) -> list[bytes]:
        """The next `count` lines and some more, where there are so many."""
        while self._pending.count(b"\n") < count + _LOOKAHEAD_LINES:
            before = len(self._pending)
            self._fill(before + _READ_BYTES)
            if len(self._pending) == before:
                break
        return self._pending.splitlines(keepends=True) if b"\r" not in self._pending else _split(self._pending)

    @staticmethod
    def _cut(lines: list[bytes], last: int) -> int:
        """How many of the lines belong to seqs up to `last`: all before the last one that says so."""
        for index in range(len(lines) - 1, -1, -1):
            seq = _seq_of(lines[index])
            if seq is not None and seq <= last:
                # a line that cannot be read belongs to its neighbours: here to the one before it, if seqs are short
                end, missing = index + 1, last - seq
                while missing and end < len(lines) and _seq_of(lines[end]) is None:
                    end, missing = end + 1, missing - 1
                return end
        return 0 if lines and _seq_of(lines[0]) is not None else min(len(lines), 1)

    def _compare_lines(self, seqs: list[int], expected: list[bytes]) -> None:
        lines = self._window(len(seqs))
        lines = lines[: self._cut(lines, seqs[-1])]
        right = dict(zip(seqs, expected, strict=True))
        said = {_seq_of(line) for line in lines}
        unsaid = iter([seq for seq in seqs if seq not in said])
        seen: set[int] = set()
        offset = self._offset
        for line in lines:
            seq = _seq_of(line)
            if seq is None:  # whose line this was: the next one that no line says it is
                seq = next((guess for guess in unsaid if guess > self._last_seq), None)
            self._judge(line, seq, offset, right, seen)
            offset += len(line)
        self._consume(lines)
        missing = [seq for seq in seqs if seq not in seen]
        self._findings.add_seqs(self._kind, self._files[self._current].path, "missing: the line of {}", missing)
        self._last_seq = seqs[-1]

    def _judge(self, line: bytes, seq: int | None, offset: int, right: dict[int, bytes], seen: set[int]) -> None:
        if seq is None or seq not in right:
            self._add(f"a line that does not belong here: {_shown(line)}", seq=seq, offset=offset)
            return
        if seq in seen:
            self._add(f"a second line of seq {seq}", seq=seq, offset=offset)
        elif seq < self._last_seq:
            self._add(f"seq {seq} comes after seq {self._last_seq}", seq=seq, offset=offset)
        seen.add(seq)
        self._last_seq = max(seq, self._last_seq)
        if line != right[seq]:
            at = next((i for i, (a, b) in enumerate(zip(line, right[seq], strict=False)) if a != b), 0)
            begin = max(at - 40, 0)
            self._add(
                f"the line of seq {seq} is not the one that follows from the records: {_shown(line[begin:])} where "
                f"{_shown(right[seq][begin:])} must be",
                seq=seq,
                offset=offset + at,
            )


def _seq_of(line: bytes) -> int | None:
    found = _SEQ.match(line)
    return int(found[1]) if found else None


def _split(data: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _bytes_of(lines: pa.Array) -> pa.Buffer:
    """The joined bytes of a string array, which nothing needs to copy."""
    offsets = np.frombuffer(lines.buffers()[1], dtype=np.int32)[lines.offset : lines.offset + len(lines) + 1]
    return lines.buffers()[2].slice(int(offsets[0]), int(offsets[-1] - offsets[0]))


def _shown(line: bytes) -> str:
    text = line.rstrip(b"\n").decode("utf-8", "backslashreplace")
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"

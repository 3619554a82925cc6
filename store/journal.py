"""The commit journal: an append-only file of checksummed, hash-chained frames, one for each commit.

A commit is the synced append of its frame, after the lines that it covers are synced. A frame is

    magic "OLJ1" | u32 length of the payload | 16 bytes digest of the frame before | payload | 16 bytes digest

where the digest is BLAKE2b-128 of all that stands before it in the frame, and the payload is JSON (`Frame`). The
first frame of every journal file holds a `Checkpoint`: everything that earlier frames said and that is still needed,
so that a year of single POSTs folds into one row for each closed segment. Only the newest file counts.

An incomplete or bad frame at the very end is a commit that was never answered; one that is followed by a good frame
is corruption, and `read_journal` raises.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import msgspec

from store.errors import CorruptionError
from store.files import Appender, Disk, is_disk_full
from store.outcomes import MAX_PROBLEMS, Answer

__all__ = [
    "Checkpoint",
    "Failure",
    "FileEnd",
    "Frame",
    "InputState",
    "Journal",
    "JournalContents",
    "Position",
    "Rules",
    "RulesFrom",
    "Segment",
    "added",
    "read_journal",
]

MAGIC = b"OLJ1"
_HEAD = struct.Struct("<4sI16s")
_DIGEST_BYTES = 16
_FIRST = bytes(_DIGEST_BYTES)
_MAX_PAYLOAD_BYTES = 256 << 20


class Position(msgspec.Struct, frozen=True):
    """Where the next chunk of a batch begins, so that a file can be gone on with after a crash.

    `offset` counts bytes of the decompressed stream (NDJSON, JSON, CSV) or rows (Parquet, Arrow); `index` counts
    records from 0; `line` is the 1-based line number of the next line (NDJSON, CSV), 0 elsewhere.
    """

    offset: int = 0
    index: int = 0
    line: int = 1


class Failure(msgspec.Struct, frozen=True):
    """Why a file ended early: a stable code, a message for a person, and where in the file, in words."""

    code: str
    message: str
    position: str | None = None


class InputState(msgspec.Struct, frozen=True, rename="camel"):
    """How far an input file has come, with the counts so far: what makes receipts right after any crash.

    In a frame `answer.problems` holds only those that the commit added; in a checkpoint all of them.
    """

    path: str
    bytes: int
    sha256: str
    started_at_us: int
    position: Position
    answer: Answer
    done: bool = False
    failure: Failure | None = None


def added(before: InputState | None, step: InputState) -> InputState:
    """An input's state after a commit whose frame holds `step`: counts are totals there, problems only the new ones."""
    if before is None or before.sha256 != step.sha256 or before.started_at_us != step.started_at_us:
        return step
    problems = (before.answer.problems + step.answer.problems)[:MAX_PROBLEMS]
    truncated = step.answer.conflict + step.answer.rejected > len(problems)
    answer = msgspec.structs.replace(step.answer, problems=problems, problems_truncated=truncated)
    return msgspec.structs.replace(step, answer=answer)


class Rules(msgspec.Struct, frozen=True, rename="camel"):
    """The alert thresholds in force, as exact decimals in canonical form."""

    threshold: str
    by_unit: dict[str, str] = {}
    by_destination: dict[str, str] = {}


class RulesFrom(msgspec.Struct, frozen=True, rename="camel"):
    """Rules and the first seq that they hold for."""

    first_seq: int
    rules: Rules


class FileEnd(msgspec.Struct, frozen=True):
    """The committed length of a file that lines are appended to; `sum` is xxh3-64 (hex) of all bytes up to there."""

    path: str
    end: int
    sum: str


class Segment(msgspec.Struct, frozen=True, rename="camel"):
    """A closed segment: nothing is appended to it any more. Seqs are null for dead letters."""

    path: str
    first_seq: int | None
    last_seq: int | None
    bytes: int
    sum: str


class Checkpoint(msgspec.Struct, frozen=True):
    """What the frames before a journal file said and is still needed."""

    segments: list[Segment] = []
    rules: list[RulesFrom] = []
    inputs: list[InputState] = []
    files: list[FileEnd] = []
    kept: dict[str, int] = {}


class Frame(msgspec.Struct, frozen=True, rename="camel"):
    """One commit. Without accepted records `last_seq` is `first_seq - 1`.

    `kept` says by log which number its first kept segment may have: a retention removes those below it.
    """

    number: int
    first_seq: int
    last_seq: int
    processed_at: int
    files: list[FileEnd] = []
    inputs: list[InputState] = []
    closed: list[str] = []
    rules: Rules | None = None
    kept: dict[str, int] = {}
    checkpoint: Checkpoint | None = None


_decoder = msgspec.json.Decoder(Frame)
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True)
class JournalContents:
    """The frames of the newest journal file and where they end. `tail` are the uncommitted bytes after them."""

    path: Path
    frames: list[Frame]
    digests: list[bytes]
    length: int
    tail: bytes

    @property
    def digest(self) -> bytes:
        """That of the last frame."""
        return self.digests[-1]


def _framed(frame: Frame, before: bytes) -> tuple[bytes, bytes]:
    """The bytes of a frame and its digest."""
    payload = _encoder.encode(frame)
    head = _HEAD.pack(MAGIC, len(payload), before) + payload
    digest = blake2b(head, digest_size=_DIGEST_BYTES).digest()
    return head + digest, digest


def _frame_at(data: memoryview, offset: int) -> tuple[bytes, bytes, bytes, int] | None:
    """(digest before, payload, digest, end) of a whole and good frame at `offset`, or None."""
    if len(data) - offset < _HEAD.size:
        return None
    magic, size, before = _HEAD.unpack_from(data, offset)
    end = offset + _HEAD.size + size + _DIGEST_BYTES
    if magic != MAGIC or size > _MAX_PAYLOAD_BYTES or end > len(data):
        return None
    digest = bytes(data[end - _DIGEST_BYTES : end])
    if blake2b(data[offset : end - _DIGEST_BYTES], digest_size=_DIGEST_BYTES).digest() != digest:
        return None
    return before, bytes(data[offset + _HEAD.size : end - _DIGEST_BYTES]), digest, end


def _parse(path: Path, raw: bytes) -> JournalContents:
    data = memoryview(raw)
    frames: list[Frame] = []
    digests: list[bytes] = []
    offset, chain = 0, None
    while (found := _frame_at(data, offset)) is not None:
        before, payload, digest, end = found
        if chain is not None and before != chain:
            raise CorruptionError(
                f"{path}: the frame at byte {offset} does not follow the one before it: bytes of the journal were "
                "lost or exchanged. Restore the file from a backup."
            )
        frames.append(_decoder.decode(payload))
        digests.append(digest)
        offset, chain = end, digest
    tail = raw[offset:]
    position = tail.find(MAGIC, 1)
    while position != -1:
        if _frame_at(data, offset + position) is not None:
            seq = frames[-1].last_seq if frames else 0
            raise CorruptionError(
                f"{path}: the frame at byte {offset} is damaged, and good ones follow from byte {offset + position}: "
                f"this is not the end of an interrupted write. Records above seq {seq} are at stake; they are in "
                "outbox/notifications. Restore the file from a backup."
            )
        position = tail.find(MAGIC, position + 1)
    return JournalContents(path, frames, digests, offset, tail)


def read_journal(directory: Path) -> JournalContents | None:
    """The newest journal file whose first frame is whole; None where there is no journal at all.

    A file without a first frame was begun and not finished: the one before it still counts.
    """
    paths = sorted(directory.glob("*.journal"), reverse=True)
    for path in paths:
        contents = _parse(path, path.read_bytes())
        if contents.frames:
            return contents
    if paths and any(path.stat().st_size for path in paths):
        raise CorruptionError(f"{directory}: no journal file begins with a whole frame. Restore it from a backup.")
    return None


class Journal:
    """The journal as the one committer writes it."""

    def __init__(self, disk: Disk, directory: Path, contents: JournalContents) -> None:
        self._disk = disk
        self._directory = directory
        self.last = (contents.frames[-1].number, contents.digest)
        self._written = self.last
        self._file: Appender = disk.appender(contents.path, contents.length)
        if contents.tail:
            self._file.cut(contents.length)

    @classmethod
    def create(cls, disk: Disk, directory: Path, first: Frame) -> JournalContents:
        """A journal with its first frame, durable."""
        data, digest = _framed(first, _FIRST)
        path = directory / _name(first.number)
        disk.replace(path, data)
        return JournalContents(path, [first], [digest], len(data), b"")

    @property
    def number(self) -> int:
        """The number of the last frame that is durable (`last` is its number and digest)."""
        return self.last[0]

    @property
    def length(self) -> int:
        """Bytes in the current file."""
        return self._file.length

    def write(self, frame: Frame) -> None:
        """Append one frame. An `OSError` leaves the journal as it was."""
        data, digest = _framed(frame, self.last[1])
        self._file.append(data)
        self._written = (frame.number, digest)

    def sync(self) -> None:
        """Make the frame durable: this is the commit. An `OSError` is final, nobody knows what is kept.

        `last` follows only now, because the flusher puts it into the catalog, and a catalog that names a frame which
        a power cut took away looks like a journal that lost its end.
        """
        self._file.sync()
        self.last = self._written

    def rotate(self, frame: Frame) -> bool:
        """Begin a new file with a checkpoint frame and remove the files before it.

        False where there is no room for it: the old file goes on. Any other `OSError` is final, because a new file
        that has its name already is the one that counts after a restart.
        """
        data, digest = _framed(frame, self.last[1])
        path = self._directory / _name(frame.number)
        staged = path.with_name(f".{path.name}.tmp")
        try:
            self._disk.write(staged, data)
            self._disk.rename(staged, path)
        except OSError as error:
            if not is_disk_full(error):
                raise
            with contextlib.suppress(OSError):
                self._disk.remove(staged)
            return False
        self._disk.sync_directory(self._directory)
        before, self._file = self._file, self._disk.appender(path, len(data))
        before.close()
        self.last = self._written = (frame.number, digest)
        for old in sorted(self._directory.glob("*.journal")):
            if old.name < path.name:
                with contextlib.suppress(OSError):  # only the newest file counts, and the next rotation tries again
                    self._disk.remove(old)
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _name(number: int) -> str:
    return f"{number:010d}.journal"

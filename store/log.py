"""The logs: append-only JSONL in segments. The notification log is the write-ahead log of the store.

A log is a directory of segments; a segment is named by the first seq in it (dead letters: by a running number), so
that names sort. Lines are appended to the newest segment and count once a journal frame covers them.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import xxhash

from store.errors import GIVE_UP, MEND, CorruptionError
from store.files import Appender, Disk
from store.journal import FileEnd, Segment
from store.schema import RECORD, STORED
from store.times import parse_time

__all__ = [
    "FEEDS",
    "Log",
    "begun_at",
    "check_committed",
    "checked",
    "examined",
    "lines_after",
    "number_of",
    "parse_notifications",
    "segment_name",
]

FEEDS = ("notifications", "alerts")

_READ_BYTES = 8 << 20


def segment_name(first: int) -> str:
    """The file name of the segment that begins with a seq (or a running number)."""
    return f"{first:020d}.jsonl"


def number_of(path: str) -> int:
    """The seq (or running number) in the name of a segment."""
    return int(Path(path).stem)


class Log:
    """One log as the committer writes it. `directory` is relative to `root`, the data directory.

    A segment is closed beyond `segment_bytes`, or when its first line is older than `max_age_us`.
    """

    def __init__(
        self, disk: Disk, root: Path, directory: str, segment_bytes: int, max_age_us: int | None = None
    ) -> None:
        self._disk = disk
        self._root = root
        self._segment_bytes = segment_bytes
        self._max_age_us = max_age_us
        self.directory = directory
        self._open: Appender | None = None
        self._name = ""
        self._begun = 0
        self._hasher = xxhash.xxh3_64()
        self._before: tuple[int, xxhash.xxh3_64] | None = None

    def restore(self, end: FileEnd | None) -> None:
        """Take up where the journal says: the open segment, checked to its committed end."""
        if end is not None:
            self._hasher = checked(self._root, end.path, end.end, end.sum)
            self._open, self._name = self._disk.appender(self._root / end.path, end.end), end.path
            if self._max_age_us is not None:
                self._begun = begun_at(self._open.path)

    def append(self, data: bytes | memoryview, first: int, at_us: int) -> FileEnd:
        """Append lines, the first of which has this seq, and say where the file ends now. Not yet synced.

        `at_us` is the time of their commit.
        """
        if self._open is not None and (self._open.length >= self._segment_bytes or self._is_old(at_us)):
            self._open.close()
            self._open = None
        if self._open is None:
            self._begun = at_us
            self._disk.make_directory(self._root / self.directory)
            self._hasher = xxhash.xxh3_64()
            self._name = f"{self.directory}/{segment_name(first)}"
            self._open = self._disk.appender(self._root / self._name, 0)
            if self._open.path.stat().st_size:
                self._open.cut(0)  # left by a commit that was never finished
        self._before = (self._open.length, self._hasher.copy())
        self._open.append(data)
        self._hasher.update(data)
        return self.end()

    def _is_old(self, at_us: int) -> bool:
        return self._max_age_us is not None and at_us - self._begun >= self._max_age_us

    def end(self) -> FileEnd:
        """The open segment as it is now."""
        assert self._open is not None
        return FileEnd(self._name, self._open.length, self._hasher.hexdigest())

    def sync(self) -> None:
        """Make the appended lines durable."""
        if self._open is not None:
            self._open.sync()

    def undo(self) -> None:
        """Cut off what the last `append` wrote: its commit did not happen.

        A segment that was begun for it goes away, because the next commit may have another first seq.
        """
        if self._before is not None and self._open is not None:
            length, self._hasher = self._before
            self._open.cut(length)
            self._before = None
            if length == 0:
                path = self._open.path
                self.close()
                self._disk.remove(path)

    def done(self) -> None:
        """The last append is committed and cannot be undone."""
        self._before = None

    def close(self) -> None:
        """Close the open file."""
        if self._open is not None:
            self._open.close()
            self._open = None


def checked(root: Path, name: str, end: int, checksum: str) -> xxhash.xxh3_64:
    """Read the committed bytes of a file; `CorruptionError` where they are not those that were committed."""
    hasher, why = examined(root / name, end, checksum)
    if why is not None:
        what = MEND if name.startswith("outbox/") else GIVE_UP
        raise CorruptionError(f"{root / name} {why}; {end} bytes of it with checksum {checksum} are committed: {what}")
    return hasher


def examined(path: Path, end: int, checksum: str) -> tuple[xxhash.xxh3_64, str | None]:
    """Read the first `end` bytes of a file: their hasher, and why they are not those with this checksum, or None."""
    hasher = xxhash.xxh3_64()
    length = 0
    try:
        with path.open("rb") as file:
            while length < end and (piece := file.read(min(_READ_BYTES, end - length))):
                hasher.update(piece)
                length += len(piece)
    except FileNotFoundError:
        return hasher, "is missing"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return hasher, f"cannot be read ({error.strerror})"
    if length != end:
        return hasher, f"has {length} bytes"
    return hasher, None if hasher.hexdigest() == checksum else "is damaged"


class _Line(msgspec.Struct, rename="camel"):
    processed_at: str | None = None
    time: str | None = None


def begun_at(path: Path) -> int:
    """When the first line of a segment was committed, in microseconds since the epoch.

    `CorruptionError` where the line does not say so.
    """
    with path.open("rb") as file:
        try:
            line = msgspec.json.decode(file.readline(), type=_Line)
        except msgspec.MsgspecError as error:
            raise CorruptionError(f"{path}: the first line is damaged: {error}") from error
    found = parse_time(line.processed_at or line.time or "")
    if not isinstance(found, int):
        raise CorruptionError(f"{path}: the first line does not say when it was committed")
    return found


def check_committed(root: Path, seq: int) -> None:
    """`committed.json` follows the commits, so a journal that ends at a `seq` before it has lost its end."""
    for feed in FEEDS:
        path = root / "outbox" / feed / "committed.json"
        try:
            told = msgspec.json.decode(path.read_bytes(), type=dict[str, int])["seq"]
        except (FileNotFoundError, msgspec.MsgspecError, KeyError, UnicodeDecodeError):
            continue  # it is written anew
        if told > seq:
            raise CorruptionError(
                f"{path} says that seq {told} is committed, but the journal ends at seq {seq}: the end of the "
                "journal was lost. Restore internal/journal from a backup; the lines are in the outbox."
            )


def closed_segment(end: FileEnd, last: int) -> Segment:
    """The segment that a file is once nothing is appended to it. `last` is the seq of the commit before the next."""
    first = int(Path(end.path).stem)
    is_feed = end.path.startswith("outbox/")
    return Segment(end.path, first if is_feed else None, last if is_feed else None, end.end, end.sum)


_LINE = pa.schema(
    [
        ("seq", pa.int64()),
        ("processedAt", pa.string()),
        (
            "record",
            pa.struct([(f.name, pa.string() if f.name == "time" else f.type) for f in RECORD]),
        ),
    ]
)


def parse_notifications(data: bytes | memoryview) -> pa.Table:
    """The records of whole notification lines, with the schema `STORED`."""
    if not len(data):
        return STORED.empty_table()
    table = pj.read_json(
        pa.BufferReader(data),
        read_options=pj.ReadOptions(use_threads=False, block_size=max(len(data), 1 << 16)),
        parse_options=pj.ParseOptions(explicit_schema=_LINE, unexpected_field_behavior="ignore"),
    )
    record = table.column("record").combine_chunks()
    columns = {name: pc.struct_field(record, name) for name in RECORD.names}
    columns["time"] = columns["time"].cast(STORED.field("time").type)
    columns["seq"] = table.column("seq")
    columns["processedAt"] = table.column("processedAt").cast(STORED.field("processedAt").type)
    return pa.table([columns[name] for name in STORED.names], schema=STORED)


def lines_after(root: Path, files: list[tuple[str, int]], seq: int) -> Iterator[tuple[int, bytes]]:
    """The notification lines above a seq, in pieces of whole lines, as (seq of the first line, bytes).

    `files` are the segments (path relative to `root`, committed end) in order. Seqs are dense, so lines are counted
    and not parsed to find the place.
    """
    for index, (name, end) in enumerate(files):
        first = int(Path(name).stem)
        if index + 1 < len(files) and int(Path(files[index + 1][0]).stem) <= seq + 1:
            continue
        with (root / name).open("rb") as file:
            position, rest = 0, b""
            while position < end:
                piece = file.read(min(_READ_BYTES, end - position))
                if not piece:
                    raise CorruptionError(f"{root / name} ends at byte {position}, {end} are committed: {MEND}")
                position += len(piece)
                data = rest + piece
                cut = data.rfind(b"\n") + 1
                data, rest = data[:cut], data[cut:]
                lines = data.count(b"\n")
                skip = min(max(seq + 1 - first, 0), lines)
                start = 0
                for _ in range(skip if skip < lines else 0):
                    start = data.index(b"\n", start) + 1
                if skip < lines:
                    yield first + skip, data[start:]
                first += lines
            if rest:
                raise CorruptionError(f"{root / name}: the committed bytes end in the middle of a line: {MEND}")

"""What is kept of a sink under `internal/forward/`: its checkpoint, its lock, its dead letters.

| file | what |
| --- | --- |
| `<name>.json` | the checkpoint: how far the sink has acknowledged, and how it goes |
| `<name>.lock` | held by the process that ships for this sink |
| `<name>.dead.jsonl` | messages that were given up: `{"seq","error","time","message"}` |
| `<name>.retry` | asks whoever holds the lock to send the dead letters again |
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from outbox.forwarder.sink import Message
from store.errors import CorruptionError, OncelakeError, StoreInUseError
from store.files import Disk, Lock

__all__ = ["Checkpoint", "Desk", "ShippedElsewhereError"]

FOLDER = Path("internal") / "forward"

_CHUNK_BYTES = 1 << 20
_TAIL_BYTES = 1 << 16


class ShippedElsewhereError(OncelakeError):
    """Another process ships for this sink."""


class Checkpoint(msgspec.Struct, rename="camel"):
    """Everything up to `seq` is acknowledged, filtered out or a dead letter; `sent` is the newest acknowledged one.

    `start` is the seq after which the sink began. `resent` counts the bytes of the dead-letter file that went out
    again. `disabled` says why nothing is sent any more, or is empty. `attempts`, `failures`, `state` and `problem` are
    those of the process that ships or was the last to, for others to see.
    """

    store_id: str
    feed: str
    start: int
    seq: int
    sent: int = 0
    resent: int = 0
    disabled: str = ""
    attempts: int = 0
    failures: int = 0
    state: str = ""
    problem: str = ""


class _Letter(msgspec.Struct):
    seq: int
    error: str
    time: str
    message: msgspec.Raw


class Desk:
    """The files of one sink."""

    def __init__(self, root: Path, name: str, disk: Disk) -> None:
        self.folder = root / FOLDER
        self._disk = disk
        self._path = self.folder / f"{name}.json"
        self._letters = self.folder / f"{name}.dead.jsonl"
        self._marker = self.folder / f"{name}.retry"
        self._lock_path = self.folder / f"{name}.lock"
        self._lock: Lock | None = None

    def take(self) -> None:
        """Become the one process that ships for this sink; `ShippedElsewhereError` where another is."""
        self._disk.make_directory(self.folder)
        try:
            self._lock = Lock(self._lock_path)
        except StoreInUseError:
            owner = self._lock_path.read_text("ascii", "replace").strip()
            raise ShippedElsewhereError(f"process {owner or 'unknown'} ships for it") from None

    @property
    def lock_path(self) -> Path:
        """Held by the process that ships."""
        return self._lock_path

    def release(self) -> None:
        """Let another process ship."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def load(self) -> Checkpoint | None:
        """The checkpoint, or None where there is none yet."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Checkpoint)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise CorruptionError(
                f"{self._path} is damaged ({error}): restore it, or remove it, and the sink begins at its `start`"
            ) from error

    def save(self, checkpoint: Checkpoint) -> None:
        """Put the checkpoint in place of the one before, durably."""
        self._disk.replace(self._path, msgspec.json.encode(checkpoint) + b"\n")

    def bury(self, messages: Sequence[Message], error: str) -> None:
        """Append messages to the dead letters, durably; a line that a power cut tore is cut off first.

        Its message is not lost: the checkpoint had not passed it.
        """
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        lines = [msgspec.json.encode(_Letter(seq, error, now, msgspec.Raw(line))) + b"\n" for seq, line in messages]
        length = self._whole_bytes()
        is_torn = self.letter_bytes() > length
        appender = self._disk.appender(self._letters, length)
        try:
            if is_torn:
                appender.cut(length)
            appender.append(b"".join(lines))
            appender.sync()
        except OSError:
            with contextlib.suppress(OSError):
                appender.cut(length)  # they are buried anew, and should not stand there twice
            raise
        finally:
            appender.close()

    def letters(self, offset: int, limit: int) -> tuple[list[Message], int]:
        """At most `limit` dead letters from an offset on, and the offset behind them."""
        found: list[Message] = []
        try:
            with self._letters.open("rb") as file:
                file.seek(offset)
                size = 0
                while len(found) < limit and size < _CHUNK_BYTES and (line := file.readline()).endswith(b"\n"):
                    letter = msgspec.json.decode(line, type=_Letter)
                    found.append(Message(letter.seq, bytes(letter.message)))
                    size += len(line)
                return found, offset + size
        except FileNotFoundError:
            return [], offset
        except msgspec.MsgspecError as error:
            raise CorruptionError(f"{self._letters}, byte {offset}: a line is damaged ({error}): mend it") from error

    def letter_bytes(self) -> int:
        """The size of the dead-letter file, 0 without one."""
        try:
            return self._letters.stat().st_size
        except FileNotFoundError:
            return 0

    def _whole_bytes(self) -> int:
        """The bytes of the dead-letter file up to its last line end."""
        end = self.letter_bytes()
        if not end:
            return 0
        with self._letters.open("rb") as file:
            while end:
                start = max(0, end - _TAIL_BYTES)
                file.seek(start)
                if found := file.read(end - start).rfind(b"\n") + 1:
                    return start + found
                end = start
        return 0

    def remove_letters(self, passed: int) -> None:
        """These bytes of them are done with; what was given up since stays."""
        if self._whole_bytes() <= passed:
            if self._letters.exists():
                self._disk.remove(self._letters)
                self._disk.sync_directory(self.folder)
            return
        with self._letters.open("rb") as file:
            file.seek(passed)
            rest = file.read()
        self._disk.replace(self._letters, rest)

    def ask_to_retry(self) -> None:
        """Tell whoever ships for this sink to send the dead letters again, and to enable it."""
        self._disk.make_directory(self.folder)
        self._disk.write(self._marker, f"{os.getpid()}\n".encode())

    def is_asked_to_retry(self) -> bool:
        """Whether somebody asked."""
        return self._marker.exists()

    def answer_retry(self) -> None:
        """It is done."""
        if self._marker.exists():
            self._disk.remove(self._marker)

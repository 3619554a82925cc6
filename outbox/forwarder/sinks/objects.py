"""Objects: whole JSONL files in a bucket or a folder, closed when they are written and never written again.

An object is named by its first seq, `notifications-00000000000000000001.jsonl`, and written only if there is none of
that name, so that an attempt that goes through late cannot put a line in twice. Where the objects end is asked of the
store itself, so that none overlap however the forwarder was killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from outbox.forwarder.sink import Found, Message, Refused, Stale, Undelivered, head_of
from store.files import Disk

__all__ = ["Bucket", "Folder", "ObjectSink"]


class Bucket(Protocol):
    """Where objects lie. Calls raise `Undelivered`."""

    def newest(self, prefix: str) -> str | None:
        """The last name with this prefix, by code point; None without any."""

    def get(self, name: str) -> bytes:
        """The bytes of an object."""

    def put_new(self, name: str, data: bytes) -> bool:
        """Write an object, durably; False where the name is taken, and nothing is written."""

    def close(self) -> None:
        """Nothing is asked any more."""


class ObjectSink:
    """A feed as objects."""

    def __init__(self, bucket: Bucket, feed: str) -> None:
        self._bucket = bucket
        self._prefix = f"{feed}-"

    def open(self) -> Found | None:
        """The last line of the last object. None where there are none: they may have been taken away, once read."""
        name = self._bucket.newest(self._prefix)
        if name is None:
            return None
        lines = self._bucket.get(name).splitlines()
        try:
            return Found(head_of(lines[-1]).seq, lines[-1])
        except (IndexError, msgspec.MsgspecError):
            raise Refused(f"{name} does not end in a line of a feed: somebody else writes there") from None

    def send(self, messages: Sequence[Message]) -> None:
        """One object."""
        name = f"{self._prefix}{messages[0].seq:020d}.jsonl"
        if not self._bucket.put_new(name, b"".join(line + b"\n" for _, line in messages)):
            raise Stale(f"{name} is there already")

    def resend(self, messages: Sequence[Message]) -> None:
        """Objects of their own beside the others: `resent-notifications-….jsonl`, kept where they are there."""
        name = f"resent-{self._prefix}{messages[0].seq:020d}-{messages[-1].seq:020d}.jsonl"
        self._bucket.put_new(name, b"".join(line + b"\n" for _, line in messages))

    def close(self) -> None:
        """The bucket too."""
        self._bucket.close()


class Folder:
    """A folder as a bucket: a file is there as a whole or not at all."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk

    def newest(self, prefix: str) -> str | None:
        """Also makes the folder, and clears away what a killed attempt left."""
        self._disk.make_directory(self._path)
        names = [path.name for path in self._path.iterdir()]
        for name in names:
            if name.startswith(f".{prefix}") and name.endswith(".tmp"):
                self._disk.remove(self._path / name)  # it may be a second name of the finished file
        return max((name for name in names if name.startswith(prefix) and name.endswith(".jsonl")), default=None)

    def get(self, name: str) -> bytes:
        """The bytes of a file."""
        return (self._path / name).read_bytes()

    def put_new(self, name: str, data: bytes) -> bool:
        """Written and synced beside, then renamed in."""
        staged = self._path / f".{name}.tmp"
        try:
            self._disk.write(staged, data)
            self._disk.move_new(staged, self._path / name)
            self._disk.sync_directory(self._path)
        except FileExistsError:
            self._disk.remove(staged)
            return False
        except OSError as error:
            raise Undelivered(f"{self._path / name}: {error}") from error
        return True

    def close(self) -> None:
        """Nothing is open."""

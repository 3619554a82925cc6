"""Where a file goes when it is done, and the receipt that comes beside it, last of all."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import msgspec

from store.files import Disk
from store.journal import InputState

__all__ = ["RECEIPT_SUFFIX", "move", "receipt_of", "receipt_path", "sha256_of"]

RECEIPT_SUFFIX = ".receipt.json"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COMPRESSED = {".gz", ".zst"}
_NAME_BYTES = 255 - len(f".{RECEIPT_SUFFIX}.tmp")
"""File systems take names of 255 bytes; the receipt is staged beside the file under a longer one."""

_ENDING_BYTES = 32
_READ_BYTES = 1 << 18


def sha256_of(path: Path) -> tuple[int, str]:
    """Size and SHA-256 (hex) of a file."""
    hasher = hashlib.sha256()
    size = 0
    room = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(room):
            hasher.update(room[:read])
            size += read
    return size, hasher.hexdigest()


def receipt_of(state: InputState, finished_at_us: int) -> bytes:
    """The receipt: the batch answer, then the file, and for a failed one why."""
    members = msgspec.to_builtins(state.answer)
    members |= {
        "file": state.path,
        "bytes": state.bytes,
        "sha256": state.sha256,
        "startedAt": _canonical(state.started_at_us),
        "finishedAt": _canonical(finished_at_us),
    }
    if state.failure is not None:
        members |= msgspec.to_builtins(state.failure)
    return msgspec.json.format(msgspec.json.encode(members), indent=2) + b"\n"


def move(disk: Disk, inbox: Path, target_root: Path, state: InputState, seen: os.stat_result | None) -> Path:
    """Move a finished file out of the inbox, to where its receipt belongs; done again after a crash it goes on.

    `seen` is what the file was when it was read; without it (after a crash) its content is compared. Another file
    that has come under the same name meanwhile stays where it is: `FileNotFoundError`, as if it had been taken away.
    Neither directory is synced: the caller does that once for many files, before it forgets the input.
    """
    source = inbox / state.path
    target = _moved_before(target_root, state) if seen is None else None
    if target is None:
        if not _is_same(source, state, seen):
            raise FileNotFoundError(source)
        for target in _targets(target_root, state.path):
            if _is_free(target):
                disk.make_directory(target.parent)
                try:
                    disk.move_new(source, target)
                except FileExistsError:
                    continue
                break
    elif not os.path.lexists(target):  # a power cut kept the name of the receipt, and not that of the file
        if not _is_same(source, state, seen):
            raise FileNotFoundError(source)
        disk.move_new(source, target)
    elif os.path.lexists(source) and source.samefile(target):
        disk.remove(source)  # a crash between the link and the unlink of the move
    assert target is not None
    return target


def _is_same(source: Path, state: InputState, seen: os.stat_result | None) -> bool:
    """Whether the file in the inbox is still the one that was committed."""
    if not os.path.lexists(source):
        return False
    now = source.lstat()
    if seen is not None:
        return (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns) == (
            seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns,
        )  # fmt: skip
    if not stat.S_ISREG(now.st_mode):
        return state.sha256 == ""
    return sha256_of(source) == (state.bytes, state.sha256)


def receipt_path(target: Path) -> Path:
    """The receipt's place beside a file."""
    return target.with_name(target.name + RECEIPT_SUFFIX)


def _is_free(target: Path) -> bool:
    return not os.path.lexists(target) and not os.path.lexists(receipt_path(target))


def _moved_before(root: Path, state: InputState) -> Path | None:
    """Where the file went before a crash: with a receipt of just this input, or still without one."""
    for target in _targets(root, state.path):
        if receipt_path(target).exists():
            if _is_receipt_of(receipt_path(target), state):
                return target
        elif not os.path.lexists(target):
            return None
        elif target.is_file() and sha256_of(target) == (state.bytes, state.sha256):
            return target
    return None


def _is_receipt_of(path: Path, state: InputState) -> bool:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except (OSError, msgspec.MsgspecError):
        return False
    return (found.get("sha256"), found.get("startedAt")) == (state.sha256, _canonical(state.started_at_us))


def _targets(root: Path, name: str) -> Iterator[Path]:
    """The places for a file of the inbox; a folder of it that is a file here gets another name like a file does."""
    *folders, last = Path(name).parts
    directory = root
    for folder in folders:
        directory = next(path for path in _names(directory, folder) if path.is_dir() or not os.path.lexists(path))
    return _names(directory, last)


def _names(directory: Path, name: str) -> Iterator[Path]:
    """`name.ext`, `name.2.ext`, `name.3.ext` …; a compression ending stays with the format's.

    A name that leaves no room for that of its receipt is cut.
    """
    path = Path(name)
    endings = path.suffixes[-2:] if path.suffix in _COMPRESSED else path.suffixes[-1:]
    ending = "".join(endings)
    if len(os.fsencode(ending)) > _ENDING_BYTES:
        ending = ""
    stem = name.removesuffix(ending)
    for number in count(1):
        rest = f".{number}{ending}" if number > 1 else ending
        room = _NAME_BYTES - len(os.fsencode(rest))
        yield directory / (os.fsencode(stem)[:room].decode("utf-8", "ignore") + rest)


def _canonical(us: int) -> str:
    return (_EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

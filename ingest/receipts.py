"""Where a file goes when it is done, and the receipt beside it. The receipt comes last."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import msgspec

from store.files import Disk
from store.journal import InputState

__all__ = ["RECEIPT_SUFFIX", "finish", "receipt_of", "sha256_of"]

RECEIPT_SUFFIX = ".receipt.json"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COMPRESSED = {".gz", ".zst"}


def sha256_of(path: Path) -> tuple[int, str]:
    """Size and SHA-256 (hex) of a file."""
    hasher = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while piece := file.read(4 << 20):
            hasher.update(piece)
            size += len(piece)
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


def finish(disk: Disk, inbox: Path, target_root: Path, state: InputState, finished_at_us: int) -> Path:
    """Move a finished file out of the inbox and write its receipt; done again after a crash it goes on.

    Neither directory is synced: the caller does that once for many files, before it forgets the input.
    """
    source = inbox / state.path
    target = _moved_before(target_root, state, source)
    if target is None:
        for target in _names(target_root / state.path):
            if _is_free(target):
                disk.make_directory(target.parent)
                try:
                    disk.move_new(source, target)
                except FileExistsError:
                    continue
                break
    elif source.exists() and os.path.samefile(source, target):
        disk.remove(source)  # a crash between the link and the unlink of the move
    assert target is not None
    disk.replace(receipt_path(target), receipt_of(state, finished_at_us), sync=False)
    disk.sync_file(receipt_path(target))
    return target


def receipt_path(target: Path) -> Path:
    """The receipt's place beside a file."""
    return target.with_name(target.name + RECEIPT_SUFFIX)


def _is_free(target: Path) -> bool:
    return not os.path.lexists(target) and not os.path.lexists(receipt_path(target))


def _moved_before(root: Path, state: InputState, source: Path) -> Path | None:
    """Where a crash left the file: moved, or linked, and without a whole receipt (a receipt is renamed in whole)."""
    for target in _names(root / state.path):
        if not os.path.lexists(target):
            if not os.path.lexists(receipt_path(target)):
                return None
            continue
        if receipt_path(target).exists():
            continue
        if source.exists() and not os.path.samefile(source, target):
            continue
        if target.is_file() and sha256_of(target) == (state.bytes, state.sha256):
            return target
    return None


def _names(target: Path) -> Iterator[Path]:
    """`name.ext`, `name.2.ext`, `name.3.ext` …; a compression ending stays with the format's."""
    yield target
    endings = target.suffixes[-2:] if target.suffix in _COMPRESSED else target.suffixes[-1:]
    ending = "".join(endings)
    stem = target.name[: len(target.name) - len(ending)] if ending else target.name
    for number in count(2):
        yield target.with_name(f"{stem}.{number}{ending}")


def _canonical(us: int) -> str:
    return (_EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

"""The commit journal, read anew: the chain of frames, and what they say of files, seqs and rules.

Frames: magic "OLJ1" | u32 LE payload length | 16 bytes digest of the frame before | payload (JSON) | 16 bytes
BLAKE2b of all that stands before. Only the newest journal file that begins with a whole frame counts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store.messages_sql import RulesSince
from store.verification.report import Findings, VanishedError

__all__ = ["LOGS", "Commits", "LogFile", "read_commits"]

LOGS = ("outbox/notifications", "outbox/alerts", "rejected")

_MAGIC = b"OLJ1"
_HEAD_BYTES = 4 + 4 + 16
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class LogFile:
    """The committed part of a log segment: its bytes [0, end) and their xxh3-64."""

    path: str
    end: int
    sum: str

    @property
    def first(self) -> int:
        """The number in its name: the first seq that it may hold. -1 where the name is not one."""
        stem = Path(self.path).stem
        return int(stem) if stem.isdecimal() else -1


@dataclass
class Commits:
    """What the frames say, folded: everything up to commit `number`, seq `seq`."""

    file: str = ""
    seq: int = 0
    number: int = -1
    processed_at: int = 0
    logs: dict[str, list[LogFile]] = field(default_factory=lambda: {log: [] for log in LOGS})
    rules: list[RulesSince] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    """By log: segments below this number were removed by its retention."""

    def apply(self, frame: dict[str, Any]) -> None:
        """One more frame."""
        if frame.get("checkpoint") is not None:
            self._restore(frame["checkpoint"])
        for end in frame["files"]:
            self._grow(LogFile(end["path"], end["end"], end["sum"]))
        for log, first in frame.get("kept", {}).items():
            self.kept[log] = first
            self.logs[log] = [file for file in self.logs[log] if file.first >= first]
        if frame.get("rules") is not None:
            self.rules.append(_rules(frame["firstSeq"], frame["rules"]))
        self.seq, self.number, self.processed_at = frame["lastSeq"], frame["number"], frame["processedAt"]

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.logs = {log: [] for log in LOGS}
        for segment in checkpoint.get("segments", []):
            self._grow(LogFile(segment["path"], segment["bytes"], segment["sum"]))
        for end in checkpoint.get("files", []):
            self._grow(LogFile(end["path"], end["end"], end["sum"]))
        self.kept = dict(checkpoint.get("kept", {}))
        self.rules = [_rules(rules["firstSeq"], rules["rules"]) for rules in checkpoint.get("rules", [])]

    def _grow(self, end: LogFile) -> None:
        files = self.logs[str(Path(end.path).parent)]
        if files and files[-1].path == end.path:
            files[-1] = end
        else:
            files.append(end)


def read_commits(root: Path, findings: Findings) -> Commits:
    """The newest journal, its chain proven as far as it reaches back. Damage becomes differences of kind `journal`."""
    directory = root / "internal" / "journal"
    commits = Commits(file="internal/journal")
    paths = sorted(directory.glob("*.journal"), reverse=True)
    for position, path in enumerate(paths):
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise VanishedError(f"{path} was rotated away") from error
        frame = _frame_at(data, 0)
        if frame is None and _next_frame(data, 0) is None:
            if position + 1 == len(paths):
                findings.add("journal", _name(root, path), "no journal file begins with a whole frame", offset=0)
            continue  # begun and not finished: the one before it counts
        commits.file = _name(root, path)
        before = _last_digest(paths[position + 1]) if position + 1 < len(paths) else None
        if before is not None and frame is not None and frame.before != before:
            findings.add("journal", commits.file, "its first frame does not follow the file before it", offset=0)
        _fold(commits, data, findings)
        return commits
    if not paths and (list(root.glob("outbox/*/*.jsonl")) or list(root.glob("records/*/*.parquet"))):
        findings.add("journal", commits.file, "there is no journal, and the store holds records")
    return commits


@dataclass(frozen=True)
class _Frame:
    before: bytes
    payload: bytes
    digest: bytes
    end: int


def _frame_at(data: bytes, offset: int) -> _Frame | None:
    """The whole and good frame at `offset`, or None."""
    size = int.from_bytes(data[offset + 4 : offset + 8], "little")
    close = offset + _HEAD_BYTES + size
    end = close + _DIGEST_BYTES
    if data[offset : offset + 4] != _MAGIC or end > len(data):
        return None
    digest = hashlib.blake2b(memoryview(data)[offset:close], digest_size=_DIGEST_BYTES).digest()
    if digest != data[close:end]:
        return None
    return _Frame(data[offset + 8 : offset + _HEAD_BYTES], data[offset + _HEAD_BYTES : close], digest, end)


def _next_frame(data: bytes, offset: int) -> int | None:
    """Where the next good frame after `offset` begins."""
    while (offset := data.find(_MAGIC, offset + 1)) != -1:
        if _frame_at(data, offset) is not None:
            return offset
    return None


def _last_digest(path: Path) -> bytes | None:
    """The digest of the last frame of an older file; None where that cannot be told."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    offset, digest = 0, None
    while (frame := _frame_at(data, offset)) is not None:
        offset, digest = frame.end, frame.digest
    return digest


def _fold(commits: Commits, data: bytes, findings: Findings) -> None:
    offset, chain, whole = 0, None, True
    while offset < len(data):
        frame = _frame_at(data, offset)
        if frame is None:
            follower = _next_frame(data, offset)
            if follower is None:
                return  # a commit that was never answered
            findings.add(
                "journal",
                commits.file,
                f"the frame after commit {commits.number} is damaged, and a good one follows at byte {follower}",
                offset=offset,
                seq=commits.seq + 1,
            )
            offset, chain, whole = follower, None, False
            continue
        _check(commits, frame, chain, offset, whole, findings)
        commits.digests[commits.number] = frame.digest.hex()
        offset, chain, whole = frame.end, frame.digest, True


def _check(commits: Commits, frame: _Frame, chain: bytes | None, offset: int, whole: bool, findings: Findings) -> None:
    """Apply a frame, and say where it does not follow from the one before it. `whole`: nothing is lost between."""

    def wrong(message: str) -> None:
        findings.add("journal", commits.file, message, offset=offset)

    try:
        body = json.loads(frame.payload)
        first = offset == 0
        if chain is not None and frame.before != chain:
            wrong("the frame does not hold the digest of the one before it")
        if first:
            if body.get("checkpoint") is None:
                wrong("the first frame holds no checkpoint")
            commits.digests[body["number"] - 1] = frame.before.hex()
        elif whole:
            if body["number"] != commits.number + 1:
                wrong(f"commit {body['number']} follows commit {commits.number}")
            if body["firstSeq"] != commits.seq + 1:
                wrong(f"commit {body['number']} begins with seq {body['firstSeq']}, seq {commits.seq + 1} is next")
        if body["lastSeq"] < body["firstSeq"] - 1:
            wrong(f"commit {body['number']} ends with seq {body['lastSeq']}, before it begins")
        if body["processedAt"] < commits.processed_at:
            wrong(f"processedAt of commit {body['number']} goes back")
        commits.apply(body)
    except (ValueError, KeyError, TypeError) as error:
        wrong(f"the frame has a payload that cannot be read: {error!r}")


def _rules(first_seq: int, rules: dict[str, Any]) -> RulesSince:
    return RulesSince(first_seq, rules["threshold"], rules.get("byUnit", {}), rules.get("byDestination", {}))


def _name(root: Path, path: Path) -> str:
    return str(path.relative_to(root))

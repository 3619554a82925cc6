"""The journal's persisted types (the file itself follows)."""

from __future__ import annotations

import msgspec

from store.outcomes import Answer

__all__ = ["Failure", "InputState", "Position"]


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
    """How far an input file has come, with the counts so far: what makes receipts right after any crash."""

    path: str
    bytes: int
    sha256: str
    started_at_us: int
    position: Position
    answer: Answer
    done: bool = False
    failure: Failure | None = None

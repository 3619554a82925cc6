"""What the decoders hand to the committer: validated columns, the rejects beside them, and where to go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from store.journal import Failure, Position
from store.outcomes import FieldError

__all__ = ["Batch", "Chunk", "InputStep", "Located", "Record", "Reject", "Source"]


class Record(NamedTuple):
    """One validated record in the order of the canonical fields: time in UTC microseconds, value exact."""

    record_id: str
    time_us: int
    source_id: str
    destination_id: str
    type: Literal["positive", "negative"]
    value: Decimal
    unit: str
    reference: str


class Located(NamedTuple):
    """A record as its source sent it. `line` is 1-based, None where the format has no lines."""

    line: int | None
    original: bytes


@dataclass(frozen=True)
class Reject:
    """A record that broke a rule. `record_id` and `source_id` are None where they are themselves not valid."""

    index: int
    line: int | None
    record_id: str | None
    errors: tuple[FieldError, ...]
    original: bytes
    source_id: str | None = None


@dataclass(frozen=True)
class Chunk:
    """A bounded piece of a batch, decoded and validated.

    `records` has the schema `store.schema.RECORD`; `index[i]` is the position in the batch of its row i; `locate(i)`
    gives row i as it was received (only asked for conflicts, so it may be slow). `received` counts valid and rejected
    records; `end` is where the next chunk begins.
    """

    records: pa.RecordBatch
    index: npt.NDArray[np.int64]
    rejects: list[Reject]
    received: int
    locate: Callable[[int], Located]
    end: Position


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a batch came from, as dead letters name it: a request (its id) or a file (its path in the inbox).

    `letter` is the id of the dead letter whose record is sent again.
    """

    request: str | None = None
    file: str | None = None
    letter: str | None = None


@dataclass(frozen=True)
class InputStep:
    """How far a file has come when its batch is committed; the committer adds the counts and keeps both together.

    `path` identifies the file (relative to the inbox, or absolute for `oncelake ingest`), `bytes` and `sha256` its
    content. A batch with a step has one chunk at most. A step whose `begin` is not where the last commit of the file
    ended is refused: a piece before it failed. `done` closes the file: no batch of it follows, and `failure` says why
    it ended early, if it did.
    """

    path: str
    bytes: int
    sha256: str
    started_at_us: int
    begin: Position
    end: Position
    done: bool = False
    failure: Failure | None = None


class Batch(NamedTuple):
    """What the committer takes: chunks of a batch, or the one `record` of a single POST with its `original` bytes.

    Without `atomic` and `dry_run` it is committed together with whatever else waits. `step` is there for files.
    """

    source: Source
    chunks: tuple[Chunk, ...] = ()
    record: Record | None = None
    original: bytes = b""
    atomic: bool = False
    dry_run: bool = False
    step: InputStep | None = None
    letters: tuple[Reject, ...] = ()
    """Dead letters for the batch as a whole (an invalid schema), which count as no record."""

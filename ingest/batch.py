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

from store.outcomes import FieldError

__all__ = ["Chunk", "Located", "Position", "Record", "Reject", "Source"]


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


class Position(msgspec.Struct, frozen=True):
    """Where the next chunk of a batch begins, so that a file can be gone on with after a crash.

    `offset` counts bytes of the decompressed stream (NDJSON, JSON, CSV) or rows (Parquet, Arrow); `index` counts
    records from 0; `line` is the 1-based line number of the next line (NDJSON, CSV), 0 elsewhere.
    """

    offset: int = 0
    index: int = 0
    line: int = 1


class Located(NamedTuple):
    """A record as its source sent it. `line` is 1-based, None where the format has no lines."""

    line: int | None
    original: bytes


@dataclass(frozen=True)
class Reject:
    """A record that broke a rule. `record_id` is None where it is itself not valid."""

    index: int
    line: int | None
    record_id: str | None
    errors: tuple[FieldError, ...]
    original: bytes


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
    """Where a batch came from, as dead letters name it: a request (its id) or a file (its path in the inbox)."""

    request: str | None = None
    file: str | None = None

"""The answers that a source gets: what became of each record, in the shapes of contract sections 2 and 4."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

__all__ = ["MAX_PROBLEMS", "Answer", "FieldError", "Problem", "Reply"]

MAX_PROBLEMS = 1_000
"""Problems that one answer lists; all are counted."""


class FieldError(msgspec.Struct, frozen=True):
    """One broken rule: the field (None where no field is to blame), a stable code and a message to act on."""

    field: str | None
    code: str
    message: str


class Problem(msgspec.Struct, frozen=True):
    """A record that was not stored. A conflict has `seq` (of the stored one) and `fields`, a rejection `errors`.

    `seq` is null where the record that it conflicts with is one of the same batch that was not stored either (a dry
    run, a refused atomic batch).
    """

    index: int
    record_id: str | None = msgspec.field(name="recordId")
    status: Literal["conflict", "rejected"]
    seq: int | None | msgspec.UnsetType = msgspec.UNSET
    fields: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    errors: tuple[FieldError, ...] | msgspec.UnsetType = msgspec.UNSET


class Answer(msgspec.Struct, frozen=True, rename="camel"):
    """The answer to a batch, as in contract section 4: it comes after the commit is durable.

    Over HTTP this is the body; in a receipt its members stand beside those of the file.
    """

    received: int
    accepted: int
    duplicate: int
    conflict: int
    rejected: int
    first_seq: int | None
    last_seq: int | None
    problems: list[Problem]
    problems_truncated: bool


class Reply(NamedTuple):
    """What became of a body that was posted. `single` tells one JSON object from a batch.

    `duplicate_seq` is the seq of a single record that was stored before; `record_id` is a single record's, None where
    it is itself not valid.
    """

    answer: Answer
    single: bool
    atomic_refused: bool = False
    duplicate_seq: int | None = None
    record_id: str | None = None

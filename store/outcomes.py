"""The answers that a source gets: what became of each record, in the shapes of contract sections 2 and 4."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["MAX_PROBLEMS", "Answer", "FieldError", "Problem", "Status"]

MAX_PROBLEMS = 1_000
"""Problems that one answer lists; all are counted."""

Status = Literal["accepted", "duplicate", "conflict", "rejected"]


class FieldError(msgspec.Struct, frozen=True):
    """One broken rule: the field (None where no field is to blame), a stable code and a message to act on."""

    field: str | None
    code: str
    message: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record that was not stored. A conflict has `seq` (of the stored one) and `fields`, a rejection `errors`."""

    index: int
    record_id: str | None = msgspec.field(name="recordId")
    status: Literal["conflict", "rejected"]
    seq: int | None = None
    fields: tuple[str, ...] | None = None
    errors: tuple[FieldError, ...] | None = None


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

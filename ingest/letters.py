"""Dead letters: what was not stored and why, a JSON line each under `rejected/`.

The members stand always, null where they do not apply, so that DuckDB's `read_json` gives the same columns for every
file. The original record is text as it was received, or base64 where it is no UTF-8, and capped.
"""

from __future__ import annotations

import base64
import codecs
from typing import Literal

import msgspec

from ingest.batch import Located, Reject, Source
from store.outcomes import FieldError

__all__ = ["ORIGINAL_BYTES", "Letters"]

ORIGINAL_BYTES = 64 << 10
"""An original record is kept up to here."""


Ids = tuple[str | None, str | None]
"""The recordId and the sourceId of a record, where they are valid."""


class _Source(msgspec.Struct, frozen=True):
    request: str | None
    file: str | None
    line: int | None
    index: int | None
    letter: str | None


class _Letter(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    status: Literal["conflict", "rejected", "resolved"]
    record_id: str | None
    source_id: str | None
    seq: int | None
    errors: tuple[FieldError, ...] | None
    fields: tuple[str, ...] | None
    record: str | None
    encoding: Literal["utf-8", "base64"]
    truncated: bool
    source: _Source
    time: str


class Letters:
    """The dead letters of one commit; ids are the commit's number and a running one."""

    def __init__(self, commit: int, time: str) -> None:
        self._commit = commit
        self._time = time
        self._lines: list[bytes] = []
        self._encode = msgspec.json.Encoder().encode

    def rejected(self, source: Source, reject: Reject) -> None:
        """A record (or, with index -1, a whole batch) that broke a rule."""
        located = Located(reject.line, reject.original)
        index = reject.index if reject.index >= 0 else None
        self._add("rejected", source, index, located, (reject.record_id, reject.source_id), errors=reject.errors)

    def conflict(
        self, source: Source, index: int, located: Located, ids: Ids, seq: int, fields: tuple[str, ...]
    ) -> None:
        """A record whose recordId is stored with other values; `seq` is that of the stored one."""
        self._add("conflict", source, index, located, ids, seq=seq, fields=fields)

    def resolved(self, source: Source, original: bytes, ids: Ids, seq: int) -> None:
        """The record of a dead letter was sent again, and is stored as `seq`: committed together with it."""
        self._add("resolved", source, 0, Located(None, original), ids, seq=seq)

    def _add(
        self,
        status: Literal["conflict", "rejected", "resolved"],
        source: Source,
        index: int | None,
        located: Located,
        ids: Ids,
        *,
        seq: int | None = None,
        errors: tuple[FieldError, ...] | None = None,
        fields: tuple[str, ...] | None = None,
    ) -> None:
        kept = located.original[:ORIGINAL_BYTES]
        truncated = len(kept) < len(located.original)
        encoding: Literal["utf-8", "base64"] = "utf-8"
        try:
            # not the last of it: a character that the cap has cut is left out
            text, _ = codecs.utf_8_decode(kept, "strict", not truncated)
        except UnicodeDecodeError:
            text, encoding = base64.b64encode(kept).decode("ascii"), "base64"
        letter = _Letter(
            id=f"{self._commit}-{len(self._lines) + 1}",
            status=status,
            record_id=ids[0],
            source_id=ids[1],
            seq=seq,
            errors=errors,
            fields=fields,
            record=text,
            encoding=encoding,
            truncated=truncated,
            source=_Source(source.request, source.file, located.line, index, source.letter),
            time=self._time,
        )
        self._lines.append(self._encode(letter) + b"\n")

    def lines(self) -> bytes:
        """The JSON lines."""
        return b"".join(self._lines)

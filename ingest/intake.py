"""What HTTP hands in: a body decoded whole, submitted as a batch, and its reply.

Nothing of a body is committed before all of it is decoded, so a broken one stores nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from ingest.batch import Batch, Chunk, Located, Record, Reject, Source
from ingest.committer import Committer
from ingest.decode import Limits, decode_body, decode_single, decompressed
from ingest.formats import Compression, Format, by_encoding, by_media_type
from ingest.plan import Result
from ingest.record import Rules
from store.errors import InvalidSchemaError, OncelakeError, UndecodableError
from store.journal import Position
from store.outcomes import Answer, FieldError, Reply
from store.promise import Promise
from store.schema import RECORD

__all__ = ["Intake"]

_NO_RECORDS = pa.RecordBatch.from_pylist([], schema=RECORD)
_NOTHING = Answer(0, 0, 0, 0, 0, None, None, [], problems_truncated=False)


class Intake:
    """Bodies in, futures of replies out (`api.ports.Intake`). Decoding happens in the calling thread."""

    def __init__(self, committer: Committer, rules: Rules, limits: Limits) -> None:
        self._committer = committer
        self._rules = rules
        self._limits = limits

    def submit(
        self,
        body: bytes,
        media_type: str,
        encoding: str | None,
        *,
        atomic: bool,
        dry_run: bool,
        request_id: str,
        sources: frozenset[str] | None = None,
        letter: str | None = None,
    ) -> Promise[Reply]:
        """Decode a body and queue it. Raises what is wrong with it, or that the queue is full; see `store.errors`.

        Records of other sources than `sources` (None is all) are rejected. What becomes of the dead letter `letter`,
        whose record this is, is committed with it.
        """
        rules = self._rules if sources is None else dataclasses.replace(self._rules, sources=sources)
        fmt, compression = by_media_type(media_type), by_encoding(encoding)
        source = Source(request=request_id, letter=letter)
        body = decompressed(body, compression, self._limits)
        if fmt is Format.JSON:
            record = decode_single(body, rules)
            if record is not None:
                return self._single(record, body, source, atomic=atomic, dry_run=dry_run)
        if letter is not None:
            raise UndecodableError("the record of a dead letter is sent again as one JSON object (application/json)")
        try:
            chunks = decode_body(body, fmt, Compression.NONE, rules, self._limits)
        except InvalidSchemaError as error:
            return self._refused_schema(error, source, silent=atomic or dry_run)
        if not chunks:
            reply: Promise[Reply] = Promise()
            reply.set_result(Reply(_NOTHING, single=False))
            return reply
        return self._replied(Batch(source, tuple(chunks), atomic=atomic, dry_run=dry_run))

    def _single(
        self, record: Record | Reject, body: bytes, source: Source, *, atomic: bool, dry_run: bool
    ) -> Promise[Reply]:
        """One object; a rejected one is a chunk without records."""
        if isinstance(record, Reject):
            chunk = Chunk(_NO_RECORDS, np.zeros(0, np.int64), [record], 1, lambda row: Located(None, body), Position())
            batch = Batch(source, (chunk,), atomic=atomic, dry_run=dry_run)
        else:
            batch = Batch(source, record=record, original=body, atomic=atomic, dry_run=dry_run)
        return self._replied(batch, single=True, record_id=record.record_id)

    def _replied(self, batch: Batch, *, single: bool = False, record_id: str | None = None) -> Promise[Reply]:
        """Queue a batch; its result becomes the reply."""

        def answered(result: Result) -> Reply:
            unwanted = bool(result.answer.conflict or result.answer.rejected)
            refused = batch.atomic and not batch.dry_run and unwanted
            return Reply(result.answer, single, refused, result.duplicate_seq if single else None, record_id)

        return self._committer.submit(batch).then(answered)

    def _refused_schema(self, error: InvalidSchemaError, source: Source, *, silent: bool) -> Promise[Reply]:
        """One dead letter for the whole batch; the error is answered once it is durable."""
        if silent:
            raise error
        letter = Reject(-1, None, None, (FieldError(None, error.code, str(error)),), b"")
        reply: Promise[Reply] = Promise()

        def refused(future: Promise[Result]) -> None:
            failure = future.exception()
            reply.set_exception(failure if isinstance(failure, OncelakeError) else error)

        self._committer.submit(Batch(source, letters=(letter,))).add_done_callback(refused)
        return reply

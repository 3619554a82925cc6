"""From a group of batches to one commit and their answers: deduplicate, summarise, render. Nothing is written here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from ingest.batch import Batch, Chunk, Located, Record
from ingest.deduplicate import ACCEPTED, CONFLICT, DUPLICATE, Outcomes, decide
from ingest.history import Find, previous_texts
from ingest.letters import Letters
from ingest.prepare import Prepared, joined, prepared
from ingest.small import SMALL_ROWS, Small, decided_one_by_one, small_of, with_small
from outbox.alerts import exceeding
from outbox.messages import alert_lines, notification_lines
from store.fresh import Committed, columns_of
from store.hashing import Hasher
from store.head import Commit, Head
from store.journal import InputState, Rules
from store.outcomes import MAX_PROBLEMS, Answer, Problem
from store.plain import time_text
from store.schema import STORED

__all__ = ["Part", "Piece", "Plan", "Result", "decided", "planned"]

_US_UTC = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Piece:
    """A chunk that waits for a commit, and its preparation under way beside it.

    Small ones have none: they are prepared together with what else is small in the commit.
    """

    chunk: Chunk
    prepared: Future[Prepared] | None


class Part(NamedTuple):
    """What one commit takes of a batch: some of its chunks, or its single record."""

    batch: Batch
    pieces: tuple[Piece, ...] = ()

    @property
    def records(self) -> int:
        """Valid records."""
        return 1 if self.batch.record is not None else sum(piece.chunk.records.num_rows for piece in self.pieces)

    @property
    def received(self) -> int:
        """Records, valid or not."""
        return 1 if self.batch.record is not None else sum(piece.chunk.received for piece in self.pieces)


class Result(NamedTuple):
    """The answer to a part. `duplicate_seq` is there for a single record that is stored already."""

    answer: Answer
    duplicate_seq: int | None = None


@dataclass(frozen=True)
class Decided:
    """The records of a group with their outcomes; part i has rows `bounds[i]` to `bounds[i + 1]`."""

    records: Prepared | Small
    bounds: list[int]
    outcomes: Outcomes


@dataclass(frozen=True)
class Plan:
    """One commit and the results that are given once it is durable, one for each part."""

    commit: Commit
    results: list[Result]


def decided(parts: Sequence[Part], hasher: Hasher, head: Head) -> Decided:
    """The outcomes of all valid records of the parts, in their order."""
    bounds = [0]
    for part in parts:
        bounds.append(bounds[-1] + part.records)
    if 0 < bounds[-1] <= SMALL_ROWS and all(part.batch.record or not part.records for part in parts):
        small = small_of([part.batch.record for part in parts if part.batch.record], hasher)
        found = decided_one_by_one(small, head.each(), head.seq + 1)
        if found is not None:
            return Decided(small, bounds, found)
    records = joined(list(_prepared(parts, hasher)))
    if not records.rows.num_rows:
        return Decided(records, bounds, Outcomes(np.zeros(0, dtype=np.int8), np.zeros(0, dtype=np.int64), {}))
    outcomes = decide(records.rows, records.id_hi, records.id_lo, records.fingerprint, head, head.seq + 1)
    return Decided(records, bounds, outcomes)


def _prepared(parts: Sequence[Part], hasher: Hasher) -> Iterator[Prepared]:
    """All records of the parts in their order; single ones and small chunks side by side are prepared together."""
    small: list[pa.Table] = []
    singles: list[Record] = []
    for part in parts:
        if part.batch.record is not None:
            singles.append(part.batch.record)
            continue
        for piece in part.pieces:
            if singles:
                small.append(columns_of(singles))
                singles = []
            if piece.prepared is None:
                small.append(pa.Table.from_batches([piece.chunk.records]))
                continue
            if small:
                yield prepared(pa.concat_tables(small).combine_chunks(), hasher)
                small = []
            yield piece.prepared.result()
    if singles:
        small.append(columns_of(singles))
    if small:
        yield prepared(pa.concat_tables(small).combine_chunks(), hasher)


def planned(
    parts: Sequence[Part],
    what: Decided,
    head: Head,
    *,
    processed_at_us: int,
    rules: Rules,
    closed: tuple[str, ...],
    kept: Mapping[str, int],
) -> Plan:
    """The commit that follows the head: lines, dead letters and the steps of files, and the parts' results."""
    processed_at = time_text(processed_at_us)
    letters = Letters(head.next_number, processed_at)
    results = [result_of(part, what, index, letters) for index, part in enumerate(parts)]
    steps: dict[str, InputState] = {}
    for part, result in zip(parts, results, strict=True):
        if part.batch.step is not None:
            path = part.batch.step.path
            steps[path] = _step(part, result, head.inputs.get(path), steps.get(path))
    commit = Commit(
        processed_at_us,
        dead_letters=letters.lines(),
        inputs=tuple(steps.values()),
        closed=closed,
        rules=rules if rules != head.rules else None,
        kept=kept,
    )
    new = np.flatnonzero(what.outcomes.status == ACCEPTED)
    if len(new):
        records = what.records.taken(new)
        if isinstance(records, Small):
            found = with_small(commit, records, head.each(), head.seq + 1, processed_at, rules)
            if found is not None:
                return Plan(found, results)
            records = records.prepared()
        commit = _with_records(commit, records, head.find_summaries, head.seq + 1, processed_at, rules)
    return Plan(commit, results)


def _with_records(commit: Commit, new: Prepared, find: Find, first_seq: int, processed_at: str, rules: Rules) -> Commit:
    """The commit with the accepted records and their lines."""
    count = new.rows.num_rows
    seqs = pa.array(np.arange(first_seq, first_seq + count))
    at = pa.repeat(pa.scalar(commit.processed_at_us, pa.int64()).cast(_US_UTC), count)
    stored = pa.table([seqs, *new.rows.columns, at], schema=STORED)
    previous = previous_texts(stored, new.key_hi, new.key_lo, find)
    above, thresholds = exceeding(stored, rules)
    return dataclasses.replace(
        commit,
        committed=Committed(stored, new.id_hi, new.id_lo, new.fingerprint, new.key_hi, new.key_lo),
        notifications=notification_lines(first_seq, processed_at, new.texts, previous),
        alerts=alert_lines(seqs.take(above), processed_at, new.texts.take(above), thresholds) if len(above) else b"",
        first_alert_seq=first_seq + above[0].as_py() if len(above) else 0,
    )


def result_of(part: Part, what: Decided, index: int, letters: Letters | None = None) -> Result:
    """The answer to a part from the outcomes of its rows, its dead letters written beside it."""
    begin, end = what.bounds[index], what.bounds[index + 1]
    batch = part.batch
    if batch.record is not None and what.outcomes.status[begin] != CONFLICT:
        if batch.source.letter is not None and letters is not None:
            ids = (batch.record.record_id, batch.record.source_id)
            letters.resolved(batch.source, batch.original, ids, int(what.outcomes.seq[begin]))
        return _single(int(what.outcomes.status[begin]), int(what.outcomes.seq[begin]))
    status, seqs = what.outcomes.status[begin:end], what.outcomes.seq[begin:end]
    counts = np.bincount(status, minlength=3)
    rejects = [reject for piece in part.pieces for reject in piece.chunk.rejects]
    problems = [Problem(r.index, r.record_id, "rejected", errors=r.errors) for r in rejects[:MAX_PROBLEMS]]
    conflicts = np.flatnonzero(status == CONFLICT)
    for number, row in enumerate(conflicts.tolist()):
        ids = what.records.ids_of(begin + row)
        fields = what.outcomes.fields[begin + row]
        position, located = _locate(part, row, letters is not None)
        if number < MAX_PROBLEMS:
            problems.append(Problem(position, ids[0], "conflict", int(seqs[row]), fields))
        if letters is not None:
            letters.conflict(batch.source, position, located, ids, int(seqs[row]), fields)
    if letters is not None:
        for reject in (*rejects, *batch.letters):
            letters.rejected(batch.source, reject)
    problems.sort(key=lambda problem: problem.index)
    accepted = seqs[status == ACCEPTED]
    answer = Answer(
        received=part.received,
        accepted=int(counts[ACCEPTED]),
        duplicate=int(counts[DUPLICATE]),
        conflict=int(counts[CONFLICT]),
        rejected=len(rejects),
        first_seq=int(accepted[0]) if len(accepted) else None,
        last_seq=int(accepted[-1]) if len(accepted) else None,
        problems=problems[:MAX_PROBLEMS],
        problems_truncated=len(conflicts) + len(rejects) > MAX_PROBLEMS,
    )
    return Result(answer)


def _single(status: int, seq: int) -> Result:
    """The answer to a single record that is new or a duplicate, which most are."""
    if status == ACCEPTED:
        return Result(Answer(1, 1, 0, 0, 0, seq, seq, [], problems_truncated=False))
    return Result(Answer(1, 0, 1, 0, 0, None, None, [], problems_truncated=False), seq)


def _locate(part: Part, row: int, with_original: bool) -> tuple[int, Located]:
    """(index in the batch, record as received) of a row of the part."""
    if part.batch.record is not None:
        return 0, Located(None, part.batch.original)
    for chunk in (piece.chunk for piece in part.pieces):
        if row < chunk.records.num_rows:
            return int(chunk.index[row]), chunk.locate(row) if with_original else Located(None, b"")
        row -= chunk.records.num_rows
    raise AssertionError(f"row {row} is beyond the part")


def summed(first: Answer, second: Answer) -> Answer:
    """The answer to two parts of one batch, in their order."""
    problems = (first.problems + second.problems)[:MAX_PROBLEMS]
    conflict, rejected = first.conflict + second.conflict, first.rejected + second.rejected
    return Answer(
        received=first.received + second.received,
        accepted=first.accepted + second.accepted,
        duplicate=first.duplicate + second.duplicate,
        conflict=conflict,
        rejected=rejected,
        first_seq=second.first_seq if first.first_seq is None else first.first_seq,
        last_seq=first.last_seq if second.last_seq is None else second.last_seq,
        problems=problems,
        problems_truncated=conflict + rejected > len(problems),
    )


def _step(part: Part, result: Result, committed: InputState | None, earlier: InputState | None) -> InputState:
    """The state of a part's file after this commit: counts are totals, problems only those that this commit adds.

    `committed` is the state of the last commit, `earlier` that of a part of the same file before it in this one.
    """
    step = part.batch.step
    assert step is not None
    before = committed
    if before is not None and (before.sha256, before.started_at_us) != (step.sha256, step.started_at_us):
        before = None
    told = len(before.answer.problems) if before else 0
    base = earlier.answer if earlier else _without_problems(before.answer) if before else None
    answer = summed(base, result.answer) if base else result.answer
    return InputState(
        path=step.path,
        bytes=step.bytes,
        sha256=step.sha256,
        started_at_us=step.started_at_us,
        position=step.end,
        answer=_with_problems(answer, answer.problems[: MAX_PROBLEMS - told]),
        done=step.done,
        failure=step.failure,
    )


def _without_problems(answer: Answer) -> Answer:
    return _with_problems(answer, [])


def _with_problems(answer: Answer, problems: list[Problem]) -> Answer:
    return msgspec.structs.replace(answer, problems=problems)

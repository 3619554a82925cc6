"""The committer: the one thread that turns waiting batches into commits.

It takes whatever waits (group commit), so that many single POSTs share one sync; large batches are cut into parts of
bounded size. Requests go before the chunks of bulk files, and bulk work stops at a lower bound of hot rows than
requests do, so that the flush can keep up and memory stays bounded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec

from ingest.batch import Batch, Chunk
from ingest.plan import Part, Piece, Result, decided, planned, result_of, summed
from ingest.prepare import prepared
from store.errors import OncelakeError, QueueFullError, StoppingError, TooLargeError, TransientError
from store.journal import InputState, Position, Rules
from store.outcomes import Answer
from store.promise import Promise
from store.store import Store
from store.threads import give_way

__all__ = ["Committer", "CommitterSettings"]

logger = logging.getLogger("oncelake.committer")

_SMALL_ROWS = 1_024
"""Fewer records are prepared by the committer, those of all batches of a commit at once."""

_PREPARING_THREADS = 2

_REQUESTS_GO_ON_S = 1.0
"""So long after a request another one is expected, and commits of files are short."""

_SHORT_ROWS = 8_192
"""Of files in a short commit, or one piece, whatever its size."""

_COMMITTED_EVERY_S = 0.5
"""`committed.json` follows within a second of a commit (contract 5)."""


@dataclass(frozen=True)
class CommitterSettings:
    """Bounds of the committer; rows are records, valid or not."""

    queue_batches: int = 4_096
    queue_rows: int = 1_000_000
    bulk_pieces: int = 1_024
    bulk_rows: int = 262_144
    commit_rows: int = 65_536
    atomic_rows: int = 65_536
    hot_rows_soft: int = 1_000_000
    hot_rows_hard: int = 2_000_000
    hot_bytes_soft: int = 384 << 20
    hot_bytes_hard: int = 512 << 20


@dataclass
class _Job:
    """A batch that waits: the chunks that are still to be committed, and the answer to those that are."""

    batch: Batch
    future: Promise[Result] = field(default_factory=Promise)
    pieces: deque[Piece] = field(default_factory=deque)
    answer: Answer | None = None
    rows: int = 0

    @property
    def exclusive(self) -> bool:
        """Whether it is decided as a whole and alone."""
        return self.batch.atomic or self.batch.dry_run

    @property
    def bulk(self) -> bool:
        """Whether it is a piece of a file, which can wait."""
        return self.batch.step is not None

    @property
    def is_prepared(self) -> bool:
        """Whether a commit of its next piece can begin at once."""
        return not self.pieces or self.pieces[0].prepared is None or self.pieces[0].prepared.done()


class Committer:
    """Batches in, results out. `start` its thread, `submit` from any other, `stop` drains what waits."""

    def __init__(
        self,
        store: Store,
        rules: Rules,
        settings: CommitterSettings | None = None,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._rules = rules
        self._settings = settings or CommitterSettings()
        self._now_us = now_us
        self._on_commit = on_commit
        self._requests: deque[_Job] = deque()
        self._bulk: deque[_Job] = deque()
        self._queued_rows = 0
        self._closed: dict[str, None] = {}
        self._requests_were_last = False
        self._requested = -_REQUESTS_GO_ON_S
        self._wakeup = threading.Condition()
        self._stopping = False
        self._preparing = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="prepare", initializer=give_way)
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Refuse new batches, commit what waits, and end the thread."""
        with self._wakeup:
            self._stopping = True
            self._wakeup.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._preparing.shutdown()

    @property
    def alive(self) -> bool:
        """Whether batches are still taken."""
        return self._thread.is_alive() and not self._stopping and self._store.failure is None

    @property
    def waiting(self) -> int:
        """Batches that wait."""
        return len(self._requests) + len(self._bulk)

    def submit(self, batch: Batch) -> Promise[Result]:
        """Queue a batch. The future has its result once the commit is durable, or an `OncelakeError`.

        A piece of a file waits here for its turn; a request is refused with `QueueFullError` when too much waits.
        """
        job = _Job(batch, rows=1 if batch.record is not None else sum(chunk.received for chunk in batch.chunks))
        if batch.atomic and job.rows > self._settings.atomic_rows:
            raise TooLargeError(
                f"an atomic batch may hold {self._settings.atomic_rows} records, this one holds {job.rows}: "
                "send it without atomic, or in smaller batches",
                code="too_large_atomic",
            )
        with self._wakeup:
            if job.bulk:
                self._wakeup.wait_for(lambda: self._is_ending or self._has_bulk_room(job.rows))
            if self._is_ending:
                raise StoppingError("the service is stopping: send the batch again when it is back")
            if not job.bulk and (
                len(self._requests) >= self._settings.queue_batches
                or (self._requests and self._queued_rows + job.rows > self._settings.queue_rows)
            ):
                raise QueueFullError("too many batches wait to be committed: try again in a second")
            job.pieces.extend(map(self._piece, batch.chunks))
            (self._bulk if job.bulk else self._requests).append(job)
            if not job.bulk:
                self._queued_rows += job.rows
            self._wakeup.notify_all()
        return job.future

    def _piece(self, chunk: Chunk) -> Piece:
        """A chunk, and its preparation begun unless it is small."""
        if chunk.records.num_rows < _SMALL_ROWS:
            return Piece(chunk, None)
        preparing = self._preparing.submit(prepared, chunk.records, self._store.hasher)
        preparing.add_done_callback(lambda _: self._wake())
        return Piece(chunk, preparing)

    def _wake(self) -> None:
        with self._wakeup:
            self._wakeup.notify_all()

    @property
    def _is_ending(self) -> bool:
        """Whether nothing more is taken, so that nothing may wait for it."""
        return self._stopping or self._store.failure is not None

    def _has_bulk_room(self, rows: int) -> bool:
        settings = self._settings
        waiting = sum(job.rows for job in self._bulk)
        return len(self._bulk) < settings.bulk_pieces and (not waiting or waiting + rows <= settings.bulk_rows)

    def input_state(self, path: str) -> InputState | None:
        """How far a file has come, as of the last commit."""
        return None if path in self._closed else self._store.state.inputs.get(path)

    def input_states(self) -> list[InputState]:
        """All files that are not closed."""
        return [state for state in list(self._store.state.inputs.values()) if state.path not in self._closed]

    def close_input(self, path: str) -> None:
        """Forget a finished file, once it is moved and has its receipt; remembered with the next commit."""
        with self._wakeup:
            self._closed[path] = None

    def run_once(self, timeout_s: float) -> bool:
        """Wait for work, and make one commit of it. False where nothing came, or nothing of it could be committed."""
        jobs, closed = self._take(timeout_s)
        try:
            if jobs and jobs[0].exclusive:
                self._decide_alone(jobs[0], closed)
            elif jobs or closed:
                return self._commit(jobs, closed) or bool(jobs)
        except BaseException as error:
            self._give_up(jobs, error)
            raise
        return bool(jobs)

    def _give_up(self, jobs: list[_Job], error: BaseException) -> None:
        """Nobody may wait for a committer that has failed."""
        self._store.failure = self._store.failure or error
        with self._wakeup:
            left = [job for job in (*jobs, *self._requests, *self._bulk) if not job.future.done()]
            self._requests.clear()
            self._bulk.clear()
            self._wakeup.notify_all()
        self._refuse(left, StoppingError(f"the committer failed ({error}): its last outcome is known after a restart"))

    def _run(self) -> None:
        try:
            self._run_until_stopped()
        except Exception:
            logger.critical("the committer failed, the service must be started again", exc_info=True)

    def _run_until_stopped(self) -> None:
        written = 0.0
        while True:
            worked = self.run_once(_COMMITTED_EVERY_S / 2)
            if time.monotonic() - written >= _COMMITTED_EVERY_S or not worked:
                self._follow()
                written = time.monotonic()
            if not worked and self._stopping:
                return

    def _follow(self) -> None:
        try:
            self._store.write_committed()
        except OSError as error:
            logger.warning("committed.json could not be written, it will follow later: %s", error)

    def _take(self, timeout_s: float) -> tuple[list[_Job], tuple[str, ...]]:
        """The next group: an exclusive batch alone, requests, or pieces of files, up to the size of a commit.

        Where both wait they take turns, and while requests come the turns of files are short: a request waits for one
        of them at most, and never shares a commit with many records of a file.
        """
        with self._wakeup:
            self._wakeup.wait_for(lambda: self._requests or self._bulk_ready() or self._stopping, timeout_s)
            jobs: list[_Job] = []
            rows = 0
            limit = self._settings.commit_rows
            is_turn_of_files = self._requests_were_last and self._bulk_ready()
            while (
                not is_turn_of_files
                and self._requests
                and rows < limit
                and (not jobs or not self._requests[0].exclusive)
            ):
                job = self._requests.popleft()
                jobs.append(job)
                rows += job.rows
                self._queued_rows -= job.rows
                if job.exclusive:
                    break
            if jobs:
                self._requested = time.monotonic()
            else:
                if time.monotonic() - self._requested < _REQUESTS_GO_ON_S:
                    limit = _SHORT_ROWS
                while self._bulk_ready() and rows < limit and (not rows or rows + self._bulk[0].rows <= limit):
                    jobs.append(self._bulk.popleft())
                    rows += jobs[-1].rows
            self._requests_were_last = bool(jobs) and not jobs[0].bulk
            closed = tuple(self._closed)  # with nothing else to commit the wait above has gathered them
            self._wakeup.notify_all()
        return jobs, closed

    def _bulk_ready(self) -> bool:
        """Whether a piece of a file may be committed now.

        It must not wait for a flush that may never come, and nobody must wait for its preparation.
        """
        settings, store = self._settings, self._store
        has_room = store.hot_rows < settings.hot_rows_soft and store.hot_bytes < settings.hot_bytes_soft
        return bool(self._bulk) and (has_room or self._is_ending) and self._bulk[0].is_prepared

    def _decide_alone(self, job: _Job, closed: tuple[str, ...]) -> None:
        """An atomic batch or a dry run: decided as a whole before anything is written."""
        part = Part(job.batch, tuple(job.pieces))
        store = self._store
        try:
            what = decided([part], store.hasher, store, store.seq + 1)
            result = result_of(part, what, 0)
        except OncelakeError as error:
            job.future.set_exception(error)
            return
        except Exception as error:
            logger.exception("a batch could not be decided")
            job.future.set_exception(error)
            return
        if job.batch.dry_run or result.answer.conflict or result.answer.rejected:
            job.future.set_result(Result(_without_seqs(result.answer, store.seq), result.duplicate_seq))
            if closed:
                self._commit([], closed)
            return
        self._commit([job], closed)

    def _commit(self, jobs: list[_Job], closed: tuple[str, ...]) -> bool:
        """One commit of the next part of each job; jobs with more go back to the front of the queue.

        False where there was none, and the jobs have their errors.
        """
        store, settings = self._store, self._settings
        if store.failure is None and not store.wait_for_room(
            settings.hot_rows_hard, settings.hot_bytes_hard, timeout_s=10.0
        ):
            self._refuse(jobs, QueueFullError("records wait to be put into Parquet: try again later", retry_after_s=5))
            return False
        jobs = self._following(jobs)
        parts = [Part(job.batch, _next_pieces(job, settings.commit_rows)) for job in jobs]
        first_seq = store.seq + 1
        try:
            what = decided(parts, store.hasher, store, first_seq)
            plan = planned(
                parts,
                what,
                find_summaries=store.find_summaries,
                first_seq=first_seq,
                number=store.next_number,
                processed_at_us=max(self._now_us(), store.state.processed_at),
                rules=self._rules,
                new_rules=store.rules != self._rules,
                inputs=store.state.inputs,
                closed=closed,
            )
            store.commit(plan.commit)
        except OncelakeError as error:
            self._refuse(jobs, error)
            return False
        except Exception as error:
            logger.exception("a commit could not be prepared")
            if len(jobs) > 1:  # a failure in preparing one batch fails only that one
                if closed:  # before a file of the same name that is among the jobs
                    self._commit([], closed)
                for job, part in zip(jobs, parts, strict=True):
                    job.pieces.extendleft(reversed(part.pieces))
                    self._commit([job], ())
            else:
                self._refuse(jobs, error)
            return False
        with self._wakeup:
            for path in closed:
                self._closed.pop(path, None)
        again = []
        for job, result in zip(jobs, plan.results, strict=True):
            job.answer = summed(job.answer, result.answer) if job.answer else result.answer
            if job.pieces:
                again.append(job)
            else:
                job.future.set_result(Result(job.answer, result.duplicate_seq))
        store.settle()  # after the answers: nobody waits for it
        if again:
            with self._wakeup:
                for job in reversed(again):
                    job.rows = sum(piece.chunk.received for piece in job.pieces)
                    (self._bulk if job.bulk else self._requests).appendleft(job)
                    self._queued_rows += 0 if job.bulk else job.rows
        self._on_commit()
        return True

    def _following(self, jobs: list[_Job]) -> list[_Job]:
        """The jobs without pieces of files that do not follow what is committed: one before them has failed."""
        ends: dict[str, Position] = {}
        kept = []
        for job in jobs:
            step = job.batch.step
            if step is not None:
                state = self._store.state.inputs.get(step.path)
                is_same = state is not None and (state.sha256, state.started_at_us) == (step.sha256, step.started_at_us)
                expected = ends.get(step.path, state.position if state is not None and is_same else Position())
                if step.begin != expected:
                    job.future.set_exception(TransientError(f"{step.path}: a piece before this one was not committed"))
                    continue
                ends[step.path] = step.end
            kept.append(job)
        return kept

    def _refuse(self, jobs: list[_Job], error: Exception) -> None:
        for job in jobs:
            job.future.set_exception(error)


def _next_pieces(job: _Job, rows: int) -> tuple[Piece, ...]:
    """Take pieces of a job up to a number of rows, at least one; all of an atomic one."""
    taken: list[Piece] = []
    count = 0
    while job.pieces and (job.batch.atomic or not taken or count + job.pieces[0].chunk.received <= rows):
        taken.append(job.pieces.popleft())
        count += taken[-1].chunk.received
    return tuple(taken)


def _without_seqs(answer: Answer, newest: int) -> Answer:
    """The answer where nothing is stored: no seqs but those of records that were stored before."""
    problems = [
        msgspec.structs.replace(problem, seq=None) if isinstance(problem.seq, int) and problem.seq > newest else problem
        for problem in answer.problems
    ]
    return msgspec.structs.replace(answer, first_seq=None, last_seq=None, problems=problems)

"""The committer: the one thread that turns waiting batches into commits.

It takes whatever waits (group commit), so that many single POSTs share one sync; large batches are cut into parts of
bounded size. Work of files stops at a lower bound of hot rows than requests do, so that the flush can keep up and
memory stays bounded.

A large commit of files is written and synced by a second thread, while the committer plans the next one on the head
that it will leave. That plan is made again where the commit before it did not happen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from ingest.batch import Batch, Chunk
from ingest.group import Group, refuse_astray
from ingest.plan import Part, Piece, Plan, Result, decided, planned, result_of, summed
from ingest.prepare import prepared
from ingest.queue import Job, Queue, QueueBounds
from store.errors import OncelakeError, QueueFullError, StoppingError, TooLargeError
from store.head import Head
from store.journal import InputState, Rules
from store.outcomes import Answer
from store.promise import Promise
from store.store import Store
from store.threads import give_way

__all__ = ["Committer", "CommitterSettings"]

logger = logging.getLogger("oncelake.committer")

_SMALL_ROWS = 1_024
"""Fewer records are prepared by the committer, those of all batches of a commit at once."""

_SETTLED_ROWS = 2_048
"""So many records of small commits become columns together, in some milliseconds in which nothing is committed."""

_PREPARING_THREADS = 2

_COMMITTED_EVERY_S = 0.5
"""`committed.json` follows within a second of a commit (contract 5)."""


@dataclass(frozen=True)
class CommitterSettings(QueueBounds):
    """Bounds of the committer; rows are records, valid or not."""

    atomic_rows: int = 65_536
    hot_rows_soft: int = 1_000_000
    hot_rows_hard: int = 2_000_000
    hot_bytes_soft: int = 384 << 20
    hot_bytes_hard: int = 512 << 20
    ahead_rows: int = 16_384
    """A commit of so many records of files is written while the next one is planned."""


@dataclass(frozen=True)
class _Flight:
    """A commit that is being written: whether it happened, and the head after it."""

    happened: Future[bool]
    head: Head
    began: float


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
        observe: Callable[[float, list[tuple[bool, Answer]]], None] = lambda seconds, answers: None,
    ) -> None:
        self._store = store
        self._rules = rules
        self._settings = settings or CommitterSettings()
        self._now_us = now_us
        self._on_commit = on_commit
        self._observe = observe
        self._queue = Queue(self._settings, self._takes_files, lambda: store.failure is not None)
        self._closed: dict[str, None] = {}
        self._floors: dict[str, int] = {}
        self._busy_since: float | None = None
        self._flight: _Flight | None = None
        self._stopping = False
        self._preparing = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="prepare", initializer=give_way)
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Refuse new batches, commit what waits, and end the thread."""
        self._stopping = True
        self._queue.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._writing.shutdown()
        self._preparing.shutdown()

    @property
    def alive(self) -> bool:
        """Whether batches are still taken."""
        return self._thread.is_alive() and not self._stopping and self._store.failure is None

    @property
    def busy_s(self) -> float:
        """How long the commit under way has taken; 0 where there is none."""
        flight = self._flight
        since = flight.began if flight is not None and not flight.happened.done() else self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def waiting(self) -> int:
        """Batches that wait."""
        return len(self._queue)

    @property
    def wants_cores(self) -> bool:
        """Whether clients wait for answers, or did within the last second, and a flush may take its time."""
        settings, store = self._settings, self._store
        has_time = (
            2 * store.hot_rows < settings.hot_rows_soft + settings.hot_rows_hard
            and 2 * store.hot_bytes < settings.hot_bytes_soft + settings.hot_bytes_hard
        )
        return has_time and self._queue.are_requests_expected

    @property
    def turn_rows(self) -> int:
        """Records of files in one turn, as turns are now: a piece of more is a longer one, and requests wait for it."""
        return self._queue.turn_rows

    def submit(self, batch: Batch, pieces: Sequence[Piece] = ()) -> Promise[Result]:
        """Queue a batch. The future has its result once the commit is durable, or an `OncelakeError`.

        `pieces` are those of its chunks, where their preparation has begun (`piece`). A piece of a file waits here for
        its turn; a request is refused with `QueueFullError` when too much waits.
        """
        job = Job(batch, rows=1 if batch.record is not None else sum(chunk.received for chunk in batch.chunks))
        if batch.atomic and job.rows > self._settings.atomic_rows:
            raise TooLargeError(
                f"an atomic batch may hold {self._settings.atomic_rows} records (ingest.atomic_records), "
                f"this one holds {job.rows}: send it without atomic, or in smaller batches",
                code="too_large_atomic",
            )
        assert not pieces or [id(piece.chunk) for piece in pieces] == [id(chunk) for chunk in batch.chunks]
        self._queue.put(job, lambda: pieces or map(self.piece, batch.chunks))
        return job.future

    def piece(self, chunk: Chunk) -> Piece:
        """A chunk, and its preparation begun unless it is small."""
        if chunk.records.num_rows < _SMALL_ROWS:
            return Piece(chunk, None)
        try:
            preparing = self._preparing.submit(prepared, chunk.records, self._store.hasher)
        except RuntimeError:  # it has stopped, and will not take the batch
            return Piece(chunk, None)
        preparing.add_done_callback(lambda _: self._queue.wake())
        return Piece(chunk, preparing)

    def _takes_files(self) -> bool:
        settings, store = self._settings, self._store
        return store.hot_rows < settings.hot_rows_soft and store.hot_bytes < settings.hot_bytes_soft

    def input_state(self, path: str) -> InputState | None:
        """How far a file has come, as of the last commit."""
        return None if path in self._closed else self._store.state.inputs.get(path)

    def input_states(self) -> list[InputState]:
        """All files that are not closed."""
        return [state for state in list(self._store.state.inputs.values()) if state.path not in self._closed]

    def close_input(self, path: str) -> None:
        """Forget a finished file, once it is moved and has its receipt; remembered with the next commit."""
        self._closed[path] = None

    def raise_floors(self, floors: Mapping[str, int]) -> None:
        """Segments of logs below these numbers are kept no more; so with the next commit."""
        self._floors = dict(floors)

    def run_once(self, timeout_s: float) -> bool:
        """Wait for work, and make one commit of it. False where nothing came, or nothing of it could be committed."""
        jobs = self._queue.take(timeout_s)
        closed = tuple(self._closed)  # with nothing else to commit the wait has gathered them
        self._busy_since = time.monotonic()
        try:
            if jobs and jobs[0].exclusive:
                self._land()
                self._decide_alone(jobs[0], closed)
            elif jobs or closed or self._floors:
                return self._commit(jobs, closed) or bool(jobs)
            else:
                return self._land()
        except BaseException as error:
            self._give_up(jobs, error)
            raise
        finally:
            self._busy_since = None
        return bool(jobs)

    def _give_up(self, jobs: list[Job], error: BaseException) -> None:
        """Nobody may wait for a committer that has failed."""
        self._store.failure = self._store.failure or error
        told = StoppingError(f"the committer failed ({error}): its last outcome is known after a restart")
        for job in (*jobs, *self._queue.drain()):  # one of which more was to be committed is in both
            if not job.future.done():
                job.future.set_exception(told)

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
            if not worked and self._stopping and not len(self._queue):
                return

    def _follow(self) -> None:
        try:
            self._store.write_committed()
        except OSError as error:
            logger.warning("committed.json could not be written, it will follow later: %s", error)

    def _decide_alone(self, job: Job, closed: tuple[str, ...]) -> None:
        """An atomic batch or a dry run: decided as a whole before anything is written."""
        part = Part(job.batch, tuple(job.pieces))
        store = self._store
        try:
            what = decided([part], store.hasher, store.head)
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

    def _commit(self, jobs: list[Job], closed: tuple[str, ...]) -> bool:
        """One commit of the next part of each job; jobs with more go back to the front of the queue.

        False where there was none, and the jobs have their errors.
        """
        store, settings = self._store, self._settings
        if store.failure is None and not store.wait_for_room(
            settings.hot_rows_hard, settings.hot_bytes_hard, timeout_s=10.0
        ):
            self._refuse(jobs, QueueFullError("records wait to be put into Parquet: try again later", retry_after_s=5))
            return False
        floors = self._floors
        flight = self._flight
        head = flight.head if flight else store.head
        following = refuse_astray(jobs, head.inputs)
        if not (following or closed or floors):
            return False
        group = Group.of(following, settings.commit_rows, closed, floors)
        try:
            plan = self._planned(group, head)
        except OncelakeError as error:
            self._refuse(following, error)
            return False
        except Exception as error:
            logger.exception("a commit could not be prepared")
            if len(following) > 1:  # a failure in preparing one batch fails only that one
                if closed:  # before a file of the same name that is among the jobs
                    self._commit([], closed)
                group.give_back()
                for job in following:
                    self._commit([job], ())
            else:
                self._refuse(following, error)
            return False
        if flight and (not self._land() or (self._queue.has_requests and any(job.bulk for job in following))):
            group.give_back()  # it would not follow what is committed, or a request wait for it
            self._queue.put_back(following)
            return True
        if not self._may_be_ahead(group, plan):
            return self._write(group, plan)
        after = store.head.after(plan.commit)
        self._flight = _Flight(self._writing.submit(self._write_ahead, group, plan), after, time.monotonic())
        return True

    def _may_be_ahead(self, group: Group, plan: Plan) -> bool:
        """Whether the next commit is planned while this one is written: it is large, of files, and no request waits."""
        return (
            group.received >= self._settings.ahead_rows
            and all(job.bulk for job in group.jobs)
            and not (group.closed or group.floors or plan.commit.rules)
            and not self._queue.are_requests_expected
        )

    def _planned(self, group: Group, head: Head) -> Plan:
        what = decided(group.parts, self._store.hasher, head)
        return planned(
            group.parts,
            what,
            head,
            processed_at_us=max(self._now_us(), head.processed_at_us),
            rules=self._rules,
            closed=group.closed,
            kept=group.floors,
        )

    def _land(self) -> bool:
        """Wait for the commit that is being written. Whether there was one, and it has left the head that it was to.

        It has not where it did not happen, or the journal was folded with it.
        """
        flight, self._flight = self._flight, None
        return (
            flight is not None and flight.happened.result() and self._store.head.next_number == flight.head.next_number
        )

    def _write_ahead(self, group: Group, plan: Plan) -> bool:
        try:
            return self._write(group, plan)
        except BaseException as error:
            self._give_up(group.jobs, error)
            raise

    def _write(self, group: Group, plan: Plan) -> bool:
        """Make a commit, and answer. False where it did not happen, and the jobs have their errors."""
        store = self._store
        try:
            store.commit(plan.commit)
        except Exception as error:
            if not isinstance(error, OncelakeError):
                logger.exception("a commit could not be written")
            self._refuse(group.jobs, error)
            return False
        for path in group.closed:
            self._closed.pop(path, None)
        if group.floors and self._floors is group.floors:
            self._floors = {}
        again = []
        for job, result in zip(group.jobs, plan.results, strict=True):
            job.answer = summed(job.answer, result.answer) if job.answer else result.answer
            if job.pieces:
                again.append(job)
            else:
                job.future.set_result(Result(job.answer, result.duplicate_seq))
        answers = [(job.bulk, result.answer) for job, result in zip(group.jobs, plan.results, strict=True)]
        self._observe(time.perf_counter() - group.began, answers)
        store.settle(_SETTLED_ROWS)  # after the answers: nobody waits for it
        if again:
            self._queue.put_back(again)
        self._on_commit()
        return True

    def _refuse(self, jobs: list[Job], error: Exception) -> None:
        for job in jobs:
            job.future.set_exception(error)


def _without_seqs(answer: Answer, newest: int) -> Answer:
    """The answer where nothing is stored: no seqs but those of records that were stored before."""
    problems = [
        msgspec.structs.replace(problem, seq=None) if isinstance(problem.seq, int) and problem.seq > newest else problem
        for problem in answer.problems
    ]
    return msgspec.structs.replace(answer, first_seq=None, last_seq=None, problems=problems)

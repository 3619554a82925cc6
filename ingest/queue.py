"""What waits to be committed: requests and pieces of files, and whose turn it is."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ingest.batch import Batch
from ingest.plan import Piece, Result
from store.errors import QueueFullError, StoppingError
from store.outcomes import Answer
from store.promise import Promise

__all__ = ["Job", "Queue", "QueueBounds"]

_REQUESTS_GO_ON_S = 1.0
"""So long after a request another one is expected, and turns of files are short."""

_SHORT_ROWS = 4_096
"""Of files in a short turn, or one piece, whatever its size."""

_GATHERED_S = 0.01
"""So long the first of several small files waits for others: a commit of many costs little more than one of one."""

_FEW_ROWS, _FEW_FILES = 1_024, 128
"""With as many records, or files, a commit is worth it at once."""


@dataclass(frozen=True)
class QueueBounds:
    """How much may wait; rows are records, valid or not."""

    queue_batches: int = 4_096
    queue_rows: int = 1_000_000
    bulk_pieces: int = 1_024
    bulk_rows: int = 131_072
    commit_rows: int = 65_536


@dataclass
class Job:
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


class Queue:
    """Jobs in from any thread, groups of them out to one.

    `takes_files` says whether pieces of files may be committed now (they stop before requests do, so that the flush
    can keep up), `has_failed` that nothing will be committed any more.
    """

    def __init__(self, bounds: QueueBounds, takes_files: Callable[[], bool], has_failed: Callable[[], bool]) -> None:
        self._bounds = bounds
        self._takes_files = takes_files
        self._has_failed = has_failed
        self._requests: deque[Job] = deque()
        self._files: deque[Job] = deque()
        self._request_rows = self._file_rows = 0
        self._requests_were_last = False
        self._requested = -_REQUESTS_GO_ON_S
        self._is_closed = False
        self._wakeup = threading.Condition()

    def __len__(self) -> int:
        return len(self._requests) + len(self._files)

    @property
    def is_ending(self) -> bool:
        """Whether nothing more is taken in, so that nothing may wait for room."""
        return self._is_closed or self._has_failed()

    @property
    def has_requests(self) -> bool:
        """Whether a request waits."""
        return bool(self._requests)

    @property
    def are_requests_expected(self) -> bool:
        """Whether one waits, or was taken so lately that the next is expected."""
        return self.has_requests or time.monotonic() - self._requested < _REQUESTS_GO_ON_S

    @property
    def turn_rows(self) -> int:
        """Of files, in one turn as they are now."""
        most = self._bounds.commit_rows
        return min(_SHORT_ROWS, most) if self.are_requests_expected else most

    def close(self) -> None:
        """Take nothing more in."""
        with self._wakeup:
            self._is_closed = True
            self._wakeup.notify_all()

    def wake(self) -> None:
        """Look again: something that waits has become ready."""
        with self._wakeup:
            self._wakeup.notify_all()

    def put(self, job: Job, pieces: Callable[[], Iterable[Piece]]) -> None:
        """Queue a job with its pieces, which are asked for once there is room.

        A piece of a file waits here for its turn; a request is refused with `QueueFullError` when too much waits.
        """
        bounds = self._bounds
        with self._wakeup:
            if job.bulk:
                self._wakeup.wait_for(lambda: self.is_ending or self._has_room(job.rows))
            if self._has_failed():
                raise StoppingError(
                    "the store stopped after a failed write: the service must be started again; "
                    "send the batch again then"
                )
            if self._is_closed:
                raise StoppingError("the service is stopping: send the batch again when it is back")
            if not job.bulk and (
                len(self._requests) >= bounds.queue_batches
                or (self._requests and self._request_rows + job.rows > bounds.queue_rows)
            ):
                raise QueueFullError(
                    "too many batches wait to be committed (ingest.queue_batches, ingest.queue_records): "
                    "try again in a second"
                )
            job.pieces.extend(pieces())
            (self._files if job.bulk else self._requests).append(job)
            self._count(job)
            if job.bulk or len(self._requests) == 1:  # for others that wait it has been told already
                self._wakeup.notify_all()

    def put_back(self, jobs: list[Job]) -> None:
        """Jobs of which more, or all, is to be committed, at the front and in their order."""
        with self._wakeup:
            for job in reversed(jobs):
                if job.pieces:
                    job.rows = sum(piece.chunk.received for piece in job.pieces)
                (self._files if job.bulk else self._requests).appendleft(job)
                self._count(job)

    def _count(self, job: Job) -> None:
        if job.bulk:
            self._file_rows += job.rows
        else:
            self._request_rows += job.rows

    def take(self, timeout_s: float) -> list[Job]:
        """The next group: an exclusive batch alone, requests, or pieces of files, up to the size of a commit.

        Where both wait they take turns, and while requests come the turns of files are short: a request waits for one
        of them at most, and never shares a commit with many records of a file.
        """
        with self._wakeup:
            self._wakeup.wait_for(
                lambda: self._requests or self._are_files_ready() or (self._is_closed and not self._files), timeout_s
            )
            self._wakeup.wait_for(
                lambda: self._requests or self.is_ending or not self._are_few(), min(timeout_s, _GATHERED_S)
            )
            is_turn_of_files = not self._requests or (self._requests_were_last and self._are_files_ready())
            jobs = self._next_files() if is_turn_of_files else self._next_requests()
            self._requests_were_last = not is_turn_of_files
            self._wakeup.notify_all()
        return jobs

    def _next_requests(self) -> list[Job]:
        jobs: list[Job] = []
        rows = 0
        while self._requests and rows < self._bounds.commit_rows:
            exclusive = self._requests[0].exclusive
            if exclusive and jobs:
                break
            jobs.append(self._requests.popleft())
            rows += jobs[-1].rows
            if exclusive:
                break
        self._request_rows -= rows
        self._requested = time.monotonic()
        return jobs

    def _next_files(self) -> list[Job]:
        limit = self.turn_rows
        jobs: list[Job] = []
        rows = 0
        while self._are_files_ready() and rows < limit and (not rows or rows + self._files[0].rows <= limit):
            jobs.append(self._files.popleft())
            rows += jobs[-1].rows
        self._file_rows -= rows
        return jobs

    def drain(self) -> list[Job]:
        """Everything that waits: nothing of it will be committed."""
        with self._wakeup:
            left = [*self._requests, *self._files]
            self._requests.clear()
            self._files.clear()
            self._request_rows = self._file_rows = 0
            self._wakeup.notify_all()
        return left

    def _are_files_ready(self) -> bool:
        """Whether a piece of a file may be committed now.

        At the end it must not wait for a flush that may never come; and nobody must wait for its preparation.
        """
        return bool(self._files) and (self._takes_files() or self.is_ending) and self._files[0].is_prepared

    def _are_few(self) -> bool:
        """Whether small files wait, and others may follow at once."""
        return 0 < len(self._files) < _FEW_FILES and self._file_rows < _FEW_ROWS

    def _has_room(self, rows: int) -> bool:
        waiting, bounds = self._file_rows, self._bounds
        return len(self._files) < bounds.bulk_pieces and (not waiting or waiting + rows <= bounds.bulk_rows)

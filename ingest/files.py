"""One file through the committer: decoded a chunk at a time, gone on with where the last commit of it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ingest.batch import Batch, InputStep, Reject, Source
from ingest.committer import Committer
from ingest.decode import Limits, decode_file
from ingest.formats import by_file_name
from ingest.plan import Piece, Result
from ingest.receipts import sha256_of
from ingest.record import Rules
from store.errors import InputError, InvalidSchemaError, TransientError
from store.journal import Failure, InputState, Position
from store.outcomes import FieldError
from store.promise import Promise

__all__ = ["FileSubmission", "Progress", "submit_file"]

T = TypeVar("T")

_LARGE_BYTES = 4 << 20
"""A smaller file is hashed in less time than a thread is worth."""

_AHEAD_CHUNKS, _AHEAD_BYTES = 16, 64 << 20
"""At most so many are decoded and prepared before their file is hashed: as many as may wait for the committer."""

Progress = Callable[[int], None]
"""Called with the number of records that were handed to the committer."""


@dataclass
class FileSubmission:
    """A file whose pieces are all with the committer. `wait` says how it ended."""

    path: Path
    name: str
    seen: os.stat_result
    futures: list[Promise[Result]] = field(default_factory=list)

    def wait(self, committer: Committer) -> InputState:
        """The file's final state, or the first error of a piece: then the file is submitted again, and goes on."""
        for future in self.futures:
            future.result()
        state = committer.input_state(self.name)
        assert state is not None
        assert state.done
        return state


def submit_file(
    committer: Committer,
    path: Path,
    name: str,
    rules: Rules,
    limits: Limits,
    now_us: int,
    progress: Progress = lambda records: None,
) -> FileSubmission:
    """Hand a file to the committer, from where its last commit ended. Blocks while the committer is behind.

    What cannot be decoded ends the file with a failure; what was accepted before stays.
    """
    submission = FileSubmission(path, name, path.lstat())
    if not stat.S_ISREG(submission.seen.st_mode):
        return _failed(committer, submission, InputStep(name, 0, "", now_us, Position(), Position()), _NOT_A_FILE)
    with _same(path, submission.seen) as same:
        return _submit(committer, submission, same, rules, limits, now_us, progress)


def _submit(
    committer: Committer,
    submission: FileSubmission,
    path: Path,
    rules: Rules,
    limits: Limits,
    now_us: int,
    progress: Progress,
) -> FileSubmission:
    name = submission.name
    hashing = _hashing(path, submission.seen.st_size)
    state = committer.input_state(name)
    if state is not None and (state.bytes, state.sha256) != hashing.result():
        state = None
    if state is not None and state.done:
        return submission
    begin = state.position if state else Position()
    started = state.started_at_us if state else now_us
    source = Source(file=name)
    limits = dataclasses.replace(limits, chunk_rows=min(limits.chunk_rows, committer.turn_rows))
    try:
        fmt, compression = by_file_name(name)
        chunks = decode_file(path, fmt, compression, rules, limits, begin)
        for piece, is_last in _with_last(_ahead(map(committer.piece, chunks), hashing)):
            chunk = piece.chunk
            step = InputStep(name, *hashing.result(), started, begin, chunk.end, done=is_last)
            submission.futures.append(committer.submit(Batch(source, (chunk,), step=step), [piece]))
            begin = chunk.end
            progress(chunk.received)
    except InputError as error:
        return _failed(committer, submission, InputStep(name, *hashing.result(), started, begin, begin), error)
    if begin == (state.position if state else Position()):
        step = InputStep(name, *hashing.result(), started, begin, begin, done=True)
        submission.futures.append(committer.submit(Batch(source, step=step)))
    return submission


def _hashing(path: Path, size: int) -> Future[tuple[int, str]]:
    """Size and SHA-256 of a file; of a large one they are worked out in a thread."""
    if size < _LARGE_BYTES:
        done: Future[tuple[int, str]] = Future()
        done.set_result(sha256_of(path))
        return done
    beside = ThreadPoolExecutor(1, thread_name_prefix="sha256")
    found = beside.submit(sha256_of, path)
    beside.shutdown(wait=False)
    return found


def _ahead(pieces: Iterator[Piece], hashing: Future[tuple[int, str]]) -> Iterator[Piece]:
    """The pieces. While the file is hashed, without which none can be committed, the first few are prepared."""
    first: deque[Piece] = deque()
    size = 0
    error: InputError | None = None
    try:
        while not hashing.done() and len(first) < _AHEAD_CHUNKS and size < _AHEAD_BYTES:
            if (piece := next(pieces, None)) is None:
                break
            first.append(piece)
            size += piece.chunk.records.nbytes
    except InputError as found:
        error = found
    while first:
        yield first.popleft()
    if error is not None:
        raise error
    yield from pieces


@contextlib.contextmanager
def _same(path: Path, seen: os.stat_result) -> Iterator[Path]:
    """A path to the file that was looked at: whoever may write to the inbox could exchange it for a link or a pipe."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        now = os.fstat(handle)
        if not stat.S_ISREG(now.st_mode) or (now.st_dev, now.st_ino) != (seen.st_dev, seen.st_ino):
            raise TransientError(f"{path} was exchanged while it was looked at: it is tried again")
        held = Path(f"/proc/self/fd/{handle}")
        yield held if held.exists() else path
    finally:
        os.close(handle)


def _failed(committer: Committer, submission: FileSubmission, step: InputStep, error: InputError) -> FileSubmission:
    """Close a file that cannot be decoded to its end. An invalid schema is one dead letter for all of it."""
    failure = Failure(error.code, str(error), error.position)
    letters: tuple[Reject, ...] = ()
    if isinstance(error, InvalidSchemaError):
        letters = (Reject(-1, None, None, (FieldError(None, error.code, str(error)),), b""),)
    closing = InputStep(
        step.path, step.bytes, step.sha256, step.started_at_us, step.begin, step.end, done=True, failure=failure
    )
    batch = Batch(Source(file=step.path), step=closing, letters=letters)
    submission.futures.append(committer.submit(batch))
    return submission


def _with_last(items: Iterator[T]) -> Iterator[tuple[T, bool]]:
    """Each item with whether it is the last one, told one item ahead."""
    held = next(items, None)
    while held is not None:
        try:
            following = next(items, None)
        except InputError:  # what was decoded before stays
            yield held, False
            raise
        yield held, following is None
        held = following


_NOT_A_FILE = InputError(
    "only regular files are taken from the inbox: no links, pipes, sockets or devices", code="not_a_regular_file"
)

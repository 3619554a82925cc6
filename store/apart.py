"""Merges of Parquet files in a process of their own, which takes nothing of the interpreter that answers clients.

`python -m store.apart PID`: jobs come in, and answers go out, as lines of JSON. It ends with its input, and in the
middle of a merge with the process PID, which started it. What it has written by then nothing names.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
import pyarrow as pa

from store.catalog import FileRow
from store.errors import CorruptionError, TransientError
from store.files import Disk
from store.memory import give_back_memory, share_memory
from store.merging import Merging, merge
from store.snapshot import SealedFile
from store.spawn import spawned

__all__ = ["Apart"]

logger = logging.getLogger("oncelake.compaction")

_WORTH_ROWS = 65_536
"""Fewer records are merged here, before a process could begin."""

_KEPT_S = 60.0
"""So long it waits for the next merge: it takes half a second to begin, and 30 MB."""

_LOOK_S = 0.1

_ENDS_S = 1.0

_OOM_SCORE = b"500"
"""Where the kernel has to end a process for want of memory, it is this one and not the service."""


class _Job(msgspec.Struct):
    """What `store.merging.merge` is told."""

    files: list[SealedFile]
    path: Path
    name: str
    memory: int
    fsync: bool


class _Answer(msgspec.Struct):
    """What came of it: a file, damage, or an error of the system."""

    made: FileRow | None = None
    damage: str | None = None
    error: tuple[int, str] | None = None


class Apart:
    """The process, which begins with the first merge that is worth it. One thread calls it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._used = 0.0

    def merge(self, files: Sequence[SealedFile], path: Path, name: str, how: Merging) -> FileRow:
        """As `store.merging.merge`. `TransientError` where something else ended the process in the middle of it."""
        process = self._begun() if sum(file.rows for file in files) >= _WORTH_ROWS else None
        if process is None:
            return merge(files, path, name, how)
        try:
            answer = _answer(process, _Job(list(files), path, name, how.memory, how.disk.fsync), how.go_on)
        except BaseException:
            self.close()
            raise
        self._used = time.monotonic()
        if answer is None:
            logger.warning("the process that merges Parquet files ended by itself, these are merged without it")
            self.close()
            return merge(files, path, name, how)
        if answer.error is not None:
            raise OSError(*answer.error)
        if answer.made is None:
            raise CorruptionError(answer.damage)
        return answer.made

    def rest(self) -> None:
        """Told where there is nothing to merge: end the process after a while."""
        if time.monotonic() - self._used >= _KEPT_S:
            self.close()

    def close(self) -> None:
        """End the process, and a merge that is given up with it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # a job that it did not read
                    cast("BinaryIO", pipe).close()

    def _begun(self) -> subprocess.Popen[bytes] | None:
        """The process; none where the system has no room for one more.

        It has no session of its own, or it would not give way (autogroups of Linux), but a group: a Ctrl-C is for the
        service.
        """
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            pipe = subprocess.PIPE
            try:
                self._process = spawned("store.apart", [str(os.getpid())], stdin=pipe, stdout=pipe, process_group=0)
            except OSError as error:
                logger.warning("no process to merge Parquet files in could be started: %s", error)
        return self._process


def _answer(process: subprocess.Popen[bytes], job: _Job, go_on: Callable[[], None]) -> _Answer | None:
    """What comes of a job; None where the process ended by itself, as one that cannot begin.

    While it is waited for `go_on` is called, which may give it up by an exception.
    """
    jobs, answers = cast("BinaryIO", process.stdin), cast("BinaryIO", process.stdout)
    with contextlib.suppress(BrokenPipeError):  # then there is no answer
        jobs.write(msgspec.json.encode(job, enc_hook=str) + b"\n")
        jobs.flush()
    with selectors.DefaultSelector() as waiting:
        waiting.register(answers, selectors.EVENT_READ)
        while not waiting.select(_LOOK_S):
            go_on()
    line = answers.readline()
    if line.endswith(b"\n"):
        return msgspec.json.decode(line, type=_Answer)
    try:
        code = process.wait(_ENDS_S)
    except subprocess.TimeoutExpired:
        code = -signal.SIGKILL
    if code < 0:
        raise TransientError(f"the process that merged its files was ended by signal {-code}")
    return None


def main() -> None:
    """Merge what comes, until nothing more does."""
    for ending in (signal.SIGTERM, signal.SIGINT):  # the service is told, too, and ends this one
        signal.signal(ending, signal.SIG_IGN)
    share_memory()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(_OOM_SCORE)
    for line in sys.stdin.buffer:
        job = msgspec.json.decode(line, type=_Job, dec_hook=lambda kind, text: kind(text))
        sys.stdout.buffer.write(msgspec.json.encode(_done(job)) + b"\n")
        sys.stdout.buffer.flush()
        give_back_memory(above=0)


def _done(job: _Job) -> _Answer:
    try:
        return _Answer(merge(job.files, job.path, job.name, Merging(Disk(fsync=job.fsync), job.memory, _look)))
    except OSError as error:
        return _Answer(error=(error.errno or 0, error.strerror or str(error)))
    except (CorruptionError, pa.ArrowException) as error:
        return _Answer(damage=str(error))


def _look() -> None:
    """Whoever wants the merge may be gone."""
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)


if __name__ == "__main__":
    main()

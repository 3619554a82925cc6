"""The helper process of `ingest.apart`: forks a child for each job, which opens one file within its bounds.

`python -m ingest.helper FD`: jobs come over the socket FD, each with two open files: the one to read, and a pipe.
"""

from __future__ import annotations

import gc
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import msgspec
import pyarrow as pa

from ingest.apart import HEAD, Failed, Job
from ingest.untrusted import batches_of
from store.errors import InputError

__all__ = ["main"]

_MEMORY = 1 << 30
"""Bytes a child may have beyond what the helper has and the file that it reads."""

_STEP_S = 60
"""For one batch."""

_JOB_BYTES = 1 << 20


def main() -> None:
    """Fork for each job until the service closes its end."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    gc.freeze()
    while True:
        data, files, _, _ = socket.recv_fds(control, _JOB_BYTES, 2)
        if not data:
            return
        if os.fork() == 0:
            control.close()
            _child(msgspec.json.decode(data, type=Job), *files)
        for file in files:
            os.close(file)


def _child(job: Job, source: int, answers: int) -> NoReturn:
    """Read one file, and end whatever happens."""
    code = 1
    try:
        _bound(os.fstat(source).st_size)
        _answer(job, source, answers)
        code = 0
    finally:
        os._exit(code)


def _bound(size: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    most = pages * mmap.PAGESIZE + size + _MEMORY
    for limit, value in ((resource.RLIMIT_AS, most), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(limit, (value, value))


def _answer(job: Job, source: int, pipe: int) -> None:
    try:
        for batch in _in_time(batches_of(_opened(source), job.fmt, job.rules, job.limits, job.offset)):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            _send(pipe, b"B", sink.getvalue())
    except InputError as error:
        failed = Failed(type(error).__name__, str(error), error.code, error.position)
        _send(pipe, b"E", msgspec.json.encode(failed))
    else:
        _send(pipe, b"Z", b"")


def _in_time(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Each batch within its time: the signal ends the process. Nobody counts while the service is busy otherwise."""
    while True:
        signal.alarm(_STEP_S)
        batch = next(batches, None)
        signal.alarm(0)
        if batch is None:
            return
        yield batch


def _opened(source: int) -> pa.NativeFile:
    if os.fstat(source).st_size == 0:
        return pa.BufferReader(b"")  # an empty file cannot be mapped
    return pa.BufferReader(pa.py_buffer(mmap.mmap(source, 0, access=mmap.ACCESS_READ)))


def _send(pipe: int, kind: bytes, data: bytes | pa.Buffer) -> None:
    body = memoryview(data)
    for part in (memoryview(HEAD.pack(kind, len(body))), body):
        sent = 0
        while sent < len(part):
            sent += os.write(pipe, part[sent:])


if __name__ == "__main__":
    main()

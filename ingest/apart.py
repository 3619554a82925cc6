"""Parquet and Arrow of sources, opened in a process of its own, so that a hostile file takes nothing down but that.

A helper process has pyarrow loaded and waits. For each file or body it forks a child, which has bounds of memory and
time, opens the bytes (`ingest.untrusted`) and hands back batches as Arrow that it wrote itself. The helper ends with
the service, and is started again if it ever dies.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import os
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO

import msgspec
import pyarrow as pa

from ingest.formats import Format
from ingest.record import Rules
from ingest.streams import Limits
from store.errors import InputError, InvalidSchemaError, TooLargeError, TransientError, UndecodableError
from store.spawn import spawned

__all__ = ["HEAD", "Failed", "Job", "batches_apart", "body_file"]

HEAD = struct.Struct("<cQ")
"""Before each message of a child: B (a batch), E (an error) or Z (the end), and its bytes."""

logger = logging.getLogger("oncelake.ingest")

_AT_ONCE = 3
_ERRORS = {kind.__name__: kind for kind in (InputError, InvalidSchemaError, TooLargeError, UndecodableError)}


class Job(msgspec.Struct):
    """What a child is to do with the file that comes with it."""

    fmt: Format
    rules: Rules
    limits: Limits
    offset: int


class Failed(msgspec.Struct):
    """An `InputError` on its way from a child."""

    kind: str
    message: str
    code: str
    position: str | None


class _Helper:
    """The process that forks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def send(self, job: Job, files: list[int]) -> None:
        """Hand a job with its two open files to a child; a helper that died is started anew."""
        data = msgspec.json.encode(job)
        with self._lock:
            try:
                socket.send_fds(self._control or self._start(), [data], files)
            except OSError:
                self._stop()
                try:
                    socket.send_fds(self._start(), [data], files)
                except OSError as error:
                    raise TransientError(f"no process to read the batch in could be started: {error}") from error

    def stop(self) -> None:
        """End it."""
        with self._lock:
            self._stop()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = spawned(
                "ingest.helper",
                [str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what C++ says when it aborts; what matters comes back as an error
                start_new_session=True,  # a Ctrl-C is for the service, which ends it
            )
        self._control = ours
        return ours

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()  # which ends it
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            self._process.kill()
            self._process.wait()
        self._control = self._process = None


_helper = _Helper()
_slots = threading.BoundedSemaphore(_AT_ONCE)
atexit.register(_helper.stop)


def batches_apart(source: BinaryIO, fmt: Format, rules: Rules, limits: Limits, offset: int) -> Iterator[pa.RecordBatch]:
    """The known columns of a file from row `offset` on. Raises `InputError`, also where the file ended its reader."""
    rules = dataclasses.replace(rules, sources=None)  # rows are checked here; a message has no room for many names
    with _slots, _answers(source, Job(fmt, rules, limits, offset)) as answers:
        while True:
            head = answers.read(HEAD.size)
            kind, size = HEAD.unpack(head) if len(head) == HEAD.size else (b"", 0)
            data = answers.read(size)
            if not kind or len(data) != size:
                logger.warning("a process that read a batch of %s was ended by it", fmt.value)
                raise UndecodableError(
                    "The batch cannot be read: the process that read it was ended by it, for it is broken, or asks for "
                    "too much memory or time."
                )
            if kind == b"Z":
                return
            if kind == b"E":
                failed = msgspec.json.decode(data, type=Failed)
                raise _ERRORS[failed.kind](failed.message, code=failed.code, position=failed.position)
            with pa.ipc.open_stream(data) as stream:
                yield from stream


@contextlib.contextmanager
def _answers(source: BinaryIO, job: Job) -> Iterator[BinaryIO]:
    """What a child says; it ends when nobody reads any more."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as answers:
        try:
            _helper.send(job, [source.fileno(), write])
        finally:
            os.close(write)
        yield answers


def body_file(body: bytes) -> BinaryIO:
    """A body as an open file in memory, where the system has such, for `batches_apart`."""
    with contextlib.ExitStack() as closing:
        in_memory = hasattr(os, "memfd_create")
        file = os.fdopen(os.memfd_create("body"), "w+b") if in_memory else tempfile.TemporaryFile()  # noqa: SIM115
        closing.push(file)
        file.write(body)
        file.flush()
        closing.pop_all()
    return file

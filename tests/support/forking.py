"""Starts of the service that do not pay for its imports: a process that has done them forks one for each start.

`python -m tests.support.forking FD`: starts come over the socket FD, each with the files that are to be its standard
output and error. The child is a process of its own session, with the arguments, environment and directory it was
asked for, and runs `service.cli` as `python -m` does. What it does not do anew are its imports, and its hash seed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO, NoReturn

import msgspec

__all__ = ["Forked", "Forks"]

_IMPORTED = (
    "service.serve", "service.verifying", "service.aggregating", "service.exits",
    "uvloop", "uvicorn.lifespan.off", "numpy.ma",
    "litestar._kwargs", "litestar.exceptions.responses", "litestar.middleware._internal.exceptions",
    "litestar.middleware.allowed_hosts", "litestar.middleware.csrf", "litestar.middleware.response_cache",
)  # fmt: skip
"""With all that these import: what `serve`, `verify` and `aggregate` have loaded when they are under way."""

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Only the thread that forks is in the child, so NumPy and pyarrow are kept from starting others with the import."""

_READY = b"ready"
_MESSAGE_BYTES = 1 << 17
_START_S = 60.0


class _Start(msgspec.Struct):
    arguments: list[str]
    environ: dict[str, str]
    directory: str


class Forked:
    """A process that was forked: as much of `subprocess.Popen` as is needed. Who reads `stdout` closes it."""

    def __init__(self, control: socket.socket, pid: int, stdout: BinaryIO) -> None:
        self.pid = pid
        self.stdout = stdout
        self._control = control
        self._handle = os.pidfd_open(pid)
        self._code: int | None = None

    def send_signal(self, number: int) -> None:
        """Send it, unless the process has ended."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def wait(self, timeout_s: float | None = None) -> int:
        """Until it has ended; its exit code, or the negative number of the signal that ended it."""
        if self._code is None:
            if not select.select([self._handle], [], [], timeout_s)[0]:
                raise subprocess.TimeoutExpired("forked", timeout_s or 0.0)
            os.close(self._handle)
            self._control.send(msgspec.json.encode(self.pid))
            self._code = msgspec.json.decode(self._control.recv(_MESSAGE_BYTES), type=int)
        return self._code

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0.0)
        return None


class Forks:
    """The process that forks. It ends with this object, or with the process that has it."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forking", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD},
                cwd=Path(__file__).parents[2],
            )
        assert self._control.recv(_MESSAGE_BYTES) == _READY, "the process that forks has ended"

    def start(self, arguments: list[str], environ: dict[str, str], directory: Path, errors: BinaryIO) -> Forked:
        """Start `oncelake` with these arguments; its standard output is read from what is returned."""
        reads, writes = os.pipe()
        start = msgspec.json.encode(_Start(arguments, environ, str(directory)))
        socket.send_fds(self._control, [start], [writes, errors.fileno()])
        os.close(writes)
        pid = msgspec.json.decode(self._control.recv(_MESSAGE_BYTES), type=int)
        return Forked(self._control, pid, open(reads, "rb"))

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *error: object) -> None:
        self._control.close()
        self._process.wait(_START_S)


def main() -> NoReturn:
    """Fork for each start, and say how each has ended, until the other end is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in _IMPORTED:
        importlib.import_module(name)
    control.send(_READY)
    while True:
        data, files, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 2)
        if not data:
            os._exit(0)  # DuckDB would list what it leaks
        if files:
            threads = len(os.listdir("/proc/self/task"))
            assert threads == 1, f"{threads} threads, of which a child has one: something imported has started them"
            answer = os.fork()
            if answer == 0:
                control.close()
                _become(msgspec.json.decode(data, type=_Start), *files)
            for file in files:
                os.close(file)
        else:
            _, status = os.waitpid(msgspec.json.decode(data, type=int), 0)
            answer = os.waitstatus_to_exitcode(status)
        control.send(msgspec.json.encode(answer))


def _become(start: _Start, output: int, errors: int) -> NoReturn:
    """`python -m service.cli` with these arguments."""
    os.setsid()
    for file, standard in ((output, 1), (errors, 2)):
        os.dup2(file, standard)
        os.close(file)
    os.chdir(start.directory)
    os.environ.clear()
    os.environ.update(start.environ)
    sys.argv = ["oncelake", *start.arguments]
    runpy.run_module("service.cli", run_name="__main__", alter_sys=True)
    raise AssertionError("the command line ends with its exit code")


if __name__ == "__main__":
    main()

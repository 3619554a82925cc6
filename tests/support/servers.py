"""Real servers of the sinks, each a process of its own on a free port, that can be killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["Server", "free_port", "redis_server"]

_START_S = 60.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process. `is_up` is asked until it answers."""

    def __init__(self, command: list[str], port: int, log: Path, is_up: Callable[[], bool], **environ: str) -> None:
        self.port = port
        self._command = command
        self._log = log
        self._is_up = is_up
        self._environ = {**os.environ, **environ}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Start it, and wait until it takes requests."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environ, start_new_session=True
            )
        end = time.monotonic() + _START_S
        while not self._is_up():
            assert self._process.poll() is None, f"it ended:\n{self._log.read_text()[-2000:]}"
            assert time.monotonic() < end, f"it does not answer:\n{self._log.read_text()[-2000:]}"
            time.sleep(0.02)
        return self

    def kill(self) -> None:
        """`kill -9`, with whatever it started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(_START_S)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.kill()


def program(name: str, package: str) -> str:
    """Where a server's program is; a missing one fails the test, because CI must not pass without it."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert found, f"{name} is not installed: {package}"
    return found


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def redis_server(folder: Path) -> Server:
    """Redis that keeps what it acknowledged when it is killed."""
    import redis

    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)

    def is_up() -> bool:
        try:
            with redis.Redis(port=port, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    command = [program("redis-server", "apt-get install redis-server"), "--port", str(port), "--bind", "127.0.0.1"]
    options = ["--dir", str(folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
    return Server([*command, *options], port, folder / "redis.log", is_up)

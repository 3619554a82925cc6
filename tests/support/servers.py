"""Real servers of the sinks, each a process of its own on a free port, that can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
        self.beside: list[str] = []
        """A command that the server wants to find running, also over a kill."""
        self._helper: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Start it, and wait until it takes requests."""
        with self._log.open("ab") as log:
            if self.beside and self._helper is None:
                self._helper = subprocess.Popen(self.beside, stdout=log, stderr=log)
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

    def freeze(self) -> None:
        """It keeps its connections and does nothing: none of its threads, once they have all come to a stop."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)
        end = time.monotonic() + _START_S
        while not all(state in "TZ" for state in _states(self._process.pid)):
            assert time.monotonic() < end, "it does not stop"
            time.sleep(0.005)

    def thaw(self) -> None:
        """It goes on."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """For good."""
        self.kill()
        if self._helper is not None:
            self._helper.kill()
            self._helper.wait(_START_S)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()


def _states(group: int) -> Iterator[str]:
    """Of the threads of a process group."""
    for stat in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group:
                yield state


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

    command = [program("redis-server", "make servers"), "--port", str(port), "--bind", "127.0.0.1"]
    options = ["--dir", str(folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
    return Server([*command, *options], port, folder / "redis.log", is_up)


def nats_server(folder: Path) -> Server:
    """NATS with JetStream."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [program("nats-server", "make servers"), "-js", "-sd", str(folder / "js")]
    command += ["-a", "127.0.0.1", "-p", str(port)]
    return Server(command, port, folder / "nats.log", lambda: listens(port))


def s3_server(folder: Path) -> Server:
    """SeaweedFS: an S3 server of one process."""
    import httpx
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    port = free_port()
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    ports = [f"-{name}={free_port()}" for name in ("master.port", "volume.port", "filer.port")]
    ports += [f"-{name}.port.grpc={free_port()}" for name in ("master", "volume", "filer", "s3")]
    command = [program("weed", "make servers"), "-logtostderr=true", "server", f"-dir={data}", "-s3"]
    command += [
        f"-s3.port={port}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-volume.max=100",
        "-master.volumeSizeLimitMB=64",
    ]
    command += [*ports, "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-metricsPort=0"]

    def is_up() -> bool:
        if not listens(port):
            return False
        options = {"allow_http": True, "timeout": "2s"}
        store = S3Store(
            "probe", endpoint=f"http://127.0.0.1:{port}", region="us-east-1", skip_signature=True,
            client_options=options, retry_config={"max_retries": 0},
        )  # fmt: skip
        try:
            make_bucket(port, "probe")
            obstore.put(store, "probe", b"x")
        except (BaseError, OSError, httpx.HTTPError):
            return False
        return True

    return Server(command, port, folder / "s3.log", is_up)


def make_bucket(port: int, name: str) -> None:
    """The client makes none. One that is there may stay."""
    import httpx

    answer = httpx.put(f"http://127.0.0.1:{port}/{name}", timeout=5)
    if answer.status_code not in (200, 409):
        raise OSError(f"the bucket {name} was not made: {answer.text}")


def rabbit_server(folder: Path) -> Server:
    """RabbitMQ of Debian's package, with everything it keeps in this folder."""
    port, distribution, names = free_port(), free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    program("rabbitmq-server", "make servers")
    # the package's start script insists on its own user and directories: the program behind it does not
    command = ["/usr/lib/rabbitmq/bin/rabbitmq-server"]
    (folder / "empty").write_text("[].\n")
    (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users = none\n")
    server = Server(
        command, port, folder / "rabbit.log", lambda: _speaks_amqp(port),
        HOME=str(folder), RABBITMQ_NODENAME=f"test{port}@localhost", RABBITMQ_DIST_PORT=str(distribution),
        RABBITMQ_CONFIG_FILE=str(folder / "rabbitmq"), RABBITMQ_MNESIA_BASE=str(folder / "mnesia"),
        RABBITMQ_LOG_BASE=str(folder / "log"), RABBITMQ_LOGS="-", RABBITMQ_ENABLED_PLUGINS_FILE=str(folder / "empty"),
        RABBITMQ_PID_FILE=str(folder / "pid"), ERL_EPMD_PORT=str(names),
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 2:2 +sbwt none",
    )  # fmt: skip
    server.beside = ["epmd", "-port", str(names)]  # else it starts one that outlives it
    return server


def _speaks_amqp(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as client:
            client.sendall(b"AMQP\x00\x00\x09\x01")
            return client.recv(1) == b"\x01"
    except OSError:
        return False

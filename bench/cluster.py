"""Throwaway servers on unix sockets: a PostgreSQL cluster and a Redis."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.measure import Skip
from bench.peers import debian

__all__ = ["TABLE", "postgres_cluster", "psql", "redis_server"]

TABLE = (
    '("recordId" text {key}, "time" timestamptz NOT NULL, "sourceId" text NOT NULL, "destinationId" text NOT NULL, '
    '"type" text NOT NULL, "value" numeric(38, 9) NOT NULL, "unit" text NOT NULL, "reference" text NOT NULL)'
)

_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "maintenance_work_mem": "512MB",
    "fsync": "on",
    "synchronous_commit": "on",
}
"""More memory and write-ahead log than the defaults, which is to PostgreSQL's advantage; every sync on."""


@contextlib.contextmanager
def postgres_cluster(work: Path) -> Iterator[Path]:
    """A cluster in a directory of its own; the directory of its socket. As root it runs as `postgres`."""
    initdb, server = debian("postgresql", "initdb"), debian("postgresql", "postgres")
    home = work / "postgres"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    as_user: list[str] = []
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            raise Skip("PostgreSQL does not run as root, and there is no user postgres") from None
        os.chown(home, user.pw_uid, user.pw_gid)
        as_user = ["runuser", "-u", "postgres", "--"]
    made = subprocess.run(
        [*as_user, initdb, "-D", home / "data", "-A", "trust", "-U", "bench", "-E", "UTF8", "--locale=C"],
        check=False, capture_output=True, text=True, cwd=home,
    )  # fmt: skip
    if made.returncode:
        raise Skip(f"initdb failed: {made.stderr.strip()[-200:]}")
    settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*as_user, server, "-D", home / "data", "-k", home, *settings], stdout=log, stderr=log, cwd=home
        )
    try:
        _wait(lambda: psql(home, "SELECT 1", check=False).returncode == 0, "PostgreSQL")
        yield home
    finally:
        _end(process, home / "data" / "postmaster.pid")
        shutil.rmtree(home, ignore_errors=True)


def psql(home: Path, *statements: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run statements, each in a transaction of its own."""
    commands = [part for statement in statements for part in ("-c", statement)]
    return subprocess.run(
        [
            debian("postgresql", "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", home, "-U", "bench", *commands,
            "postgres",
        ],
        check=check, capture_output=True, text=True,
    )  # fmt: skip


@contextlib.contextmanager
def redis_server(work: Path) -> Iterator[Path]:
    """A Redis that only listens on a unix socket: its path."""
    server = debian("redis-server", "redis-server")
    home = work / "redis"
    home.mkdir(exist_ok=True)
    socket = home / "socket"
    process = subprocess.Popen(
        [server, "--port", "0", "--unixsocket", socket, "--dir", home, "--save", "", "--appendonly", "yes"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait(socket.exists, "Redis")
        yield socket
    finally:
        process.terminate()
        process.wait(30)


def _end(process: subprocess.Popen[bytes], pid_file: Path) -> None:
    """Fast shutdown of the server itself (`runuser` does not hand signals on)."""
    if process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(pid_file.read_text().splitlines()[0]), 2)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(holds: object, name: str) -> None:
    assert callable(holds)
    end = time.monotonic() + 30
    while not holds():
        if time.monotonic() > end:
            raise Skip(f"{name} did not start")
        time.sleep(0.05)

"""How fast the forwarder empties a feed into a plain local sink: Redis, NATS and a webhook in batches."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench.context import BULK, Context
from bench.measure import Line, Skip, say
from bench.process import Service, checked_out

__all__ = ["forward"]

_RECORDS = 200_000
_HOOKED = 30_000
_UP_S = 30.0


def forward(context: Context) -> list[Line]:
    """`oncelake forward --once` as a process, less what it takes with nothing to send."""
    count = min(_RECORDS, context.records)
    data = context.fresh("forward")
    given = context.input(records=count)
    with Service(data, **BULK) as service:
        service.ingest(given.path, given.path.name, count)
    lines = []
    for what, sink, target, sent in (
        ("to a Redis stream", _redis, 20_000, count),
        ("to NATS JetStream", _nats, 20_000, count),
        ("to a webhook, batches of 100", _webhook, 3_000, min(_HOOKED, count)),
    ):
        rates = []
        try:
            for number in range(context.rounds):
                with sink(context.fresh("sink")) as url:
                    rates.append(_rate(context, data, url, count, sent))
                say(f"  {what}, round {number + 1}: {rates[-1]:,.0f} messages/s")
        except Skip as why:
            say(f"  {what}: skipped: {why}")
            continue
        lines.append(Line("forward", what, "messages/s", rates, target=target, note=f"{sent:,} notifications"))
    shutil.rmtree(data)
    if not lines:
        raise Skip("there is no server to send to")
    return lines


def _rate(context: Context, data: Path, url: str, count: int, sent: int) -> float:
    config = context.fresh("config").with_suffix(".toml")
    config.write_text(f'[[forward]]\nname = "bench"\nurl = "{url}"\nstart = {count - sent}\nallow_private = true\n')
    shutil.rmtree(data / "internal" / "forward", ignore_errors=True)
    full = _once(data, config)
    return sent / (full - _once(data, config))


def _once(data: Path, config: Path) -> float:
    command = [sys.executable, "-m", "service.cli", "forward", "--once", "--data", str(data), "--config", str(config)]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=checked_out)
    return time.perf_counter() - began


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[str]:
    with _server("redis-server", folder, ["--port", "{port}", "--dir", str(folder), "--appendonly", "yes"]) as port:
        yield f"redis://127.0.0.1:{port}/0?stream=bench"


@contextlib.contextmanager
def _nats(folder: Path) -> Iterator[str]:
    with _server("nats-server", folder, ["-js", "-sd", str(folder), "-a", "127.0.0.1", "-p", "{port}"]) as port:
        yield f"nats://127.0.0.1:{port}?stream=BENCH&subject=bench"


@contextlib.contextmanager
def _server(name: str, folder: Path, options: list[str]) -> Iterator[int]:
    beside = Path(sys.executable).parent / name
    program = str(beside) if beside.exists() else shutil.which(name)
    if program is None:
        raise Skip(f"{name} is not installed")
    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [program, *(option.format(port=port) for option in options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + _UP_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, f"{name} ended"
            assert time.monotonic() < end, f"{name} does not answer"
            time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _webhook(folder: Path) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """It is measured, not watched."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()

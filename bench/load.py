"""The load generator, a process of its own: POSTs of one record each over kept-alive connections.

`python -m bench.load HOST PORT CONNECTIONS SECONDS SEED` prints requests a second and latencies as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import uvloop

from bench.process import run_json

__all__ = ["run_load"]


def run_load(host: str, port: int, *, connections: int, seconds: float, seed: int) -> dict[str, Any]:
    """Run it as a process."""
    arguments = (host, str(port), str(connections), str(seconds), str(seed))
    return run_json(sys.executable, "-m", "bench.load", *arguments)


class _Run:
    def __init__(self, host: str, seconds: float, seed: int) -> None:
        self.head = f"POST /records HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: "
        self.seed = seed
        self.number = 0
        self.latencies: list[float] = []
        self.refused = 0
        self.warm = time.perf_counter() + 0.5
        self.end = self.warm + seconds

    def request(self) -> bytes:
        self.number += 1
        number = self.number
        body = (
            f'{{"recordId":"one-{self.seed}-{number}","time":"2024-03-0{number % 7 + 1}T12:{number % 60:02}:00Z",'
            f'"sourceId":"source-{number % 20}","destinationId":"dest-{number % 1000}","type":"positive",'
            f'"value":{number % 10000}.25,"unit":"SEK","reference":"invoice-{number}"}}'
        )
        return f"{self.head}{len(body)}\r\n\r\n{body}".encode()


class _Client(asyncio.Protocol):
    """One connection: sends a request as soon as the answer to the one before is whole."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._answer = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._run.request())

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, separator, body = self._answer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        now = time.perf_counter()
        if head[9:12] != b"201":
            self._run.refused += 1
        elif now >= self._run.warm:
            self._run.latencies.append(now - self._sent)
        self._answer = b""
        if now >= self._run.end:
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def _load(host: str, port: int, connections: int, seconds: float, seed: int) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    run = _Run(host, seconds, seed)
    clients = [(await loop.create_connection(lambda: _Client(run), host, port))[1] for _ in range(connections)]
    await asyncio.gather(*(client.done for client in clients))
    assert not run.refused, f"{run.refused} requests were not answered 201"
    ordered = sorted(run.latencies)
    return {
        "rate": len(ordered) / seconds,
        "p50": ordered[len(ordered) // 2] * 1e3,
        "p99": ordered[len(ordered) * 99 // 100] * 1e3,
    }


if __name__ == "__main__":
    uvloop.install()
    found = asyncio.run(_load(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])))
    print(json.dumps(found))

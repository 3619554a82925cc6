"""Clients that are slow or go away cost the others nothing: not their time, not the memory of the service."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import statistics
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.support.service import Service

RECORDS = 20_000
SLOW = 200
HANG_UPS = 50
POSTS = 60


def line(number: int, prefix: str = "r") -> bytes:
    record = {
        "recordId": f"{prefix}-{number}",
        "time": "2024-03-01T12:00:00Z",
        "sourceId": "source-a",
        "destinationId": f"dest-{number % 50}",
        "type": "positive",
        "value": "1.5",
        "unit": "SEK",
        "reference": "invoice",
    }
    return json.dumps(record).encode() + b"\n"


def private_mb(pid: int) -> float:
    """Anonymous memory of a process."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def latencies(client: httpx.Client, prefix: str) -> list[float]:
    spent = []
    for number in range(POSTS):
        begin = time.monotonic()
        answer = client.post("/records", content=line(number, prefix), headers={"content-type": "application/json"})
        spent.append(time.monotonic() - begin)
        assert answer.status_code == 201
    return spent


class Slow:
    """Connections that send a byte now and then: half of them the head of a request, half of them a body."""

    def __init__(self, address: tuple[str, int]) -> None:
        body = b"POST /records HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n"
        self.connections = [socket.create_connection(address) for _ in range(SLOW)]
        for connection in self.connections[::2]:
            connection.sendall(body)
        for connection in self.connections[1::2]:
            connection.sendall(b"GET /")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.sendall(b"x")

    def stop(self) -> list[bytes]:
        """What each was answered."""
        self._stop.set()
        self._thread.join()
        answers = []
        for connection in self.connections:
            connection.settimeout(1)
            with contextlib.suppress(OSError):
                answers.append(connection.recv(1 << 16))
            connection.close()
        return answers


def hang_up(address: tuple[str, int]) -> None:
    """Ask for everything, read a little, and go without a word."""
    with socket.create_connection(address, 10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.sendall(b"GET /records/aggregations HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(1_024).startswith(b"HTTP/1.1 200")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def test_slow_clients_and_those_that_hang_up_cost_the_others_nothing(tmp_path: Path) -> None:
    """200 that send a byte now and then and 50 that go in the middle of an answer: the others are served as before."""
    limits = {"oncelake_api__header_timeout_s": "3", "oncelake_api__body_timeout_s": "3"}
    with Service(tmp_path / "data", oncelake_store__fsync="false", **limits) as service:
        url = urlsplit(service.url)
        assert url.hostname is not None and url.port is not None
        address = (url.hostname, url.port)
        batch = b"".join(map(line, range(RECORDS)))
        assert service.post(batch, "application/x-ndjson").json()["accepted"] == RECORDS
        with httpx.Client(base_url=service.url, timeout=30) as client:
            for _ in range(3):
                assert len(client.get("/records/aggregations").content) > 3_000_000
            before = latencies(client, "before")
            memory = private_mb(service.pid)
            slow = Slow(address)
            for _ in range(HANG_UPS):
                hang_up(address)
            during = latencies(client, "during")
            held = private_mb(service.pid) - memory
            time.sleep(3)
            answers = slow.stop()
            assert client.get("/health").json()["status"] == "ok"
            aggregation = client.get("/records/aggregations", params={"include": "totals"}).json()
        assert sum(total["count"] for total in aggregation["totals"]) == RECORDS + 2 * POSTS
        codes = [json.loads(answer.partition(b"\r\n\r\n")[2])["code"] for answer in answers if answer]
        assert set(codes) == {"header_timeout", "body_timeout"}
        assert statistics.median(during) < 5 * statistics.median(before) + 0.05
        assert held < 60, f"{held:.0f} MB more"
        assert service.stop() == 0

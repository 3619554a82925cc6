"""SIGTERM: what is under way is answered, new work is refused, and it ends in time whatever clients do."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from store.verify import verify
from tests.support.service import Service, wait_until

SLACK_S = 15.0
"""For a machine that does much else; a shutdown that waits for a client takes 60 s here."""


def record(number: int) -> dict[str, str]:
    return {
        "recordId": f"rec-{number}",
        "time": "2024-03-01T12:00:00Z",
        "sourceId": "source-a",
        "destinationId": f"dest-{number % 5}",
        "type": "positive",
        "value": "1",
        "unit": "SEK",
        "reference": f"{number:0200}",
    }


def lines(count: int) -> bytes:
    return b"".join(json.dumps(record(number)).encode() + b"\n" for number in range(count))


@pytest.fixture
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A service; `request.param` is its time to shut down."""
    with Service(tmp_path / "data", oncelake_api__shutdown_s=getattr(request, "param", "60")) as service:
        yield service


def connected(service: Service) -> socket.socket:
    address = httpx.URL(service.url)
    return socket.create_connection((address.host, address.port or 0), timeout=60)


def begun(service: Service, body: bytes, promised: int) -> socket.socket:
    """A POST of which only this part of the body was sent."""
    client = connected(service)
    head = (
        f"POST /records HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: {promised}\r\n\r\n"
    )
    client.sendall(head.encode() + body)
    return client


def ended(service: Service, within_s: float) -> float:
    """How long it took to end, which must be with 0."""
    started = time.monotonic()
    assert service.wait(within_s + SLACK_S) == 0
    return time.monotonic() - started


def test_what_is_under_way_is_answered_and_new_work_refused(service: Service, tmp_path: Path) -> None:
    """A body that is still coming when the signal comes is taken, committed and answered; a new request gets 503."""
    body = lines(10)
    client = begun(service, body[:100], len(body))
    wait_until(lambda: service.get("/health").status_code == 200)
    os.kill(service.pid, signal.SIGTERM)
    wait_until(lambda: service.post(json.dumps(record(50)).encode()).status_code == 503)
    refused = service.post(json.dumps(record(51)).encode())
    assert (refused.json()["code"], refused.headers["retry-after"]) == ("stopping", "5")
    assert service.get("/health").status_code == 503
    client.sendall(body[100:])
    with client, client.makefile("rb") as reader:
        answer = reader.read()
    assert answer.startswith(b"HTTP/1.1 200") and b'"accepted":10' in answer
    ended(service, 10)
    report = verify(tmp_path / "data")
    assert report.ok and report.as_of >= 10 and report.flushed_seq == report.as_of


@pytest.mark.parametrize("service", ["2"], indirect=True)
def test_a_body_that_never_comes_is_not_waited_for(service: Service) -> None:
    """It ends within `api.shutdown_s`; the client is told."""
    client = begun(service, b"{", 1_000)
    wait_until(lambda: service.get("/health").status_code == 200)
    os.kill(service.pid, signal.SIGTERM)
    ended(service, 2)
    assert b"503" in client.recv(65_536).split(b"\r\n")[0]
    client.close()


@pytest.mark.parametrize("service", ["2"], indirect=True)
def test_a_client_that_does_not_read_is_not_waited_for(service: Service) -> None:
    """A long answer ends without its last chunk."""
    assert service.post(lines(40_000), "application/x-ndjson").status_code == 200
    client = connected(service)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.sendall(b"GET /records/aggregations HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.recv(15) == b"HTTP/1.1 200 OK"
    os.kill(service.pid, signal.SIGTERM)
    ended(service, 2)
    client.close()


@pytest.mark.parametrize("service", ["0.05"], indirect=True)
def test_a_last_flush_that_takes_too_long_is_left_to_the_next_start(service: Service, tmp_path: Path) -> None:
    """What was answered is there, flushed or not."""
    assert service.post(lines(50_000), "application/x-ndjson").status_code == 200
    os.kill(service.pid, signal.SIGTERM)
    ended(service, 0.05)
    with Service(tmp_path / "data") as again:
        assert again.get("/health").json()["components"]["store"]["seq"] == 50_000
        assert again.stop() == 0
    assert verify(tmp_path / "data").ok


def test_a_second_signal_ends_it_at_once(service: Service, tmp_path: Path) -> None:
    """Whatever it waits for; the next start finds all that was answered."""
    assert service.post(lines(1_000), "application/x-ndjson").status_code == 200
    client = begun(service, b"{", 1_000)
    wait_until(lambda: service.get("/health").status_code == 200)
    os.kill(service.pid, signal.SIGTERM)
    wait_until(lambda: service.get("/health").status_code == 503)
    os.kill(service.pid, signal.SIGTERM)
    assert ended(service, 0) < SLACK_S
    client.close()
    with Service(tmp_path / "data") as again:
        assert again.get("/records/rec-999").json()["seq"] == 1_000
        assert again.stop() == 0
    assert verify(tmp_path / "data").ok

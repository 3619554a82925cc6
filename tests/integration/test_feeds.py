"""The feeds over HTTP, from the real service: NDJSON, long polls, server-sent events, kills and stops."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.feeds import FEEDS, all_lines, body_of
from tests.support.service import Service

CONFIG = """
[alerts]
threshold = "100"
[outbox]
segment_bytes = 4000
[store]
flush_interval_s = 0.5
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def service(tmp_path: Path, config: Path) -> Iterator[Service]:
    with Service(tmp_path / "data", config=config) as service:
        yield service


def events_of(response: httpx.Response) -> Iterator[tuple[int, bytes]]:
    """The events of a stream as they come: (id, data)."""
    seq = 0
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            seq = int(value)
        elif name == "data":
            yield seq, value.encode()


def test_lines_are_those_of_the_outbox(service: Service) -> None:
    """To the byte, from any seq, with any limit, also more than are read at once."""
    assert service.get("/feeds/notifications").content == b""
    service.post(body_of(0, 1_500))
    service.post(body_of(1_500, 900))
    for name in FEEDS:
        lines = all_lines(service.data, name)
        for after, limit in ((0, None), (0, 1), (1_499, 3), (7, 2_200), (2_399, 5), (2_400, 5), (9_999, 5)):
            found = service.get(f"/feeds/{name}", after=after, **({} if limit is None else {"limit": limit}))
            assert found.status_code == 200 and found.headers["content-type"] == "application/x-ndjson"
            expected = [line for seq, line in lines if seq > after][: limit or 1_000]
            assert found.content == b"".join(line + b"\n" for line in expected)


WRONG = {
    "after=-1": "after",
    "after=x": "after",
    "after=9223372036854775808": "after",
    "limit=0": "limit",
    "limit=100001": "limit",
    "wait=301": "wait",
    "wait=-1": "wait",
    "wait=nan": "wait",
    "after=1&after=2": "after",
    "since=1": "since",
}


def test_what_is_wrong_with_the_question_is_said(service: Service) -> None:
    """A parameter is unknown, malformed or out of range; formats that there are not, broken event ids."""
    url = f"{service.url}/feeds/alerts"
    for query, parameter in WRONG.items():
        problem = httpx.get(f"{url}?{query}")
        told = (problem.status_code, problem.json()["code"], problem.json()["parameter"])
        assert told == (400, "invalid_parameter", parameter)
    assert httpx.get(url, headers={"accept": "text/csv"}).json()["code"] == "not_acceptable"
    events = {"accept": "text/event-stream", "last-event-id": ""}
    assert httpx.get(f"{url}?wait=0", headers=events).status_code == 200
    events["last-event-id"] = "x"
    assert httpx.get(url, headers=events).json()["parameter"] == "Last-Event-ID"


def test_a_long_poll_ends_with_a_line_or_with_nothing(service: Service) -> None:
    """As soon as there is one; 200 and no line when the time is up."""
    begun = time.monotonic()
    found = service.get("/feeds/notifications", wait="0.3")
    assert (found.status_code, found.content) == (200, b"") and time.monotonic() - begun >= 0.3
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(service.get("/feeds/notifications", wait=60))) for _ in range(30)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert not answers
    service.post(body_of(0, 1))
    for thread in threads:
        thread.join(30)
    assert {answer.content for answer in answers} == {all_lines(service.data, "notifications")[0][1] + b"\n"}
    assert len(answers) == 30


def test_events_come_as_they_are_committed_and_end_in_order_at_a_stop(service: Service) -> None:
    """Many readers, of which some go away; `Last-Event-ID` is stronger than `after`, limit and wait end a stream."""
    service.post(body_of(0, 20))
    url, accept = f"{service.url}/feeds/notifications", {"accept": "text/event-stream"}
    with httpx.Client(timeout=60) as client:
        with client.stream("GET", f"{url}?after=2&limit=3", headers={**accept, "last-event-id": "10"}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert list(events_of(response)) == all_lines(service.data, "notifications")[10:13]
        with client.stream("GET", f"{url}?after=20&wait=0.2", headers=accept) as response:
            assert list(events_of(response)) == []
    for _ in range(20):
        port = int(service.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.sendall(b"GET /feeds/alerts HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n")
            gone.recv(10)
    seen: list[Any] = []
    begun = threading.Barrier(11)

    def follow() -> None:
        with httpx.Client(timeout=60) as client, client.stream("GET", url, headers=accept) as response:
            events = events_of(response)
            mine = [next(events) for _ in range(20)]
            begun.wait(30)
            seen.append(mine + list(events))  # a stream that is cut off raises

    threads = [threading.Thread(target=follow) for _ in range(10)]
    for thread in threads:
        thread.start()
    begun.wait(30)
    service.post(body_of(20, 5))
    assert service.get("/feeds/notifications", after=24, wait=30).content
    time.sleep(0.5)
    assert service.stop() == 0
    for thread in threads:
        thread.join(30)
    assert seen == [all_lines(service.data, "notifications")] * 10


def test_a_client_that_reconnects_while_the_service_is_killed_sees_every_notification_once(
    tmp_path: Path, config: Path
) -> None:
    """50 connections and 5 kills: in order, none twice, none lost, to the byte."""
    data = tmp_path / "data"
    seen: list[tuple[int, bytes]] = []
    connections = 0
    service = Service(data, config=config).start()
    try:
        for life in range(6):
            stop = threading.Event()

            def write(url: str = service.url, stop: threading.Event = stop, life: int = life) -> None:
                number = 0
                while not stop.is_set():
                    try:
                        httpx.post(f"{url}/records", content=body_of(life * 100_000 + number, 7), headers=JSON)
                    except httpx.HTTPError:
                        return
                    number += 7

            writer = threading.Thread(target=write)
            writer.start()
            for turn in range(9):
                connections += 1
                headers = {"accept": "text/event-stream", "last-event-id": str(seen[-1][0] if seen else 0)}
                with httpx.stream("GET", f"{service.url}/feeds/notifications", headers=headers, timeout=60) as response:
                    for count, event in enumerate(events_of(response), 1):
                        seen.append(event)
                        if count == 5 + turn:
                            break
            if life < 5:
                service.kill()
                stop.set()
                writer.join(30)
                service = Service(data, config=config).start()
            else:
                stop.set()
                writer.join(30)
        rest = service.get("/feeds/notifications", after=seen[-1][0], limit=100_000).content.splitlines()
        assert connections >= 50
        assert [seq for seq, _ in seen] == list(range(1, len(seen) + 1))
        assert [line for _, line in seen] + rest == [line for _, line in all_lines(data, "notifications")]
    finally:
        service.stop()


JSON = {"content-type": "application/json"}

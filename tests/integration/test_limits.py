"""Every limit of the configuration, reached in the real service: its own code, and the others are served as before.

String lengths and the like are rules of records: `tests/unit/test_decode_record.py`. `api.shutdown_s` has a file of its
own, `test_shutdown.py`.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from ingest.decode import Limits, decode_body
from ingest.formats import Compression, Format
from ingest.record import Rules
from service.config import Config
from store.errors import TooLargeError
from tests.support.service import Service, wait_until

ROOT = Path(__file__).parents[2]
NDJSON = "application/x-ndjson"
STORED = 40_000
PATH = "/records/aggregations"

GROUPS: dict[str, dict[str, str]] = {
    "requests": {
        "api.max_body_bytes": "60000", "api.body_timeout_s": "1", "api.max_header_bytes": "2000",
        "api.header_timeout_s": "1", "api.max_connections": "12", "api.max_answer_rows": "5",
        "ingest.max_decompressed_bytes": "80000", "ingest.max_batch_records": "40", "ingest.max_json_depth": "3",
        "ingest.atomic_records": "5", "ingest.queue_batches": "1",
    },
    "answers": {
        "api.concurrent_queries": "1", "api.waiting_queries": "0", "api.open_answers": "3",
        "api.write_timeout_s": "1.5", "ingest.max_ratio": "3", "ingest.queue_records": "1500",
    },
    "queries": {"store.query_timeout_s": "0.0001", "store.min_free_bytes": str(1 << 60)},
}  # fmt: skip
"""Services with limits that are small."""

KINDS = re.compile(r"max_.*|.*_timeout_s|queue_.*|.*_queries|open_answers|atomic_.*|query_memory|min_free_bytes")


def record(number: int, **members: object) -> dict[str, object]:
    return {
        "recordId": f"rec-{number}", "time": "2024-03-01T12:00:00Z", "sourceId": "source-a",
        "destinationId": f"dest-{number % 100}", "type": "positive", "value": "1.5", "unit": "SEK", "reference": "r",
        **members,
    }  # fmt: skip


def lines(first: int, count: int) -> bytes:
    return b"".join(json.dumps(record(number)).encode() + b"\n" for number in range(first, first + count))


def connected(service: Service) -> socket.socket:
    url = urlsplit(service.url)
    connection = socket.create_connection((url.hostname or "", url.port or 0), 30)
    connection.settimeout(30)
    return connection


def raw(service: Service, request: bytes) -> tuple[int, dict[str, Any]]:
    """Status and problem of the answer to bytes after which nothing more comes."""
    with connected(service) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def told(answer: httpx.Response) -> tuple[int, dict[str, Any]]:
    return answer.status_code, answer.json()


def unread(service: Service) -> socket.socket:
    """A client that asks for everything, and reads no more than the beginning."""
    connection = connected(service)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.sendall(f"GET {PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    return connection


def first_refused(service: Service, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """What many clients at once are told that are not all served."""
    refused: list[httpx.Response] = []

    def ask(client: httpx.Client) -> None:
        for _ in range(200):
            if refused:
                return
            answer = client.request(method, path, content=body, headers={"content-type": NDJSON})
            if answer.status_code != 200:
                refused.append(answer)

    with httpx.Client(base_url=service.url, timeout=60) as client:
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert refused, "all of them were served"
    assert "retry-after" in refused[0].headers
    return told(refused[0])


def head(size: int) -> bytes:
    return f"POST /records HTTP/1.1\r\nhost: x\r\ncontent-type: {NDJSON}\r\ncontent-length: {size}\r\n\r\n".encode()


def zipped(service: Service, body: bytes) -> tuple[int, dict[str, Any]]:
    headers = {"content-type": NDJSON, "content-encoding": "gzip"}
    return told(httpx.post(f"{service.url}/records", content=gzip.compress(body), headers=headers, timeout=60))


def too_many_connections(service: Service) -> tuple[int, dict[str, Any]]:
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(connected(service))
        return raw(service, b"")


def unread_answers(service: Service) -> tuple[int, dict[str, Any]]:
    """Three that are not read; they are cut off in the end, and then there is room again."""
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(unread(service))
        refused = told(service.get(PATH))
        wait_until(lambda: established(service) == 0)
    assert service.get(PATH).status_code == 200
    return refused


def established(service: Service) -> int:
    """Connections that the service has not closed: a client that does not read is told nothing of it."""
    port = f":{urlsplit(service.url).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] == "01" for row in rows)


Asked = tuple[int, dict[str, Any]]
CASES: dict[str, tuple[int, str, Callable[[Service], Asked]]] = {
    "api.max_body_bytes": (413, "too_large", lambda s: told(s.post(b" " * 60_001, NDJSON))),
    "api.body_timeout_s": (408, "body_timeout", lambda s: raw(s, head(100) + b"{")),
    "api.max_header_bytes": (431, "headers_too_large", lambda s: raw(s, b"GET /?" + b"x" * 2_000 + b" HTTP/1.1\r\n")),
    "api.header_timeout_s": (408, "header_timeout", lambda s: raw(s, b"GET / HT")),
    "api.max_connections": (503, "too_many_connections", too_many_connections),
    "api.max_answer_rows": (422, "answer_too_large", lambda s: told(s.get(PATH))),
    "ingest.max_decompressed_bytes": (413, "too_large_decompressed", lambda s: zipped(s, b" " * 80_001)),
    "ingest.max_batch_records": (413, "too_many_records", lambda s: told(s.post(lines(0, 41), NDJSON))),
    "ingest.max_json_depth": (400, "too_deep", lambda s: told(s.post(b'{"a":[[[1]]]}'))),
    "ingest.atomic_records": (413, "too_large_atomic", lambda s: told(s.post(lines(0, 6), NDJSON, atomic="true"))),
    "ingest.queue_batches": (429, "queue_full", lambda s: first_refused(s, "POST", "/records", lines(0, 40))),
    "api.concurrent_queries": (503, "too_many_queries", lambda s: first_refused(s, "GET", f"{PATH}?include=totals")),
    "api.waiting_queries": (503, "too_many_queries", lambda s: first_refused(s, "GET", f"{PATH}?include=totals")),
    "api.open_answers": (503, "too_many_answers", unread_answers),
    "api.write_timeout_s": (503, "too_many_answers", unread_answers),
    "ingest.max_ratio": (413, "too_large_ratio", lambda s: zipped(s, b" " * (17 << 20))),
    "ingest.queue_records": (429, "queue_full", lambda s: first_refused(s, "POST", "/records", lines(0, 1_000))),
    "store.query_timeout_s": (503, "query_timeout", lambda s: told(s.get(PATH))),
    "store.min_free_bytes": (503, "", lambda s: told(s.get("/health"))),
}
"""Status, code, and how the limit is reached."""

SAYS_NO_KEY = {"ingest.queue_batches", "ingest.queue_records", "api.concurrent_queries", "api.write_timeout_s"}
"""Where the key is no business of the client, or where it is another one's refusal that shows it."""


ELSEWHERE = {
    "store.query_memory": "tests/unit/test_queries.py::test_too_little_memory_is_said_with_the_key_to_raise",
}
"""Not reached with what a test can store: such queries spill."""


@pytest.fixture(scope="module", params=GROUPS)
def limited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Service]]:
    """A service with small limits, which holds enough for a long answer where answers are at stake."""
    name = request.param
    settings = {f"oncelake_{key.replace('.', '__')}": value for key, value in GROUPS[name].items()}
    with Service(tmp_path_factory.mktemp(name) / "data", oncelake_store__fsync="false", **settings) as service:
        batch = 40 if name == "requests" else 1_000
        for first in range(0, STORED if name == "answers" else batch, batch):
            assert service.post(lines(first, batch), NDJSON).json()["accepted"] == batch
        yield name, service


def test_every_limit_of_a_group_has_its_own_problem(limited: tuple[str, Service]) -> None:
    """With its status and code, the key that says how much may be; and afterwards the service is as it was."""
    name, service = limited
    for key in GROUPS[name]:
        status, code, ask = CASES[key]
        found, problem = ask(service)
        assert found == status and problem.get("code", "") == code, (key, found, problem)
        assert key in SAYS_NO_KEY or key in json.dumps(problem), (key, problem)
        assert service.post(json.dumps(record(STORED + len(key))).encode()).status_code in (200, 201), key
    assert "Traceback" not in service.log()
    assert service.get("/health").status_code == (503 if name == "queries" else 200)


def test_every_key_that_limits_something_is_tried_here() -> None:
    """By its name: a new one is missed until it has its case."""
    keys = {
        f"{section.name}.{key.name}"
        for section in msgspec.structs.fields(Config)
        if section.name in ("store", "ingest", "api")
        for key in msgspec.structs.fields(section.type)
        if KINDS.fullmatch(key.name)
    }
    assert set(CASES) == {key for group in GROUPS.values() for key in group}
    assert keys == set(CASES) | set(ELSEWHERE)
    for place in ELSEWHERE.values():
        path, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text()


def test_a_body_of_which_too_many_records_are_rejected_is_refused() -> None:
    """Each of them is held until the commit, with its errors."""
    limits = Limits(max_rejects=100)
    with pytest.raises(TooLargeError, match="more than 100 records that break a rule") as error:
        decode_body(b"{}\n" * 101, Format.NDJSON, Compression.NONE, Rules(), limits)
    assert error.value.code == "too_many_rejected"
    assert decode_body(b"{}\n" * 100, Format.NDJSON, Compression.NONE, Rules(), limits)[0].received == 100
